"""websockets: its asyncio server and its blocking client, without compression, which costs small messages only time."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from websockets.asyncio.server import ServerConnection, serve
from websockets.sync.client import connect as open_websocket

from benchmarks.baselines.interface import Running, System, answer_to

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable


async def _answer(connection: ServerConnection) -> None:
    async for body in connection:
        await connection.send(answer_to(bytes(body)))  # type: ignore[arg-type]


def start() -> Running:
    """The asyncio server, in a thread of its own."""
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        async with serve(_answer, "127.0.0.1", 0, compression=None, max_size=2**21) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            stop = asyncio.Event()
            started.set_result((f"127.0.0.1:{port}", asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    address, loop, stop = started.result()
    return Running(address, lambda: (loop.call_soon_threadsafe(stop.set), thread.join(5)))


def connect(stack: contextlib.ExitStack, address: str) -> Callable[[bytes], bytes]:
    """The blocking client."""
    socket = stack.enter_context(open_websocket(f"ws://{address}", compression=None, max_size=2**21))

    def ask(body: bytes) -> bytes:
        socket.send(body)
        return socket.recv(decode=False)

    return ask


SYSTEMS = [System("websockets", start, connect)]
