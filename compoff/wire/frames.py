"""Bytes to frames and back: the smallest unit that travels, and nothing about what it means.

A frame is a 12-byte header, a body, and a CRC-32 over both, all big-endian::

    type u8 | route u8 | deadline_ms u16 | request_id u32 | body length u32 | body | crc32 u32

No I/O and no state of a conversation: ``messages`` reads the bodies, ``protocol`` says which frame may come when.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from compoff.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CHECKSUM_BYTES",
    "HEADER_BYTES",
    "MAX_DEADLINE_MS",
    "MAX_REQUEST_ID",
    "OVERHEAD_BYTES",
    "Frame",
    "FrameParser",
    "FrameType",
    "serialize",
]

_HEADER = struct.Struct(">BBHII")
HEADER_BYTES = _HEADER.size
CHECKSUM_BYTES = 4
OVERHEAD_BYTES = HEADER_BYTES + CHECKSUM_BYTES
MAX_REQUEST_ID = 2**32 - 1
MAX_DEADLINE_MS = 2**16 - 1
_MAX_BODY_BYTES = 2**32 - 1


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


_TYPES = {int(frame_type): frame_type for frame_type in FrameType}


@dataclass(frozen=True)
class Frame:
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
    body = frame.body
    try:
        header = _HEADER.pack(frame.type, frame.route, frame.deadline_ms, frame.request_id, len(body))
    except struct.error as error:
        message = (
            f"a {frame.type.name} for route {frame.route} with deadline_ms {frame.deadline_ms}, request_id "
            f"{frame.request_id} and {len(body)} bytes does not fit its header: {error}; expected route < 256, "
            "deadline_ms < 65536, request_id and body length < 2**32"
        )
        raise LocalProtocolError(message) from None
    checksum = zlib.crc32(body, zlib.crc32(header))
    return b"".join((header, body, checksum.to_bytes(CHECKSUM_BYTES, "big")))


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

    def next_frame(self) -> Frame | None:
        """The next complete frame, or None until more bytes are fed.

        Raises:
            RemoteProtocolError: The bytes are no frame, are damaged, or ``check`` refused the frame.
        """
        if not self._frame_bytes:
            self._frame_bytes = self._read_header()
        end = self._position + self._frame_bytes
        if not self._frame_bytes or len(self._data) < end:
            return None
        with memoryview(self._data) as view:
            checksum = zlib.crc32(view[self._position : end - CHECKSUM_BYTES])
            expected = int.from_bytes(view[end - CHECKSUM_BYTES : end], "big")
            body = bytes(view[self._position + HEADER_BYTES : end - CHECKSUM_BYTES])
        if checksum != expected:
            message = f"a frame arrived damaged (checksum {checksum:08x}, not {expected:08x}); open a new connection"
            raise RemoteProtocolError(message)
        number, route, deadline_ms, request_id, _ = _HEADER.unpack_from(self._data, self._position)
        self._position, self._frame_bytes = end, 0
        if end == len(self._data):
            self._data, self._position = b"", 0
        return Frame(_TYPES[number], body, request_id, route, deadline_ms)

    def _read_header(self) -> int:
        """Size of the frame at the position, or 0 while its header is incomplete."""
        available = len(self._data) - self._position
        # The first byte already tells a web server or a TLS server from a peer of ours: no need to wait for twelve.
        if available and self._data[self._position] not in _TYPES:
            number = self._data[self._position]
            message = f"the peer speaks another protocol: its message starts with byte 0x{number:02x}, expected 1 to 8"
            raise RemoteProtocolError(message)
        if available < HEADER_BYTES:
            return 0
        number, route, _, _, length = _HEADER.unpack_from(self._data, self._position)
        self._check(_TYPES[number], route, length)
        return OVERHEAD_BYTES + length
