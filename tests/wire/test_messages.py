"""Bodies of HELLO, WELCOME and ERROR: round trips, and everything that has another form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.errors import LocalProtocolError, RemoteProtocolError
from compoff.wire.messages import (
    MAX_HANDSHAKE_BYTES,
    ErrorCode,
    Hello,
    Offer,
    Route,
    Welcome,
    decode_error,
    encode_error,
    one_line,
)
from compoff.wire.replies import ReplyForm, ReplyKind

ID = bytes(range(32))
FULL = bytes(4)
forms = st.one_of(
    st.sampled_from([ReplyForm(kind) for kind in (ReplyKind.FULL, ReplyKind.FP32, ReplyKind.FP16)]),
    st.integers(-31, 31).filter(bool).map(lambda dim: ReplyForm(ReplyKind.ARGMAX, dim)),
    st.tuples(st.integers(-31, 31).filter(bool), st.integers(1, 2**16 - 1)).map(
        lambda chosen: ReplyForm(ReplyKind.TOP_K, *chosen)
    ),
)
offers = st.lists(st.builds(Offer, st.binary(min_size=32, max_size=32), forms), min_size=1, max_size=64, unique=True)
tokens = st.none() | st.text(min_size=1, max_size=100)


@given(offers, tokens)
def test_hello_round_trip(offered: list[Offer], token: str | None) -> None:
    hello = Hello(tuple(offered), token)
    assert Hello.decode(hello.encode()) == hello


def test_the_longest_hello_fits_what_a_stranger_may_send() -> None:
    longest = Hello(tuple(Offer(bytes([n]) * 32) for n in range(64)), "x" * 1024)
    assert len(longest.encode()) <= MAX_HANDSHAKE_BYTES


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        (Hello(()), "expected 1 to 64"),
        (Hello(tuple(Offer(bytes([n]) * 32) for n in range(65))), "expected 1 to 64"),
        (Hello((Offer(bytes(31)),)), "31 bytes"),
        (Hello((Offer(ID), Offer(ID))), "twice"),
        (Hello((Offer(ID),), ""), "token of 0 bytes"),
        (Hello((Offer(ID),), "ä" * 513), "token of 1026 bytes"),
        (Hello((Offer(ID),), "\ud800"), "not valid Unicode"),
    ],
)
def test_a_hello_that_cannot_be_sent(hello: Hello, words: str) -> None:
    with pytest.raises(LocalProtocolError, match=words):
        hello.encode()


def test_the_token_is_not_in_the_repr() -> None:
    assert "secret" not in repr(Hello((Offer(ID),), "secret"))


GOOD = Hello((Offer(ID),), "secret").encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"COF",
        b"COFF",
        b"FFOC" + GOOD[4:],
        GOOD[:-1],
        GOOD + b"x",
        GOOD[:5],
        b"COFF\x02\x00\x00\x00",
        b"COFF\x02\x02" + GOOD[6:],
        b"COFF\x02\xff" + GOOD[6:],
        b"COFF\x02\x02" + ID + FULL + ID + FULL + b"\x00\x00",
        b"COFF\x02\x01" + ID + FULL + b"\x00\x01\xff",
        b"COFF\x02\x01" + ID + FULL + b"\x04\x01" + b"x" * 1025,
        b"COFF\x02\x01" + ID + b"\x05\x00\x00\x00" + b"\x00\x00",
        b"COFF\x02\x01" + ID + b"\x00\x01\x00\x00" + b"\x00\x00",
        b"COFF\x02\x01" + ID + b"\x02\x00\x00\x01" + b"\x00\x00",
        b"COFF\x02\x01" + ID + b"\x03\x00\x00\x00" + b"\x00\x00",
        b"COFF\x02\x01" + ID + b"\x03\x20\x00\x00" + b"\x00\x00",
        b"COFF\x02\x01" + ID + b"\x04\x01\x00\x00" + b"\x00\x00",
    ],
)
def test_a_hello_of_another_form(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Hello.decode(body)


def test_a_hello_of_another_version_is_read_no_further() -> None:
    assert Hello.decode(b"COFF\x03 whatever comes next").version == 3


@given(
    st.integers(1, 2**16 - 1), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64), st.integers(0, 2**32 - 1)
)
def test_welcome_round_trip(window: int, maxima: list[int], idle_ms: int) -> None:
    welcome = Welcome(window, tuple(Route(index, maximum) for index, maximum in enumerate(maxima)), idle_ms)
    assert Welcome.decode(welcome.encode(), len(maxima)) == welcome


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02",
        Welcome(16, (Route(0, 9),)).encode() + b"x",
        Welcome(16, (Route(0, 9), Route(1, 9))).encode(),
        Welcome(16, (Route(1, 9),)).encode(),
        Welcome(0, (Route(0, 9),)).encode(),
        Welcome(16, (Route(0, 9),)).encode()[:7] + b"\x02" + bytes(5),
        Welcome(16, (Route(0, 9),), version=1).encode(),
    ],
)
def test_a_welcome_of_another_form(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Welcome.decode(body, 1)


def test_a_welcome_of_another_version_says_both() -> None:
    with pytest.raises(RemoteProtocolError, match="version 3, this client version 2"):
        Welcome.decode(Welcome(16, (Route(0, 9),), version=3).encode(), 1)


@pytest.mark.parametrize("code", ErrorCode)
def test_error_round_trip(code: ErrorCode) -> None:
    assert decode_error(encode_error(code, "why: ü")) == (code, "why: ü")


@given(st.sampled_from(ErrorCode), st.text(max_size=2000))
def test_an_error_is_one_line_of_at_most_1_kib(code: ErrorCode, text: str) -> None:
    body = encode_error(code, text)
    assert len(body) <= 1025
    decoded = decode_error(body)[1]
    assert len(decoded.splitlines()) <= 1
    assert decoded.isprintable()


def test_a_long_text_is_cut_between_characters() -> None:
    assert decode_error(encode_error(ErrorCode.TAIL, "ä" * 1000))[1] == "ä" * 512
    assert decode_error(encode_error(ErrorCode.TAIL, "x" + "ä" * 1000))[1] == "x" + "ä" * 511


@pytest.mark.parametrize("body", [b"", b"\x00why", b"\x0cwhy", b"\x01" + b"x" * 1025])
def test_an_error_of_another_form(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_error(body)


def test_bytes_that_are_no_text_do_no_harm() -> None:
    assert decode_error(b"\x06ok \xff\xfe")[1] == "ok \ufffd\ufffd"
    assert one_line("\x1b[31mred\nsecond") == "?[31mred"
