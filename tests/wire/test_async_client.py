"""The asyncio client over real sockets: tasks, deadlines, cancellation, and wrong servers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from compoff.edge.server import serve
from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    CompoffError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    PayloadError,
    ReadTimeout,
    RemoteError,
    RemoteProtocolError,
    ServerBusy,
)
from compoff.wire.async_client import AsyncClient, _dial, open_async_client
from compoff.wire.async_connection import AsyncConnection
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.frames import Frame, FrameType, serialize
from compoff.wire.messages import Route, Welcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

ID = bytes(range(32))
WELCOME = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 2**24),)).encode()))


class Reverse:
    """Answers with the payload reversed, to "held" when the gate is open."""

    artifact_id = ID
    max_payload_bytes = 2**20

    def __init__(self) -> None:
        self.gate = threading.Event()

    def answer(self, payload: bytes) -> bytes:
        if payload == b"broken":
            raise PayloadError("the payload is broken")
        if payload == b"raise":
            raise ValueError("no")
        if payload == b"held":
            self.gate.wait(30)
        return payload[::-1]


def run(main: Coroutine[Any, Any, None]) -> None:
    async def guarded() -> None:
        await asyncio.wait_for(main, 60)

    asyncio.run(guarded())


async def happens(condition: Callable[[], bool]) -> None:
    """Wait until something holds, but not for ever."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def connected(tail: Reverse | None = None, **options: Any) -> AsyncIterator[AsyncClient]:
    with serve(tail or Reverse(), workers=4, **options) as server:
        async with await open_async_client(server.address, [ID]) as client:
            yield client


