"""Bytes to frames and back: the smallest unit that travels, and nothing about what it means.

A frame is a 12-byte header, a body, and a CRC-32 over both, all big-endian::

    type u8 | route u8 | deadline_ms u16 | request_id u32 | body length u32 | body | crc32 u32

A REPLY and a PONG have no route and no deadline: those three bytes are one number there, microseconds at the server.
No I/O and no state of a conversation: ``messages`` reads the bodies, ``protocol`` says which frame may come when.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from compoff.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CHECKSUM_BYTES",
    "HEADER_BYTES",
    "MAX_BODY_BYTES",
    "MAX_DEADLINE_MS",
    "MAX_MICROSECONDS",
    "MAX_REQUEST_ID",
    "OVERHEAD_BYTES",
    "Frame",
    "FrameParser",
    "FrameType",
    "serialize",
    "serialize_timed",
    "timed_frame",
]

_HEADER = struct.Struct(">BBHII")
_TIMED_HEADER = struct.Struct(">III")
HEADER_BYTES = _HEADER.size
CHECKSUM_BYTES = 4
OVERHEAD_BYTES = HEADER_BYTES + CHECKSUM_BYTES
MAX_REQUEST_ID = 2**32 - 1
MAX_BODY_BYTES = 2**32 - 1
MAX_DEADLINE_MS = 2**16 - 1
MAX_MICROSECONDS = 2**24 - 1
_SMALL = 16384  # bytes; up to here copying a frame once more costs less than a view of it


class FrameType(IntEnum):
    """What a frame is; the numbers are on the wire and never change their meaning."""

    HELLO = 1
    WELCOME = 2
    REQUEST = 3
    REPLY = 4
    ERROR = 5
    PING = 6
    PONG = 7
    GOODBYE = 8
    CANCEL = 9


_TYPES = {int(frame_type): frame_type for frame_type in FrameType}


class Frame(NamedTuple):
    """One frame.

    Args:
        type: What the frame is.
        body: The bytes it carries.
        request_id: Which request it belongs to; 0 for the connection itself.
        route: Index into the artifacts that the client offered; 0 where there is none.
        deadline_ms: Milliseconds the sender will wait for the answer; 0 for none given.

    Source: this project.
    """

    type: FrameType
    body: bytes = b""
    request_id: int = 0
    route: int = 0
    deadline_ms: int = 0

    @property
    def seconds(self) -> float:
        """Of a REPLY the time from the request's arrival to this answer, of a PONG the wait in the server's queue."""
        return (self.route << 16 | self.deadline_ms) / 1e6


def timed_frame(frame_type: FrameType, body: bytes, request_id: int, seconds: float) -> Frame:
    """A REPLY or a PONG with a time at the server, in seconds; one beyond 16.7 s is written as 16.7 s.

    Examples:
        >>> timed_frame(FrameType.PONG, b"", 1, 0.002).seconds
        0.002

    Source: this project.
    """
    microseconds = min(max(0, round(seconds * 1e6)), MAX_MICROSECONDS)
    return Frame(frame_type, body, request_id, microseconds >> 16, microseconds & 0xFFFF)


def serialize(frame: Frame) -> bytes:
    """Bytes of one frame, to be sent in one write.

    Args:
        frame: The frame.

    Returns:
        Header, body and checksum: 16 bytes more than the body.

    Raises:
        LocalProtocolError: A number does not fit its field.

    Examples:
        >>> serialize(Frame(FrameType.PING, request_id=7)).hex(" ", 4)
        '06000000 00000007 00000000 26c8bf9f'

    Source: this project.
    """
    frame_type, body, request_id, route, deadline_ms = frame
    try:
        header = _HEADER.pack(frame_type, route, deadline_ms, request_id, len(body))
    except struct.error as error:
        message = (
            f"a {frame_type.name} for route {route} with deadline_ms {deadline_ms}, request_id "
            f"{request_id} and {len(body)} bytes does not fit its header: {error}; expected route < 256, "
            "deadline_ms < 65536, request_id and body length < 2**32"
        )
        raise LocalProtocolError(message) from None
    checksum = zlib.crc32(body, zlib.crc32(header))
    return b"".join((header, body, checksum.to_bytes(CHECKSUM_BYTES, "big")))


def serialize_timed(frame_type: FrameType, body: bytes, request_id: int, seconds: float) -> bytes:
    """Bytes of ``timed_frame``, made at once: every answer of a server goes through here.

    Raises:
        LocalProtocolError: A number does not fit its field.

    Examples:
        >>> serialize_timed(FrameType.PONG, b"", 9, 0.002).hex(" ", 4)
        '070007d0 00000009 00000000 f48617d1'

    Source: this project.
    """
    microseconds = min(max(0, round(seconds * 1e6)), MAX_MICROSECONDS)
    try:
        header = _TIMED_HEADER.pack(frame_type << 24 | microseconds, request_id, len(body))
    except struct.error as error:
        message = (
            f"a {frame_type.name} for request_id {request_id} with {len(body)} bytes does not fit a frame: {error}"
        )
        raise LocalProtocolError(message) from None
    return b"".join((header, body, zlib.crc32(body, zlib.crc32(header)).to_bytes(CHECKSUM_BYTES, "big")))


class FrameParser:
    """Frames out of a stream of bytes that arrives in pieces of any size.

    Args:
        check: Called with type, route and body length as soon as a header is there, before any byte of the body is
            waited for; raises to refuse the frame. It holds the maxima, because they depend on the conversation.

    Examples:
        >>> parser = FrameParser(lambda frame_type, route, length: None)
        >>> data = serialize(Frame(FrameType.REPLY, b"answer", request_id=1))
        >>> parser.feed(data[:5]); parser.next_frame()
        >>> parser.feed(data[5:]); parser.next_frame().body
        b'answer'

    Source: this project.
    """

    def __init__(self, check: Callable[[FrameType, int, int], None]) -> None:
        """Start with nothing received."""
        self._check = check
        self._data: bytes | bytearray = b""
        self._position = 0
        self._frame_bytes = 0  # size of the frame at the position once its header has been checked, else 0

    @property
    def buffered(self) -> int:
        """Bytes received that are not yet part of a returned frame."""
        return len(self._data) - self._position

    def feed(self, data: bytes) -> None:
        """Take bytes as they came; ``next_frame`` returns what they complete."""
        if self._position == len(self._data):
            self._data = data  # the usual case, a whole message in one piece, is never copied here
        else:
            if self._position or isinstance(self._data, bytes):
                self._data = bytearray(memoryview(self._data)[self._position :])
            self._data += data
        self._position = 0

    def discard(self) -> None:
        """Let go of everything received: nothing more will be read."""
        self._data, self._position, self._frame_bytes = b"", 0, 0

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None until more bytes are fed.

        Raises:
            RemoteProtocolError: The bytes are no frame, are damaged, or ``check`` refused the frame.
        """
        data, start = self._data, self._position
        if start == len(data):
            return None
        if not self._frame_bytes:
            self._frame_bytes = self._read_header()
        end = start + self._frame_bytes
        if start == end or len(data) < end:
            return None
        if end - start <= _SMALL and isinstance(data, bytes):
            checksum = zlib.crc32(data[start : end - CHECKSUM_BYTES])
            body = data[start + HEADER_BYTES : end - CHECKSUM_BYTES]
        else:
            with memoryview(data) as view:
                checksum = zlib.crc32(view[start : end - CHECKSUM_BYTES])
                body = bytes(view[start + HEADER_BYTES : end - CHECKSUM_BYTES])
        expected = int.from_bytes(data[end - CHECKSUM_BYTES : end], "big")
        if checksum != expected:
            message = f"a frame arrived damaged (checksum {checksum:08x}, not {expected:08x}); open a new connection"
            raise RemoteProtocolError(message)
        number, route, deadline_ms, request_id, _ = _HEADER.unpack_from(data, start)
        self._position, self._frame_bytes = end, 0
        if end == len(data):
            self._data, self._position = b"", 0
        return Frame(_TYPES[number], body, request_id, route, deadline_ms)

    def _read_header(self) -> int:
        """Size of the frame at the position, or 0 while its header is incomplete."""
        data, start = self._data, self._position
        if start == len(data):
            return 0
        # The first byte already tells a web server or a TLS server from a peer of ours: no need to wait for twelve.
        frame_type = _TYPES.get(data[start])
        if frame_type is None:
            message = (
                f"the peer speaks another protocol: its message starts with byte 0x{data[start]:02x}, expected 1 to 9"
            )
            raise RemoteProtocolError(message)
        if len(data) - start < HEADER_BYTES:
            return 0
        _, route, _, _, length = _HEADER.unpack_from(data, start)
        self._check(frame_type, route, length)
        return OVERHEAD_BYTES + length
