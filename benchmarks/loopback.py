"""What the wire itself costs: one request on loopback to an empty tail in a second process.

It measures the round trip of the blocking and the asyncio client, one request at a time, and writes
``benchmarks/results/loopback.json``. It knows nothing of models: the tail answers with bytes that it holds ready.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from typing import TYPE_CHECKING, Any

from benchmarks.record import record
from compoff.edge.server import serve
from compoff.wire.async_client import open_async_client
from compoff.wire.client import open_client

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SIZES = ((250, 40), (250, 4096), (6144, 4096), (65536, 65536))  # bytes up, bytes down
WARM_UP = 500


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


def run_server(pipe: Connection) -> None:
    """Serve an empty tail for each reply size until the pipe says stop."""
    with serve([EmptyTail(down) for down in sorted({down for _, down in SIZES})]) as server:
        pipe.send(server.address)
        pipe.recv()


def measure_blocking(address: str, up: int, down: int, requests: int) -> list[float]:
    """Seconds of each request of the blocking client."""
    body = bytes(up)
    with open_client(address, [down.to_bytes(32, "big")]) as client:
        times: list[float] = []
        for _ in range(WARM_UP + requests):
            start = time.perf_counter()
            reply = client.request(body, timeout=10.0)
            times.append(time.perf_counter() - start)
            if len(reply) != down:
                raise RuntimeError(f"a reply of {len(reply)} bytes came; expected {down}")
    return times[WARM_UP:]


async def measure_asyncio(address: str, up: int, down: int, requests: int) -> list[float]:
    """Seconds of each request of the asyncio client."""
    body = bytes(up)
    async with await open_async_client(address, [down.to_bytes(32, "big")]) as client:
        times: list[float] = []
        for _ in range(WARM_UP + requests):
            start = time.perf_counter()
            await client.request(body, timeout=10.0)
            times.append(time.perf_counter() - start)
    return times[WARM_UP:]


def summarize(client: str, up: int, down: int, times: list[float]) -> dict[str, Any]:
    """One row of the results; times in microseconds."""
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "client": client,
        "bytes_up": up,
        "bytes_down": down,
        "requests": len(times),
        "p50_us": round(percentiles[49] * 1e6, 1),
        "p99_us": round(percentiles[98] * 1e6, 1),
        "min_us": round(min(times) * 1e6, 1),
    }


def main() -> None:
    """Start the server process, measure every size with both clients, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=5000, help="requests a row, one at a time")
    requests: int = parser.parse_args().requests
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(theirs,), daemon=True)
    process.start()
    address = ours.recv()
    rows: list[dict[str, Any]] = []
    for up, down in SIZES:
        rows.append(summarize("blocking", up, down, measure_blocking(address, up, down, requests)))
        rows.append(summarize("asyncio", up, down, asyncio.run(measure_asyncio(address, up, down, requests))))
        for row in rows[-2:]:
            print(row)
    ours.send("stop")
    process.join(10)
    path = record("loopback", rows, seed=0, command=f"python -m benchmarks.loopback --requests {requests}")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
