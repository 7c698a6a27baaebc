"""What `compoff.connect` and `connect_async` cost beside the wire's clients: calls on loopback to an empty tail.

The head gives a payload that is ready and the tail a reply that is ready, so that what is left are the checks of a
call, its deadline and report, the retry it stands ready for, and the reply made into an array. In `AsyncRemote` the
head runs in a thread, so that an event loop stays free. All take turns, a few hundred calls each.

    chrt -f 5 python -m benchmarks.remote
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks.loopback import ROUND, WARM_UP, summarize
from benchmarks.record import record
from compoff.coding import Payload
from compoff.device.connecting import connect, connect_async
from compoff.edge.server import serve
from compoff.manifest import Manifest, TensorSpec
from compoff.wire.async_client import open_async_client
from compoff.wire.client import open_client
from compoff.wire.tensors import pack

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from benchmarks.loopback import Ask
    from compoff.device.sender import Sender

__all__ = ["main"]

SIZES = ((250, 10), (6144, 1000))  # bytes up, numbers down


@dataclass
class ReadyHead:
    """A head whose payload is there already.

    Args:
        up: Bytes of the payload.
        down: Numbers that the tail answers with.
    """

    up: int
    down: int
    split: str = "input"
    runner: None = None

    def __post_init__(self) -> None:
        """Make the payload."""
        self.artifact_id = self.down.to_bytes(32, "big")
        outputs = (TensorSpec((self.down,), "float32"),)
        owner = self.artifact_id.hex()
        self.manifest = Manifest("head", owner, "input", "Net", (), outputs, {"leaf": 0}, (), (), max_batch=1)
        self._payload = Payload(bytes(self.up), self.artifact_id, 0, 1)

    def __call__(self, *inputs: Any, quality: int | None = None, **keywords: Any) -> Payload:
        """The payload, whatever is given."""
        return self._payload

    def check(self, *inputs: Any, quality: int | None = None, **keywords: Any) -> None:
        """Takes everything."""


class ReadyTail:
    """Answers at once with as many numbers as it was made for."""

    max_payload_bytes = 2**20

    def __init__(self, down: int) -> None:
        """Hold the reply ready."""
        self.artifact_id = down.to_bytes(32, "big")
        self._reply = pack([np.zeros((1, down), np.float32)])

    def answer(self, payload: bytes) -> bytes:
        """The reply, whatever was sent."""
        return self._reply


def run_server(pipe: Connection) -> None:
    """Serve a tail for each size until the pipe says stop."""
    with serve([ReadyTail(down) for _, down in SIZES]) as server:
        pipe.send(server.address)
        pipe.recv()


def blocking(call: Callable[[], Any]) -> Ask:
    """Calls one after another."""

    def ask(count: int) -> list[float]:
        times: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times

    return ask


def awaited(runner: asyncio.Runner, call: Callable[[], Any]) -> Ask:
    """Calls one after another in an event loop."""

    async def calls(count: int) -> list[float]:
        times: list[float] = []
        for _ in range(count):
            start = time.perf_counter()
            await call()
            times.append(time.perf_counter() - start)
        return times

    return lambda count: runner.run(calls(count))


def measure(address: str, up: int, down: int, requests: int) -> list[dict[str, Any]]:
    """The rows of one size, in turns."""
    head, x, body = cast("Sender", ReadyHead(up, down)), np.zeros(1, np.float32), bytes(up)
    offers = [head.artifact_id]
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        client = stack.enter_context(open_client(address, offers))
        remote = stack.enter_context(connect(head, address))
        async_client = runner.run(open_async_client(address, offers))
        async_remote = runner.run(connect_async(head, address))
        if remote(x).shape != (1, down):
            raise RuntimeError(f"an array of {remote(x).shape} came; expected (1, {down})")
        asks = {
            "blocking client": blocking(lambda: client.request(body, timeout=10.0)),
            "Remote": blocking(lambda: remote(x)),
            "asyncio client": awaited(runner, lambda: async_client.request(body, timeout=10.0)),
            "AsyncRemote": awaited(runner, lambda: async_remote(x)),
        }
        times: dict[str, list[float]] = {name: [] for name in asks}
        for ask in asks.values():
            ask(WARM_UP)
        while len(times["Remote"]) < requests:
            for name, ask in asks.items():
                times[name] += ask(min(ROUND, requests))
        runner.run(async_remote.close())
        runner.run(async_client.close())
    reply = len(pack([np.zeros((1, down), np.float32)]))
    return [summarize(name, "plain", up, reply, found) for name, found in times.items()]


def main() -> None:
    """Start the server process, measure each size, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000, help="calls a row, one at a time")
    requests: int = parser.parse_args().requests
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run_server, args=(theirs,), daemon=True)
    process.start()
    address = ours.recv()
    rows: list[dict[str, Any]] = []
    for up, down in SIZES:
        rows += measure(address, up, down, requests)
        for row in rows[-4:]:
            print(row)
    ours.send("stop")
    process.join(10)
    record("remote", rows, seed=0, command=f"python -m benchmarks.remote --requests {requests}")


if __name__ == "__main__":
    main()
