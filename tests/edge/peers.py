"""A tail that echoes, and a raw connection that speaks to a server as no client of ours would."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from compoff.edge import connection, service
from compoff.errors import PayloadError
from compoff.wire.client import open_client
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import ErrorCode, Hello, Offer, decode_error

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from compoff.edge.server import Server

ID = bytes(range(32))
HELLO = serialize(Frame(FrameType.HELLO, Hello((Offer(ID),)).encode()))


class Echo:
    """Answers with the payload; counts; one that begins with "held" is answered when the gate is open."""

    artifact_id = ID

    def __init__(self, max_payload_bytes: int = 2**16) -> None:
        self.max_payload_bytes = max_payload_bytes
        self.answered = 0
        self.gate = threading.Event()

    def answer(self, payload: bytes) -> bytes:
        self.answered += 1
        if payload == b"broken":
            raise PayloadError("the payload is broken")
        if payload.startswith(b"held"):
            self.gate.wait(30)
        return payload


class Clock:
    """The time by which a server judges its peers: it passes only when a test says so, however slow the machine is."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.monotonic()
        for module in (connection, service):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self._now

    def advance(self, server: Server, seconds: float) -> None:
        """Let some time pass, and let the server look at its clocks."""
        self._now += seconds
        looked = threading.Event()

        def look() -> None:
            for peer in tuple(server._service.peers):
                peer.check_clock(self._now)
            looked.set()

        server._loop.call_soon_threadsafe(look)
        assert looked.wait(30)


class Peer:
    """A raw connection to a server."""

    def __init__(self, server: Server, first: bytes = HELLO, receive_buffer: int = 0, source: str = "") -> None:
        host, port = server.address.rsplit(":", 1)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(30)
        self.socket.connect((host, int(port)))
        self.parser = FrameParser(lambda frame_type, route, length: None)
        self.send(first)

    def send(self, data: bytes) -> None:
        if data:
            self.socket.sendall(data)

    def read(self) -> Frame | None:
        """The next frame, or None where the server has closed."""
        while (frame := self.parser.next_frame()) is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.parser.feed(data)
        return frame

    def refused(self) -> ErrorCode:
        """The code of the farewell, after which the server has closed."""
        frame = self.read()
        assert frame is not None
        assert (frame.type, frame.request_id) == (FrameType.ERROR, 0)
        assert self.read() is None
        return decode_error(frame.body)[0]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def request(request_id: int, body: bytes, deadline_ms: int = 0) -> bytes:
    return serialize(Frame(FrameType.REQUEST, body, request_id, 0, deadline_ms))


def content(frame: Frame | None) -> tuple[FrameType, bytes, int] | None:
    """What a frame says, but not how long the server took for it."""
    return frame and (frame.type, frame.body, frame.request_id)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds, but not for ever."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def still_right(server: Server, **options: Any) -> None:
    """A good client is served."""
    with open_client(server.address, [ID], **options) as client:
        assert client.request(b"good", timeout=30) == b"good"
