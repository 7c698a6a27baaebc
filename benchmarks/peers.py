"""compoff's wire beside gRPC, ZeroMQ, websockets and HTTP: the same questions on loopback, one at a time, in turns.

Each server runs in a process of its own and answers at once; the clients take turns, so that a noisy moment hits all.
Writes ``benchmarks/results/peers.json``; needs the extra ``bench``.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import compoff_wire, grpc_calls, http, websocket, zeromq
from benchmarks.baselines.interface import System, question
from benchmarks.processes import server_process
from benchmarks.record import record

if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEMS: list[System] = [
    *compoff_wire.SYSTEMS,
    *zeromq.SYSTEMS,
    *websocket.SYSTEMS,
    *grpc_calls.SYSTEMS,
    *http.SYSTEMS,
]
SIZES = ((250, 40), (250, 4096), (6144, 4096))  # bytes up, bytes down
WARM_UP = 300
ROUND = 100  # questions before the next system's turn
LIBRARIES = ("grpcio", "pyzmq", "websockets", "fastapi", "uvicorn", "httpx")


def ask(client: Callable[[bytes], bytes], up: int, down: int, count: int) -> list[float]:
    """Seconds of each of some questions."""
    body = question(up, down)
    times: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        reply = client(body)
        times.append(time.perf_counter() - start)
        if len(reply) != down:
            raise RuntimeError(f"an answer of {len(reply)} bytes came; expected {down}")
    return times


def measure(up: int, down: int, requests: int) -> list[dict[str, Any]]:
    """The rows of one size."""
    with contextlib.ExitStack() as stack:
        servers = {system.name: stack.enter_context(server_process(system.serve)) for system in SYSTEMS}
        clients = {system.name: system.connect(stack, servers[system.name].address) for system in SYSTEMS}
        for client in clients.values():
            ask(client, up, down, WARM_UP)
        before = {name: server.usage().cpu_seconds for name, server in servers.items()}
        times: dict[str, list[float]] = {name: [] for name in clients}
        while len(times[SYSTEMS[0].name]) < requests:
            for name, client in clients.items():
                times[name] += ask(client, up, down, ROUND)
        cpu = {name: server.usage().cpu_seconds - before[name] for name, server in servers.items()}
    ours = statistics.median(times[SYSTEMS[0].name])
    rows: list[dict[str, Any]] = []
    for name, found in times.items():
        percentiles = statistics.quantiles(found, n=100, method="inclusive")
        rows.append(
            {
                "system": name,
                "bytes_up": up,
                "bytes_down": down,
                "requests": len(found),
                "p50_us": round(percentiles[49] * 1e6, 1),
                "p99_us": round(percentiles[98] * 1e6, 1),
                "times_compoff": round(statistics.median(found) / ours, 2),
                "server_cpu_us_per_request": round(1e6 * cpu[name] / len(found), 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure every size, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=5000, help="questions a row")
    requests: int = parser.parse_args().requests
    rows = [row for up, down in SIZES for row in measure(up, down, requests)]
    rows[0]["libraries"] = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(f"wrote {record('peers', rows, seed=0, command=f'python -m benchmarks.peers --requests {requests}').name}")


if __name__ == "__main__":
    main()
