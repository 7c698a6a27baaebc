"""What strangers can do to a server, and how little a good client notices of it.

Each attack runs in a process of its own while a good client asks at its own pace; before it the same client asks in
quiet. The server's memory is looked at all the while. Writes ``benchmarks/results/hostile.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import ssl
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.loopback import tls_of
from benchmarks.processes import Echo, server_process
from benchmarks.record import record
from compoff.edge.server import Server, serve
from compoff.operations.certificates import Authority
from compoff.wire.client import Client, open_client
from compoff.wire.frames import Frame, FrameType, serialize
from compoff.wire.messages import Hello, Offer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from multiprocessing.synchronize import Event

    from benchmarks.processes import ServerProcess
    from compoff.wire.tls import TLS

    Attack: TypeAlias = Callable[["Target"], Awaitable[None]]

MANY = 500
CONNECTS_A_MINUTE = 10_000
BODY = bytes(200)
PAUSE = 0.002  # seconds between two requests of the good client
HELLO = serialize(Frame(FrameType.HELLO, Hello((Offer(Echo().artifact_id),)).encode()))
REQUESTS = [serialize(Frame(FrameType.REQUEST, BODY, number)) for number in range(1, 4)]
FOUR_GIB = b"\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff"  # all of a header but its first byte


class Target:
    """A server under attack: opens connections and counts them."""

    def __init__(self, address: str, stop: Event) -> None:
        """Keep where it is and when to stop."""
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.rng = random.Random(0)
        self.connections = 0
        self._stop = stop

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self._stop.is_set()

    async def send(self, data: bytes, *, linger: float = 0.0) -> None:
        """Connect, send, read what comes until the server closes or some seconds have passed, and leave."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            self.connections += 1
            try:
                writer.write(data)
                if linger:
                    await asyncio.wait_for(reader.read(), linger)
            finally:
                writer.transport.abort()

    async def again_and_again(self, make: Callable[[], bytes], *, linger: float = 1.0, at_once: int = 8) -> None:
        """Send something over connection after connection, as fast as the pace of ten thousand a minute."""

        async def one() -> None:
            while not self.over:
                await self.send(make(), linger=linger)
                await asyncio.sleep(at_once * 60 / CONNECTS_A_MINUTE)

        await asyncio.gather(*(one() for _ in range(at_once)))


def damaged(target: Target) -> bytes:
    """A genuine stream with some bytes of it changed."""
    stream = bytearray(HELLO + b"".join(REQUESTS))
    start = target.rng.choice((0, len(HELLO)))
    for _ in range(target.rng.choice((1, 4))):
        stream[target.rng.randrange(start, len(stream))] = target.rng.randrange(256)
    return bytes(stream)


async def fuzzed(target: Target) -> None:
    """Damaged streams."""
    await target.again_and_again(lambda: damaged(target))


async def lengths(target: Target) -> None:
    """Frames that announce 4 GiB, before and after HELLO."""
    await target.again_and_again(lambda: target.rng.choice((b"\x01" + FOUR_GIB, HELLO + b"\x03" + FOUR_GIB)))


async def http(target: Target) -> None:
    """Web browsers."""
    await target.again_and_again(lambda: b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n")


async def tls_garbage(target: Target) -> None:
    """TLS greetings that go on as noise."""
    await target.again_and_again(lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + target.rng.randbytes(600))


async def replayed(target: Target) -> None:
    """Genuine frames twice, and in another order."""

    def make() -> bytes:
        frames = [HELLO, *REQUESTS] * 2
        target.rng.shuffle(frames)
        return target.rng.choice((HELLO + REQUESTS[0] * 50, b"".join(frames), HELLO + HELLO))

    await target.again_and_again(make)


async def connects(target: Target) -> None:
    """Connections that are left at once."""
    await target.again_and_again(lambda: b"", linger=0.0)


async def slow(target: Target) -> None:
    """Five hundred clients that send a long message a byte at a time, and come again when they are thrown out."""

    async def one() -> None:
        while not target.over:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(target.host, target.port)
                target.connections += 1
                writer.write(HELLO + serialize(Frame(FrameType.REQUEST, bytes(2**16), 1))[:-2000])
                while not target.over and not writer.is_closing():
                    await asyncio.sleep(1.0)
                    writer.write(b"\x00")
                    await writer.drain()
                writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(MANY)))


