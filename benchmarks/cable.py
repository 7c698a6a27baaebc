"""A cable between device and server that somebody trips over: a TCP proxy whose faults are set while it runs.

Everything happens in one event loop in a thread of its own; the methods may be called from any thread. It knows bytes
and connections, no frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from typing_extensions import Self

__all__ = ["Cable"]

_Result = TypeVar("_Result")


class _Wire:
    """One connection through the cable."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writers = [writer]
        self.dead = False  # half-open: what comes is swallowed, and nobody is told

    def abort(self) -> None:
        for writer in self.writers:
            # A reset, not an orderly end.
            writer.transport.abort()


class Cable:
    """A proxy in front of one server.

    Args:
        target: ``"host:port"`` of the server.
        seed: Of everything random in it.
        host: Address to listen on.
        port: Port to listen on; 0 picks one.
    """

    def __init__(self, target: str, *, seed: int = 0, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen."""
        self.target = target
        self.delay = 0.0  # seconds that each piece takes
        self.latency = 0.0  # seconds that each piece is on its way, alone in its direction
        self.rate = float("inf")  # bytes a second in each direction
        self.split = False  # whether pieces of a few bytes travel one by one
        self.shuffle = 0.0  # seconds, at random, that a new connection takes, so that connections overtake each other
        self._random = random.Random(seed)
        self._flip = False
        self._wires: set[_Wire] = set()
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cable", daemon=True)
        self._thread.start()
        self._server = self._run(self._listen(host, port))
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    @property
    def address(self) -> str:
        """Where to connect."""
        return f"{self.host}:{self.port}"

    def cut(self) -> None:
        """Reset every connection."""
        self._call(lambda: [wire.abort() for wire in tuple(self._wires)])

    def hold(self) -> None:
        """Let nothing pass, of old connections and of new ones, until ``release``."""
        self._call(self._passing.clear)

    def release(self) -> None:
        """Let everything pass that was held."""
        self._call(self._passing.set)

    def swallow(self) -> None:
        """Make every connection half-open for good; new ones are whole."""
        self._call(lambda: [setattr(wire, "dead", True) for wire in self._wires])

    def flip(self) -> None:
        """Flip one bit of whatever passes next, in either direction."""
        self._flip = True

    def move(self, host: str) -> None:
        """Leave the old address, with its connections, and listen on another one, at the same port."""
        self._server = self._run(self._move(host))
        self.host = host

    def close(self) -> None:
        """End everything."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        """The cable itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self, work: Coroutine[object, object, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _call(self, work: Callable[[], object]) -> None:
        async def call() -> None:
            work()

        self._run(call())

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._connect, host, port)

    async def _move(self, host: str) -> asyncio.Server:
        self._server.close()
        for wire in self._wires:
            wire.dead = True
        return await self._listen(host, self.port)

    async def _close(self) -> None:
        self._server.close()
        for wire in tuple(self._wires):
            wire.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(writer)
        self._wires.add(wire)
        try:
            await asyncio.sleep(self._random.random() * self.shuffle)
            host, port = self.target.rsplit(":", 1)
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            wire.writers.append(far_writer)
            await asyncio.gather(self._pump(wire, reader, far_writer), self._pump(wire, far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # whatever happened to one side, the other gets a reset
        finally:
            self._wires.discard(wire)
            wire.abort()

    async def _pump(self, wire: _Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            await self._passing.wait()
            for piece in self._pieces(data):
                if self.delay:
                    await asyncio.sleep(self.delay * self._random.random())
                if self.latency or self.rate < float("inf"):
                    await asyncio.sleep(self.latency + len(piece) / self.rate)
                if not wire.dead:
                    writer.write(piece)
                    if len(piece) < len(data):
                        await asyncio.sleep(0)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
        if not wire.dead:
            writer.close()
        else:
            await asyncio.sleep(3600)  # nobody is told

    def _pieces(self, data: bytes) -> list[bytes]:
        if self._flip:
            self._flip = False
            damaged = bytearray(data)
            damaged[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            data = bytes(damaged)
        if not self.split:
            return [data]
        pieces: list[bytes] = []
        while data:
            size = self._random.randrange(1, 8)
            pieces.append(data[:size])
            data = data[size:]
        return pieces