@contextlib.asynccontextmanager
async def scripted(greeting: bytes, hold: bool) -> AsyncIterator[str]:
    """A server that greets each connection with some bytes, then waits or hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with contextlib.suppress(OSError):
            while hold and await reader.read(65536):
                pass
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.sleep(0.05)  # for the handlers to see that the client has gone


def test_many_tasks_each_get_their_own_answer() -> None:
    async def main() -> None:
        rng = random.Random(0)
        async with connected(window=64) as client:
            bodies = [f"{number} ".encode() + rng.randbytes(rng.choice((0, 10, 50_000))) for number in range(64)]
            for _ in range(10):
                answers = await asyncio.gather(*(client.request(body) for body in bodies))
                assert answers == [body[::-1] for body in bodies]
            assert (client.window, client.max_payload_bytes(), client.closed) == (64, 2**20, False)

    run(main())


def test_answers_may_come_out_of_order() -> None:
    async def main() -> None:
        tail = Reverse()
        async with connected(tail) as client:
            done: list[bytes] = []

            async def ask(body: bytes) -> None:
                done.append(await client.request(body))

            async def let_go() -> None:
                await happens(lambda: len(done) == 2)
                tail.gate.set()

            await asyncio.gather(ask(b"held"), ask(b"x"), ask(b"y"), let_go())
            assert sorted(done[:2]) == [b"x", b"y"]
            assert done[2] == b"dleh"

    run(main())


def test_deadline_and_late_answer() -> None:
    async def main() -> None:
        tail = Reverse()
        async with connected(tail) as client:
            with pytest.raises(ReadTimeout, match=r"no answer within 0\.05 s"):
                await client.request(b"held", timeout=0.05)
            assert await client.request(b"on") == b"no"
            tail.gate.set()
            await happens(lambda: not client._connection.protocol._abandoned)
            assert await client.request(b"on") == b"no"

    run(main())


def test_a_cancelled_task_gives_its_answer_up() -> None:
    async def main() -> None:
        tail = Reverse()
        async with connected(tail, window=1) as client:
            task = asyncio.create_task(client.request(b"held"))
            await happens(lambda: bool(client._connection.waiting))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(ServerBusy, match="1 requests are unanswered, 1 of them"):
                await client.request(b"x")
            tail.gate.set()
            await happens(lambda: not client._connection.protocol._abandoned)
            assert await client.request(b"on") == b"no"

    run(main())


def test_the_server_does_not_work_for_a_cancelled_task() -> None:
    answered: list[bytes] = []

    class Counted(Reverse):
        def answer(self, payload: bytes) -> bytes:
            answered.append(payload)
            return super().answer(payload)

    async def main() -> None:
        tail = Counted()
        with serve(tail) as server:
            async with await open_async_client(server.address, [ID]) as client:
                first = asyncio.ensure_future(client.ask(b"held"))
                unwanted = [asyncio.ensure_future(client.request(b"unwanted")) for _ in range(15)]
                await happens(lambda: answered == [b"held"] and server.stats().pending == 16)
                for task in unwanted:
                    task.cancel()
                await asyncio.gather(*unwanted, return_exceptions=True)
                await client.ping(timeout=30)  # behind the others: the server knows
                await asyncio.sleep(0.02)
                tail.gate.set()
                answer = await first
                assert (answer.body, await client.request(b"next")) == (b"dleh", b"txen")
                assert 0.02 <= answer.server_seconds < 30
                await client.ping(timeout=30)
                assert client.queue_seconds < 30
                assert client.idle_timeout == 300
        assert answered == [b"held", b"next"]

    run(main())


def test_errors_come_back() -> None:
    async def main() -> None:
        async with connected() as client:
            with pytest.raises(PayloadError, match="broken"):
                await client.request(b"broken")
            with pytest.raises(RemoteError, match="ValueError: no"):
                await client.request(b"raise")
            with pytest.raises(LocalProtocolError, match="route 1"):
                await client.request(b"x", route=1)
            with pytest.raises(LocalProtocolError, match="finite number above 0"):
                await client.request(b"x", timeout=0)
            assert 0 < await client.ping(timeout=30) < 30

    run(main())


def test_close_ends_what_waits() -> None:
    async def main() -> None:
        tail = Reverse()
        async with connected(tail) as client:
            task = asyncio.create_task(client.request(b"held"))
            await happens(lambda: bool(client._connection.waiting))
            await client.close()
            with pytest.raises(ConnectionLost, match="closed on this side"):
                await task
            with pytest.raises(ConnectionLost, match="closed on this side"):
                await client.request(b"x")
            assert client.closed
            await client.close()
            tail.gate.set()

    run(main())


def test_server_stops_and_server_gone() -> None:
    async def main() -> None:
        tail = Reverse()
        with serve(tail) as server:
            client = await open_async_client(server.address, [ID])
            task = asyncio.create_task(client.request(b"held"))
            await happens(lambda: server.stats().pending == 1)
            closing = asyncio.create_task(asyncio.to_thread(server.close))
            await happens(lambda: client.closed)
            tail.gate.set()
            assert await task == b"dleh"
            await closing
            with pytest.raises(ConnectionLost):
                await client.request(b"x")
            await client.close()
            with pytest.raises(ConnectionLost, match="compoff serve"):
                await open_async_client(server.address, [ID])
        async with scripted(WELCOME, hold=False) as address:
            client = await open_async_client(address, [ID])
            with pytest.raises(ConnectionLost):
                await client.request(b"x", timeout=30)
            await client.close()

    run(main())


@pytest.mark.parametrize(
    ("ids", "token", "expected"),
    [
        ([ID], "wrong", AuthenticationError),
        ([ID], None, AuthenticationError),
        ([bytes(32)], "secret", ArtifactMismatch),
        ([bytes(3)], "secret", LocalProtocolError),
    ],
)
def test_a_refused_handshake(ids: list[bytes], token: str | None, expected: type[CompoffError]) -> None:
    async def main() -> None:
        with serve(Reverse(), token="secret") as server:
            with pytest.raises(expected):
                await open_async_client(server.address, ids, token=token)
            async with await open_async_client(server.address, [ID], token="secret") as client:
                assert await client.request(b"in") == b"ni"

    run(main())


@pytest.mark.parametrize(
    ("greeting", "hold", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, RemoteProtocolError),
        (b"\x15\x03\x03\x00\x02\x02\x0a", False, RemoteProtocolError),
        (b"", True, ConnectTimeout),
        (b"", False, ConnectionLost),
        (WELCOME[:9], True, ConnectTimeout),
        (WELCOME[:9], False, ConnectionLost),
        (WELCOME[:-1] + b"\x00", True, RemoteProtocolError),
    ],
    ids=["http", "tls", "silence", "hang-up", "half", "half-hang-up", "damaged"],
)
def test_another_service_on_the_port(greeting: bytes, hold: bool, expected: type[CompoffError]) -> None:
    async def main() -> None:
        async with scripted(greeting, hold) as address:
            start = time.monotonic()
            with pytest.raises(expected, match=address):
                await open_async_client(address, [ID], connect_timeout=0.3 if expected is ConnectTimeout else 30)
            assert time.monotonic() - start < 20

    run(main())


def test_addresses_that_lead_nowhere() -> None:
    async def main() -> None:
        with pytest.raises(LocalProtocolError, match="port 0"):
            await open_async_client("127.0.0.1:0", [ID])
        with pytest.raises(ConnectionLost, match="is unknown"):
            await open_async_client("a..b:7878", [ID])
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ConnectionLost, match=f"no connection to {address}"):
            await open_async_client(address, [ID])

    run(main())


def test_a_peer_that_does_not_read_cannot_stretch_a_deadline() -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(WELCOME)
            writer.transport.pause_reading()
            await release.wait()
            writer.transport.abort()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            client = await open_async_client(address, [ID])
            with pytest.raises(ReadTimeout):
                await client.request(bytes(2**24), timeout=0.1)
            start = time.monotonic()
            with pytest.raises(ReadTimeout):
                await client.request(b"x", timeout=0.1)
            assert time.monotonic() - start < 20
            await client.close()
            release.set()
            await asyncio.sleep(0.05)

    run(main())


def test_a_connection_that_fails_unseen_leaves_nothing_in_the_log() -> None:
    logged: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        connection = AsyncConnection(ClientProtocol([ID]), "edge:1")
        connection.fail(ConnectTimeout("too late"))
        del connection
        gc.collect()

    asyncio.run(main())
    assert logged == []


def test_an_attempt_that_is_given_up_as_it_succeeds_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async def succeed(*_: object) -> None:
            attempt.cancel()

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", succeed)
        attempt = asyncio.ensure_future(_dial([(socket.AF_INET, ("127.0.0.1", 1))], time.monotonic() + 30))
        with pytest.raises(asyncio.CancelledError):
            (await attempt).close()

    asyncio.run(main())


def test_an_attempt_that_fails_as_it_is_given_up_leaves_nothing_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []

    async def dial(*_: Any) -> socket.socket:
        with contextlib.suppress(asyncio.CancelledError):  # as Python 3.11 does where the attempt ends in that moment
            await asyncio.sleep(30)
        raise ConnectionRefusedError

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        attempt = asyncio.ensure_future(open_async_client("127.0.0.1:7878", [ID]))
        while not dialed.called:
            await asyncio.sleep(0.001)
        attempt.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionLost):
            await attempt
        del attempt
        gc.collect()

    dialed = Mock(side_effect=dial)
    monkeypatch.setattr("compoff.wire.async_client._dial", dialed)
    asyncio.run(main())
    assert logged == []


def test_a_name_server_that_says_nothing_stretches_neither_the_deadline_nor_the_end_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(30) and [])

    async def main() -> None:
        with pytest.raises(ConnectTimeout):
            await open_async_client("edge:7878", [ID], connect_timeout=0.1)

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 20
    release.set()


def test_the_second_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Reverse()) as server, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        right = ("127.0.0.1", int(server.address.rsplit(":", 1)[1]))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", target) for target in (unused.getsockname(), right)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)

        async def main() -> bytes:
            async with await open_async_client("edge:7878", [ID], connect_timeout=30) as client:
                return await client.request(b"abc", timeout=30)

        assert asyncio.run(main()) == b"cba"
