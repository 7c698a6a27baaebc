"""A server that does what a script says, to see what a client makes of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from compoff.wire.frames import Frame, FrameParser, FrameType, serialize

Script = Callable[[socket.socket, FrameParser], None]


@contextlib.contextmanager
def scripted_server(script: Script) -> Iterator[str]:
    """A server that does what a script says with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(30)
                script(connection, FrameParser(lambda frame_type, route, length: None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(31)


def read_frame(connection: socket.socket, parser: FrameParser) -> Frame:
    while (frame := parser.next_frame()) is None:
        data = connection.recv(65536)
        if not data:
            raise OSError("the client has gone")
        parser.feed(data)
    return frame


def reply(connection: socket.socket, request_id: int, body: bytes) -> None:
    connection.sendall(serialize(Frame(FrameType.REPLY, body, request_id)))
