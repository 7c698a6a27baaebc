"""Many devices on one server process: requests a second, and what batches do for a tail that gains from them.

First 64 connections with small requests to an empty tail, plain and with mutual TLS. Then the tail of a ResNet-18 from
a real export, with and without batches, for one device and for 32. Each pair takes turns. Writes
``benchmarks/results/throughput.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import compoff
from benchmarks.loopback import EmptyTail, tls_of
from benchmarks.networks import resnet18
from benchmarks.processes import closed_loop, latency, server_process
from benchmarks.record import record
from compoff.edge.server import Server, serve
from compoff.operations.certificates import Authority
from compoff.wire.async_client import AsyncClient, open_async_client

if TYPE_CHECKING:
    from compoff.wire.tls import TLS

CONNECTIONS = 64
DEVICES = 32
REPLY_BYTES = 40
REQUEST_BYTES = 250


def serve_empty(tls: TLS | None) -> Server:
    """An empty tail."""
    return serve(EmptyTail(REPLY_BYTES), tls=tls)


def serve_tail(folder: Path, max_batch: int) -> Server:
    """A tail from its folder, on one thread."""
    torch.set_num_threads(1)
    return serve(compoff.Tail.load(folder), max_batch=max_batch)


async def load(
    address: str, artifact_id: bytes, body: bytes, clients: int, seconds: float, tls: TLS | None = None
) -> list[float]:
    """Seconds of each request of some clients that ask one at a time, each on a connection of its own."""
    context = tls.client_context() if tls is not None else None
    opened: list[AsyncClient] = [await open_async_client(address, [artifact_id], tls=context) for _ in range(clients)]
    await closed_loop([lambda client=client: client.request(body) for client in opened], 0.3)
    times = await closed_loop([lambda client=client: client.request(body) for client in opened], seconds)
    for client in opened:
        await client.close()
    return times


def small_requests(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of small requests to an empty tail."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        authority.issue_server("edge", ["127.0.0.1"])
        authority.issue_device("device")
        ends = {"plain": (None, None), "mutual TLS": (tls_of(folder, "edge"), tls_of(folder, "device"))}
        found: dict[str, list[tuple[list[float], float]]] = {security: [] for security in ends}
        for _ in range(rounds):
            for security, (edge, device) in ends.items():
                with server_process(serve_empty, edge) as server:
                    before = server.usage().cpu_seconds
                    artifact_id = REPLY_BYTES.to_bytes(32, "big")
                    job = load(server.address, artifact_id, bytes(REQUEST_BYTES), CONNECTIONS, seconds, device)
                    times = asyncio.run(job)
                    after = server.usage()
                    found[security].append((times, (after.cpu_seconds - before) / after.stats.tails[0].replies))
    return [
        {
            "tail": "empty",
            "security": security,
            "devices": CONNECTIONS,
            "max_batch": 1,
            "requests_per_second": round(sum(len(times) for times, _ in runs) / seconds / rounds),
            "server_cpu_us_per_request": round(1e6 * sum(cpu for _, cpu in runs) / rounds, 1),
            **latency([one for times, _ in runs for one in times]),
        }
        for security, runs in found.items()
    ]


def export_tail(folder: Path, size: int) -> tuple[bytes, bytes]:
    """Write the tail of a ResNet-18 from its last stage on; return the artifact's id and a payload of one sample."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = resnet18()
    if size < 64:  # as ResNets are built for small images: a stem that keeps their size
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
        net.maxpool = torch.nn.Identity()
    x = torch.randn(2, 3, size, size)
    head, tail = compoff.export(compoff.wrap(net.eval(), "layer4", example_input=x), "layer4")
    tail.save(folder)
    return tail.artifact_id, bytes(head(x[:1]))


def batches(size: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Rows with and without batches, for one device and many."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact_id, payload = export_tail(folder, size)
        found: dict[tuple[int, int], list[tuple[list[float], Any]]] = {}
        for _ in range(rounds):
            for max_batch in (1, DEVICES):
                for devices in (1, DEVICES):
                    with server_process(serve_tail, folder, max_batch) as server:
                        asyncio.run(load(server.address, artifact_id, payload, 1, 0.5))
                        before = server.usage()
                        times = asyncio.run(load(server.address, artifact_id, payload, devices, seconds))
                        run = (times, (before, server.usage()))
                        found.setdefault((max_batch, devices), []).append(run)
    return [
        {
            "tail": f"ResNet-18 from layer4, {size} × {size}",
            "security": "plain",
            "devices": devices,
            "max_batch": max_batch,
            "requests_per_second": round(sum(len(times) for times, _ in runs) / seconds / rounds, 1),
            "server_cpu_us_per_request": round(_cpu_per_request(runs)),
            "requests_per_batch": round(_requests_per_batch(runs), 1),
            **latency([one for times, _ in runs for one in times]),
        }
        for (max_batch, devices), runs in found.items()
    ]


def _cpu_per_request(runs: list[tuple[list[float], Any]]) -> float:
    seconds = sum(after.cpu_seconds - before.cpu_seconds for _, (before, after) in runs)
    replies = sum(after.stats.tails[0].replies - before.stats.tails[0].replies for _, (before, after) in runs)
    return 1e6 * seconds / replies


def _requests_per_batch(runs: list[tuple[list[float], Any]]) -> float:
    replies = number = 0
    for _, (before, after) in runs:
        first, last = before.stats.tails[0], after.stats.tails[0]
        replies += last.replies - first.replies
        number += sum(last.batch_sizes.values()) - sum(first.batch_sizes.values())
    return replies / number


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=4.0, help="of load a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row, in turns")
    options = parser.parse_args()
    rows = small_requests(options.seconds, options.rounds)
    for size in (32, 224):
        rows += batches(size, options.seconds, options.rounds)
    for row in rows:
        print(row)
    command = f"python -m benchmarks.throughput --seconds {options.seconds:g} --rounds {options.rounds}"
    print(f"wrote {record('throughput', rows, seed=0, command=command).name}")


if __name__ == "__main__":
    main()
