"""ZeroMQ: a ROUTER that answers DEALERs; there is no TLS, no deadline and no word of a peer that has gone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import zmq

from benchmarks.baselines.interface import Running, System, answer_to

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable


def start() -> Running:
    """A thread around a ROUTER."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")

    def work() -> None:
        while (parts := router.recv_multipart())[1] != b"stop":
            router.send_multipart([parts[0], answer_to(parts[1])])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def close() -> None:
        with context.socket(zmq.DEALER) as socket:
            socket.connect(f"tcp://127.0.0.1:{port}")
            socket.send(b"stop")
            thread.join(5)
        router.close(0)
        context.term()

    return Running(f"127.0.0.1:{port}", close)


def connect(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """A DEALER."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(f"tcp://{address}")
    stack.callback(context.term)
    stack.callback(socket.close, 0)

    def ask(body: bytes) -> bytes:
        socket.send(body)
        return socket.recv()

    return ask


SYSTEMS = [System("ZeroMQ", start, connect)]
