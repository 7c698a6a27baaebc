"""A million requests from 64 clients: every answer belongs to its request, and no memory is left behind.

Sizes, deadlines and cancellations are random. Three tails answer with what was sent, backwards: one at once, one
slowly, one in batches; so every way through the server is taken. Writes ``benchmarks/results/soak.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.processes import server_process
from benchmarks.record import record
from compoff.edge.server import Server, serve
from compoff.errors import ReadTimeout, ServerBusy
from compoff.manifest import TensorSpec
from compoff.wire.async_client import AsyncClient, open_async_client
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_PAYLOAD_BYTES = 2**14
AT_ONCE = 4  # requests of one client in flight
TINY = 0.04  # share of requests whose deadline is likely to pass
CANCELED = 0.04  # share of requests that are given up
SLOW_SECONDS = 0.001


class Backwards:
    """Answers with the payload backwards, at once or slowly."""

    max_payload_bytes = MAX_PAYLOAD_BYTES

    def __init__(self, number: int, seconds: float) -> None:
        """Take an artifact id from the number."""
        self.artifact_id = bytes([number]) * 32
        self._seconds = seconds

    def answer(self, payload: bytes) -> bytes:
        """The payload backwards."""
        if self._seconds:
            time.sleep(self._seconds)
        return payload[::-1]


class BackwardsInBatches(Backwards):
    """The same for several payloads in one run."""

    outputs = (TensorSpec((), "uint8"),)
    max_batch = 2**20

    def decode(self, payload: bytes) -> np.ndarray:
        """The payload as an array."""
        return np.frombuffer(payload, np.uint8)

    def run(self, decoded: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Each backwards, taken apart from all in one."""
        time.sleep(self._seconds)
        ends = np.cumsum([len(part) for part in decoded])[:-1]
        return [[part[::-1]] for part in np.split(np.concatenate(decoded), ends)]


def tails() -> list[Backwards]:
    """The three tails; a client's routes count in this order."""
    return [Backwards(0, 0.0), Backwards(1, SLOW_SECONDS), BackwardsInBatches(2, SLOW_SECONDS)]


def start_server() -> Server:
    """Serve the three tails."""
    return serve(tails(), workers=2)


class Soak:
    """Requests of some clients, and what became of them.

    Args:
        address: The server's.
        requests: How many in all.
        clients: From how many connections.
        seed: Of every random choice.
        every: Called at each tenth of the way with the number done.
    """

    def __init__(self, address: str, requests: int, clients: int, seed: int, every: Callable[[int], None]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._requests = requests
        self._clients = clients
        self._rng = random.Random(seed)
        self._every = every
        self._begun = 0

    async def run(self) -> None:
        """Make all requests."""
        ids = [tail.artifact_id for tail in tails()]
        opened = [await open_async_client(self._address, ids) for _ in range(self._clients)]
        await asyncio.gather(*(self._ask_on(client) for client in opened for _ in range(AT_ONCE)))
        for client in opened:
            await client.close()

    async def _ask_on(self, client: AsyncClient) -> None:
        while self._begun < self._requests:
            self._begun += 1
            await self._ask(client)
            done = self.outcomes.total()
            if done % max(1, self._requests // 10) == 0:
                self._every(done)

    async def _ask(self, client: AsyncClient) -> None:
        rng = self._rng
        body = rng.randbytes(1 + min(int(rng.lognormvariate(5, 1.5)), MAX_PAYLOAD_BYTES - 1))
        route = rng.choices((0, 1, 2), (0.9, 0.02, 0.08))[0]
        timeout = rng.uniform(0.0005, 0.02) if rng.random() < TINY else 60.0
        request = client.request(body, route=route, timeout=timeout)
        try:
            if rng.random() < CANCELED:
                answer = await asyncio.wait_for(request, rng.uniform(0.0, 0.01))
            else:
                answer = await request
        except ReadTimeout:
            self.outcomes["late"] += 1
        except asyncio.TimeoutError:
            self.outcomes["canceled"] += 1
        except ServerBusy:
            self.outcomes["busy"] += 1
        else:
            found = unpack(answer)[0].tobytes() if route == 2 else answer
            self.outcomes["right" if found == body[::-1] else "wrong"] += 1


def memory(pid: str = "self") -> int:
    """Resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Make the requests, watch the memory of both ends, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    edge: list[int] = []
    device: list[int] = []
    with server_process(start_server) as server:

        def look(done: int) -> None:
            edge.append(server.usage().memory_bytes)
            device.append(memory())
            print(f"{done:,} requests: server {edge[-1] >> 20} MiB, clients {device[-1] >> 20} MiB", flush=True)

        soak = Soak(server.address, options.requests, options.clients, 0, look)
        start = time.perf_counter()
        asyncio.run(soak.run())
        seconds = time.perf_counter() - start
        stats = server.usage().stats
    row: dict[str, Any] = {
        "requests": options.requests,
        "clients": options.clients,
        **{name: soak.outcomes[name] for name in ("right", "wrong", "late", "canceled", "busy")},
        "server_memory_mib": [round(size / 2**20, 1) for size in edge],
        "server_memory_growth": round(max(edge[2:]) / edge[1] - 1, 4),
        "client_memory_growth": round(max(device[2:]) / device[1] - 1, 4),
        "left_pending": stats.pending,
        "left_held_bytes": stats.held_bytes,
        "requests_per_second": round(options.requests / seconds),
    }
    print(row)
    command = f"python -m benchmarks.soak --requests {options.requests} --clients {options.clients}"
    print(f"wrote {record('soak', [row], seed=0, command=command).name}")


if __name__ == "__main__":
    main()
