"""Frames: their golden bytes, any chunking of a stream, and everything that is no frame."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.errors import LocalProtocolError, RemoteProtocolError
from compoff.wire.frames import OVERHEAD_BYTES, Frame, FrameParser, FrameType, serialize, timed_frame
from compoff.wire.messages import ErrorCode, Hello, Offer, Route, Welcome, encode_error
from compoff.wire.replies import ReplyForm, ReplyKind

ID = bytes(range(32))
GOLDEN = [
    (
        Frame(
            FrameType.HELLO,
            Hello((Offer(ID), Offer(bytes(32), ReplyForm(ReplyKind.TOP_K, 1, 5))), "secret").encode(),
        ),
        "010000000000000000000056"
        + ("434f464602" + "02" + ID.hex() + "00000000" + "00" * 32 + "04010005" + "0006736563726574")
        + "56b82dee",
    ),
    (
        Frame(FrameType.HELLO, Hello((Offer(ID),)).encode()),
        "01000000000000000000002c" + "434f464602" + "01" + ID.hex() + "00000000" + "0000" + "db338067",
    ),
    (
        Frame(FrameType.WELCOME, Welcome(16, (Route(0, 4000), Route(1, 70000)), 300_000).encode()),
        "020000000000000000000012" + "020010000493e002" + "0000000fa0" + "0100011170" + "8c183ade",
    ),
    (
        Frame(FrameType.REQUEST, b"payload", request_id=7, route=1, deadline_ms=50),
        "03010032" + "00000007" + "00000007" + b"payload".hex() + "41a9cc5a",
    ),
    (
        Frame(FrameType.REPLY, b"answer", request_id=2**32 - 2),
        "04000000" + "fffffffe" + "00000006" + b"answer".hex() + "8bb69f0f",
    ),
    (
        Frame(FrameType.ERROR, encode_error(ErrorCode.PAYLOAD, "broken – really"), request_id=7),
        "05000000" + "00000007" + "00000012" + "05" + "broken – really".encode().hex() + "4833e3c1",
    ),
    (Frame(FrameType.PING, request_id=9), "06000000" + "00000009" + "00000000" + "99f801fe"),
    (Frame(FrameType.PONG, request_id=9), "07000000" + "00000009" + "00000000" + "025d4d91"),
    (
        timed_frame(FrameType.REPLY, b"answer", 7, 0.123456),
        "0401e240" + "00000007" + "00000006" + b"answer".hex() + "e206265a",
    ),
    (timed_frame(FrameType.PONG, b"", 9, 0.002), "070007d0" + "00000009" + "00000000" + "f48617d1"),
    (Frame(FrameType.CANCEL, request_id=7), "09000000" + "00000007" + "00000000" + "545c20ee"),
    (Frame(FrameType.GOODBYE), "08000000" + "00000000" + "00000000" + "7dd9b091"),
]
frames = st.builds(
    Frame,
    st.sampled_from(FrameType),
    st.binary(max_size=300),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
)


def crc32(data: bytes) -> int:
    """CRC-32 bit by bit, as its polynomial says."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def allow_all(frame_type: FrameType, route: int, length: int) -> None:
    """A check that refuses nothing."""


def parse(data: bytes) -> list[Frame]:
    parser = FrameParser(allow_all)
    parser.feed(data)
    return drain(parser)


def drain(parser: FrameParser) -> list[Frame]:
    found: list[Frame] = []
    while (frame := parser.next_frame()) is not None:
        found.append(frame)
    return found


@pytest.mark.parametrize(
    ("frame", "golden"), GOLDEN, ids=[f"{frame.type.name}-{len(frame.body)}" for frame, _ in GOLDEN]
)
def test_golden_bytes(frame: Frame, golden: str) -> None:
    assert serialize(frame).hex() == golden
    assert parse(bytes.fromhex(golden)) == [frame]


def test_golden_frames_cover_every_type() -> None:
    assert {frame.type for frame, _ in GOLDEN} == set(FrameType)


@given(frames)
def test_bytes_are_header_body_and_checksum(frame: Frame) -> None:
    header = struct.pack("!BBHLL", frame.type.value, frame.route, frame.deadline_ms, frame.request_id, len(frame.body))
    assert serialize(frame) == header + frame.body + struct.pack("!L", crc32(header + frame.body))
    assert len(serialize(frame)) == len(frame.body) + OVERHEAD_BYTES == len(frame.body) + 16


@given(st.lists(frames, max_size=6), st.data())
def test_any_chunking_gives_the_same_frames(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(map(serialize, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser, found = FrameParser(allow_all), list[Frame]()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        parser.feed(stream[start:end])
        if data.draw(st.booleans()):
            found += drain(parser)
    assert found + drain(parser) == sent
    assert parser.buffered == 0


def test_byte_by_byte() -> None:
    parser, found = FrameParser(allow_all), list[Frame]()
    stream = b"".join(serialize(frame) for frame, _ in GOLDEN)
    for index in range(len(stream)):
        parser.feed(stream[index : index + 1])
        found += drain(parser)
    assert found == [frame for frame, _ in GOLDEN]


@pytest.mark.parametrize("bit", range(8 * (OVERHEAD_BYTES + 5)))
def test_every_single_flipped_bit_is_found(bit: int) -> None:
    data = bytearray(serialize(Frame(FrameType.REPLY, b"reply", request_id=3)))
    data[bit // 8] ^= 1 << bit % 8
    parser = FrameParser(lambda frame_type, route, length: None)
    parser.feed(bytes(data) + bytes([6]) * 64)  # more bytes, so that a longer length is not just waited for
    try:
        found = parser.next_frame()
    except RemoteProtocolError:
        found = None
    assert found is None


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400", b"\x16\x03\x01", b"SSH-2.0-", b"\x00", b"\xff"])
def test_another_protocol_is_told_by_its_first_byte(greeting: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match=f"0x{greeting[0]:02x}"):
        parse(greeting[:1])


def test_check_sees_the_header_before_the_body_and_can_refuse() -> None:
    seen: list[tuple[FrameType, int, int]] = []

    def check(frame_type: FrameType, route: int, length: int) -> None:
        seen.append((frame_type, route, length))
        if length > 100:
            raise RemoteProtocolError("too long")

    parser = FrameParser(check)
    parser.feed(serialize(Frame(FrameType.REQUEST, bytes(100), 1, 5))[:12])
    assert parser.next_frame() is None
    assert parser.next_frame() is None
    assert seen == [(FrameType.REQUEST, 5, 100)], "once for each frame"
    parser = FrameParser(check)
    parser.feed(serialize(Frame(FrameType.REQUEST, bytes(101), 1, 5))[:12])
    with pytest.raises(RemoteProtocolError, match="too long"):
        parser.next_frame()


def test_a_length_of_4_gib_allocates_nothing() -> None:
    parser = FrameParser(allow_all)
    tracemalloc.start()
    parser.feed(struct.pack(">BBHII", FrameType.REPLY, 0, 0, 1, 2**32 - 1) + bytes(100))
    assert parser.next_frame() is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000


@pytest.mark.parametrize(
    "frame",
    [
        Frame(FrameType.REQUEST, route=256),
        Frame(FrameType.REQUEST, deadline_ms=2**16),
        Frame(FrameType.REQUEST, request_id=2**32),
        Frame(FrameType.REQUEST, request_id=-1),
    ],
)
def test_a_number_that_does_not_fit_is_a_local_error(frame: Frame) -> None:
    with pytest.raises(LocalProtocolError, match="does not fit its header"):
        serialize(frame)
