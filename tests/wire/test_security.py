"""Tokens: who may come in, what cannot be one; and where plain TCP has to be asked for."""

from __future__ import annotations

import hmac

import pytest

from compoff.errors import LocalProtocolError
from compoff.wire import security
from compoff.wire.security import (
    MAX_TOKEN_BYTES,
    check_token_form,
    check_tokens,
    device_tls,
    server_tls,
    token_matches,
)
from compoff.wire.tls import TLS


@pytest.mark.parametrize(
    ("expected", "offered", "opens"),
    [
        (None, None, True),
        (None, "any", True),
        ("secret", "secret", True),
        ("secret", None, False),
        ("secret", "", False),
        ("secret", "Secret", False),
        ("secret", "secret ", False),
        ("sëcret", "sëcret", True),
    ],
)
def test_who_may_come_in(expected: str | None, offered: str | None, opens: bool) -> None:
    assert token_matches(expected, offered) is opens


def test_it_is_compared_in_constant_time_at_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        lengths.append((len(left), len(right)))
        return real(left, right)

    monkeypatch.setattr(security.hmac, "compare_digest", spy)
    for offered in (None, "s", "secret", "x" * 1000):
        token_matches("secret", offered)
    assert lengths == [(32, 32)] * 4


def test_the_form_of_a_token() -> None:
    check_token_form(None)
    check_token_form("x" * MAX_TOKEN_BYTES)
    for bad in ("", "x" * (MAX_TOKEN_BYTES + 1)):
        with pytest.raises(LocalProtocolError, match="expected 1 to 1024"):
            check_token_form(bad)


def test_a_refused_token_is_not_in_the_message() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        check_token_form("hunter2\ud800")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("offered", ["old", "new", "third", None])
def test_each_of_several_tokens_opens_and_all_are_compared(
    monkeypatch: pytest.MonkeyPatch, offered: str | None
) -> None:
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: compared.append(1) or real(a, b))
    assert token_matches(["old", "new"], offered) is (offered in {"old", "new"})
    assert len(compared) == 2


def test_an_empty_list_of_tokens_is_no_open_door() -> None:
    with pytest.raises(LocalProtocolError, match="empty list"):
        check_tokens([])


@pytest.mark.parametrize("tokens", [[None], ["good", None], (None, "good")])
def test_none_among_several_tokens_is_refused(tokens: list[str]) -> None:
    with pytest.raises(LocalProtocolError, match="None was given as one of several tokens"):
        check_tokens(tokens)


def test_tokens_that_run_out_or_change_are_kept() -> None:
    assert check_tokens(token for token in ("old", "new")) == ("old", "new")  # pyright: ignore[reportArgumentType]
    given = ["old"]
    kept = check_tokens(given)
    given.append("new")
    assert kept == ("old",)
    assert (check_tokens("one"), check_tokens(None)) == ("one", None)


LOOPBACK = ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LOCALHOST:1", "[::ffff:127.0.0.1]:1")
ELSEWHERE = ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "edge:1", "localhost.example:1", "[::ffff:10.0.0.1]:1")


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_needs_no_tls(address: str) -> None:
    assert device_tls(address, None, insecure=False) is None
    assert server_tls(address, None, insecure=False) is None


@pytest.mark.parametrize("address", ELSEWHERE)
def test_elsewhere_plain_tcp_has_to_be_asked_for(address: str) -> None:
    assert isinstance(device_tls(address, None, insecure=False), TLS)
    assert device_tls(address, None, insecure=True) is None
    with pytest.raises(LocalProtocolError, match=r"compoff certs.*insecure=True"):
        server_tls(address, None, insecure=False)
    assert server_tls(address, None, insecure=True) is None


@pytest.mark.parametrize("flag", ["false", "no", "0", "", 0, 1, None, [1]])
def test_plain_tcp_is_asked_for_by_true_alone(flag: bool) -> None:
    for check in (device_tls, server_tls):
        for tls in (None, TLS()):
            with pytest.raises(LocalProtocolError, match=r"insecure is .*; expected True or False"):
                check("edge:1", tls, insecure=flag)


def test_both_at_once_are_a_mistake() -> None:
    for check in (device_tls, server_tls):
        with pytest.raises(LocalProtocolError, match="both"):
            check("edge:1", TLS(), insecure=True)
