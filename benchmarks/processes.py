"""A server in a process of its own, asked for its processor time and memory, and load from many clients in this one.

Shared by the benchmarks of the wire; knows nothing of what is served or measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection

__all__ = ["Echo", "ServerProcess", "closed_loop", "latency", "server_process"]


class Echo:
    """A tail that answers with the payload."""

    def __init__(self, max_payload_bytes: int = 2**16) -> None:
        """Take payloads up to a length."""
        self.artifact_id = bytes(range(32))
        self.max_payload_bytes = max_payload_bytes

    def answer(self, payload: bytes) -> bytes:
        """The payload."""
        return payload


class Usage(NamedTuple):
    """Processor time in seconds and resident memory in bytes of a process, and whatever its server counted."""

    cpu_seconds: float
    memory_bytes: int
    stats: Any


class ServerProcess:
    """The near end of a server process."""

    def __init__(self, pipe: Connection, address: Any) -> None:
        """Take over the pipe; the address has come through it."""
        self._pipe = pipe
        self.address = address

    def usage(self) -> Usage:
        """What the process has used up to now."""
        self._pipe.send("usage")
        return Usage(*self._pipe.recv())


def _memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _serve(pipe: Connection, start: Callable[..., AbstractContextManager[Any]], arguments: tuple[Any, ...]) -> None:
    with start(*arguments) as server:
        pipe.send(server.address)
        while pipe.recv() == "usage":
            stats = getattr(server, "stats", None)
            pipe.send((time.process_time(), _memory(), stats() if stats is not None else None))


@contextlib.contextmanager
def server_process(start: Callable[..., AbstractContextManager[Any]], *arguments: Any) -> Iterator[ServerProcess]:
    """Run a server in a process of its own.

    Args:
        start: Makes the server, a context manager with an ``address``; must be importable, as must its arguments.
        *arguments: For ``start``.

    Yields:
        Its near end.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, start, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ServerProcess(ours, ours.recv())
        with contextlib.suppress(OSError):
            ours.send("stop")
        process.join(10)
    finally:
        process.kill()
        process.join()


async def closed_loop(asks: Sequence[Callable[[], Awaitable[Any]]], seconds: float) -> list[float]:
    """Have every client ask again as soon as it has its answer.

    Args:
        asks: One for each client: asks once and checks the answer.
        seconds: How long to go on.

    Returns:
        Seconds of each request, of all clients.
    """
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def client(ask: Callable[[], Awaitable[Any]]) -> None:
        while (start := time.perf_counter()) < end:
            await ask()
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(client(ask) for ask in asks))
    return times


def latency(times: Sequence[float]) -> dict[str, Any]:
    """Median and 99th percentile in milliseconds, as fields of a row."""
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50_ms": round(percentiles[49] * 1e3, 3), "p99_ms": round(percentiles[98] * 1e3, 3)}
