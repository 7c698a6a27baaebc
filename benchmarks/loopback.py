"""What the wire itself costs: one request at a time on loopback to an empty tail in a second process.

It measures the round trip of the blocking and the asyncio client, plain and with mutual TLS 1.3, beside a bare socket
that sends the same bytes to an asyncio server that does nothing with them. All take turns, a few hundred requests each,
so that a noisy moment hits every row. It writes ``benchmarks/results/loopback.json`` and knows nothing of models.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.record import record
from compoff.edge.server import serve
from compoff.operations.certificates import Authority
from compoff.wire.async_client import AsyncClient, open_async_client
from compoff.wire.client import open_client
from compoff.wire.frames import OVERHEAD_BYTES
from compoff.wire.receiver import Receiver, new_buffer
from compoff.wire.tls import TLS

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    Ask: TypeAlias = Callable[[int], list[float]]

SIZES = ((250, 40), (250, 4096), (6144, 4096), (65536, 65536))  # bytes up, bytes down
WARM_UP = 500
ROUND = 250  # requests before the next client's turn


class EmptyTail:
    """Answers at once with as many bytes as it was made for."""

    max_payload_bytes = 2**20

    def __init__(self, reply_bytes: int) -> None:
        """Hold the reply ready; artifact ids tell the tails apart."""
        self.artifact_id = reply_bytes.to_bytes(32, "big")
        self._reply = bytes(reply_bytes)

    def answer(self, payload: bytes) -> bytes:
        """The reply, whatever was sent."""
        return self._reply


class Bare(Receiver):
    """Answers as soon as as many bytes are there as the first four say, with as many as the next four say."""

    def __init__(self) -> None:
        """Start with nothing received."""
        super().__init__(new_buffer(2**18))
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def receive(self, data: bytes) -> None:
        """Answer a message that is complete."""
        self._data = self._data + data if self._data else data
        up, down = int.from_bytes(self._data[:4], "big"), int.from_bytes(self._data[4:8], "big")
        if len(self._data) >= up:
            self._data = b""
            self._transport.write(bytes(down))  # type: ignore[attr-defined]


def tls_of(folder: Path, name: str) -> TLS:
    """The certificates of one end, each checked by the other."""
    return TLS(certificate=folder / f"{name}.pem", key=folder / f"{name}.key", ca=folder / "ca.pem")


def run_server(pipe: Connection, folder: Path) -> None:
    """Serve an empty tail for each reply size, plain and with TLS, and the bare server, until the pipe says stop."""
    tails = [EmptyTail(down) for down in sorted({down for _, down in SIZES})]

    async def bare() -> None:
        server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[:2])
        await asyncio.to_thread(pipe.recv)
        server.close()

    with serve(tails) as plain, serve(tails, tls=tls_of(folder, "edge")) as encrypted:
        pipe.send((plain.address, encrypted.address))
        asyncio.run(bare())


def ask_bare(stack: contextlib.ExitStack, target: tuple[str, int], up: int, down: int) -> Ask:
    """Requests over a socket without any protocol."""
    sock = stack.enter_context(socket.create_connection(target))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = up.to_bytes(4, "big") + down.to_bytes(4, "big") + bytes(up - 8)

    def ask(count: int) -> list[float]:
        times: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            sock.sendall(message)
            left = down
            while left:
                left -= len(sock.recv(65536))
            times.append(time.perf_counter() - start)
        return times

    return ask


def ask_blocking(stack: contextlib.ExitStack, address: str, tls: TLS | None, up: int, down: int) -> Ask:
    """Requests of the blocking client."""
    context = tls.client_context() if tls is not None else None
    client = stack.enter_context(open_client(address, [down.to_bytes(32, "big")], tls=context))
    body = bytes(up)

    def ask(count: int) -> list[float]:
        times: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            reply = client.request(body, timeout=10.0)
            times.append(time.perf_counter() - start)
            if len(reply) != down:
                raise RuntimeError(f"a reply of {len(reply)} bytes came; expected {down}")
        return times

    return ask


def ask_asyncio(runner: asyncio.Runner, address: str, tls: TLS | None, up: int, down: int) -> Ask:
    """Requests of the asyncio client."""
    context = tls.client_context() if tls is not None else None
    client: AsyncClient = runner.run(open_async_client(address, [down.to_bytes(32, "big")], tls=context))
    body = bytes(up)

    async def requests(count: int) -> list[float]:
        times: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            await client.request(body, timeout=10.0)
            times.append(time.perf_counter() - start)
        return times

    return lambda count: runner.run(requests(count))


def summarize(client: str, security: str, up: int, down: int, times: list[float]) -> dict[str, Any]:
    """One row of the results; times in microseconds."""
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "client": client,
        "security": security,
        "bytes_up": up,
        "bytes_down": down,
        "overhead_bytes": 0 if client == "bare socket" else OVERHEAD_BYTES,
        "requests": len(times),
        "p50_us": round(percentiles[49] * 1e6, 1),
        "p99_us": round(percentiles[98] * 1e6, 1),
        "min_us": round(min(times) * 1e6, 1),
    }


def measure(up: int, down: int, requests: int, addresses: tuple[str, str], bare: Any, tls: TLS) -> list[dict[str, Any]]:
    """The rows of one size, its clients taking turns."""
    with contextlib.ExitStack() as stack, asyncio.Runner() as runner:
        plain, encrypted = addresses
        asks: dict[tuple[str, str], Ask] = {
            ("bare socket", "plain"): ask_bare(stack, bare, up, down),
            ("blocking", "plain"): ask_blocking(stack, plain, None, up, down),
            ("asyncio", "plain"): ask_asyncio(runner, plain, None, up, down),
            ("blocking", "mutual TLS"): ask_blocking(stack, encrypted, tls, up, down),
            ("asyncio", "mutual TLS"): ask_asyncio(runner, encrypted, tls, up, down),
        }
        times: dict[tuple[str, str], list[float]] = {key: [] for key in asks}
        for ask in asks.values():
            ask(WARM_UP)
        while len(times["blocking", "plain"]) < requests:
            for key, ask in asks.items():
                times[key] += ask(min(ROUND, requests))
    return [summarize(*key, up, down, found) for key, found in times.items()]


def main() -> None:
    """Start the server process, measure every size with all clients, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=5000, help="requests a row, one at a time")
    requests: int = parser.parse_args().requests
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        authority.issue_server("edge", ["127.0.0.1"])
        authority.issue_device("device")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_server, args=(theirs, folder), daemon=True)
        process.start()
        addresses, bare = ours.recv(), ours.recv()
        rows: list[dict[str, Any]] = []
        for up, down in SIZES:
            rows += measure(up, down, requests, addresses, bare, tls_of(folder, "device"))
            for row in rows[-5:]:
                print(row)
        ours.send("stop")
        process.join(10)
    path = record("loopback", rows, seed=0, command=f"python -m benchmarks.loopback --requests {requests}")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