async def half_shaken(target: Target) -> None:
    """Five hundred clients that begin a TLS handshake and fall silent, and come again when they are thrown out."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="edge").do_handshake()
    greeting = outgoing.read()

    async def one() -> None:
        while not target.over:
            await target.send(greeting, linger=2.0)
            await asyncio.sleep(MANY * 60 / CONNECTS_A_MINUTE)

    await asyncio.gather(*(one() for _ in range(MANY)))


ATTACKS: dict[str, tuple[Attack, bool]] = {
    "fuzzed frames": (fuzzed, False),
    "lengths of 4 GiB": (lengths, False),
    "slow-loris × 500": (slow, False),
    "HTTP": (http, False),
    "TLS garbage on plain TCP": (tls_garbage, False),
    "replayed, out of order": (replayed, False),
    "10,000 connects a minute": (connects, False),
    "TLS garbage on TLS": (tls_garbage, True),
    "10,000 connects a minute on TLS": (connects, True),
    "TLS handshakes left half-way × 500": (half_shaken, True),
}


def attack(name: str, address: str, ready: Event, stop: Event, count: Any) -> None:
    """Run one attack until told to stop, in a process of its own.

    In earnest it comes from other machines: here it gets what processor time the server and the good client leave.
    """
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    target = Target(address, stop)

    async def run() -> None:
        ready.set()
        await ATTACKS[name][0](target)

    asyncio.run(run())
    count.value = target.connections


def serve_echo(tls: TLS | None) -> Server:
    """The server under attack, with the limits that everybody gets."""
    return serve(Echo(2**17), tls=tls)


def ask(client: Client, server: ServerProcess, seconds: float) -> tuple[list[float], int]:
    """Seconds of each request of the good client, and the server's largest memory meanwhile in bytes."""
    times: list[float] = []
    memory = 0
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        if client.request(BODY, timeout=5.0) != BODY:
            raise RuntimeError("a good client got another's answer")
        times.append(time.perf_counter() - start)
        if len(times) % 50 == 0:
            memory = max(memory, server.usage().memory_bytes)
        time.sleep(PAUSE)
    return times, memory


def p99(times: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(times, n=100, method="inclusive")[98]


def measure(
    name: str, server: ServerProcess, context: ssl.SSLContext | None, seconds: float, rounds: int
) -> dict[str, Any]:
    """One row: a good client in quiet and under attack, in turns."""
    quiet: list[float] = []
    under: list[float] = []
    memory = connections = 0
    with open_client(server.address, [Echo().artifact_id], tls=context) as client:
        ask(client, server, 0.5)
        before = server.usage().memory_bytes
        for _ in range(rounds):
            quiet += ask(client, server, seconds)[0]
            with attacked(name, server.address) as count:
                times, most = ask(client, server, seconds)
            under += times
            memory = max(memory, most)
            connections += count.value
    return {
        "attack": name,
        "connections": connections,
        "good_requests": len(under),
        "quiet_p50_ms": round(statistics.median(quiet) * 1e3, 3),
        "quiet_p99_ms": round(p99(quiet) * 1e3, 3),
        "attacked_p50_ms": round(statistics.median(under) * 1e3, 3),
        "attacked_p99_ms": round(p99(under) * 1e3, 3),
        "p99_ratio": round(p99(under) / p99(quiet), 2),
        "memory_growth_mib": round((memory - before) / 2**20, 1),
    }


@contextlib.contextmanager
def attacked(name: str, address: str) -> Iterator[Any]:
    """Run an attack meanwhile; yields where the number of its connections will be."""
    spawn = multiprocessing.get_context("spawn")
    ready, stop, count = spawn.Event(), spawn.Event(), spawn.Value("q", 0)
    process = spawn.Process(target=attack, args=(name, address, ready, stop, count), daemon=True)
    process.start()
    ready.wait(30)
    yield count
    stop.set()
    process.join(15)
    process.kill()


def main() -> None:
    """Attack, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0, help="of quiet and of each attack, a round")
    parser.add_argument("--rounds", type=int, default=3, help="of quiet and attack, in turns")
    parser.add_argument("--only", choices=ATTACKS, nargs="+", help="some attacks, to look at; nothing is written then")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(folder)
        authority.issue_server("edge", ["127.0.0.1"])
        authority.issue_device("device")
        edge, device = tls_of(Path(folder), "edge"), tls_of(Path(folder), "device")
        for name in options.only or ATTACKS:
            encrypted = ATTACKS[name][1]
            with server_process(serve_echo, edge if encrypted else None) as server:
                context = device.client_context() if encrypted else None
                rows.append(measure(name, server, context, options.seconds, options.rounds))
                print(rows[-1], flush=True)
    if options.only:
        return
    command = f"python -m benchmarks.hostile --seconds {options.seconds:g} --rounds {options.rounds}"
    print(f"wrote {record('hostile', rows, seed=0, command=command).name}")


if __name__ == "__main__":
    main()
