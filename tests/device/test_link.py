"""The kept connection over real sockets: watched while quiet, replaced when it gives no sign, never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.device.connecting import connect, connect_async
from compoff.edge.server import serve
from compoff.errors import AuthenticationError, ConnectionLost, LocalProtocolError, ReadTimeout, WireError
from compoff.manifest import TensorSpec
from compoff.wire import exchange
from compoff.wire.client import Client
from compoff.wire.tensors import pack
from tests.device.stand_in import HELD, StandIn, Tail, after
from tests.edge.peers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compoff.device.remote import Remote
    from compoff.edge.server import Server
    from compoff.wire.client import PendingReply


class Relay:
    """A cable between device and server that can be held: nothing passes, and nobody is told. It can be slow, too."""

    def __init__(self, target: str, bytes_per_second: float = float("inf")) -> None:
        self._rate = bytes_per_second
        host, port = target.split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.held: set[int] = set()  # numbers of the connections that nothing passes over
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def hold(self) -> None:
        self.held = set(range(1, self.connections + 1))

    def cut(self) -> None:
        for sock in tuple(self._sockets):  # not those of a connection that comes meanwhile
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # without it, who reads from it keeps it open
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                return
            self.connections += 1
            self._sockets += [near, far]
            if self._rate < 1e9:
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(self.connections, source, sink), daemon=True).start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536 if self._rate > 1e9 else 2048):
                if number not in self.held:
                    sink.sendall(data)
                time.sleep(len(data) / self._rate)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._listener.close()
        self._thread.join(30)
        self.cut()


class Large(Tail):
    """Takes long payloads, and makes long answers."""

    max_payload_bytes = 10**6

    def answer(self, payload: bytes) -> bytes:
        return pack([np.zeros((1, 3 if len(payload) > 1000 else 40_000), np.float32)])


def head_of(numbers: int) -> StandIn:
    head = StandIn()
    head.manifest = replace(head.manifest, outputs=(TensorSpec((numbers,), "float32"),))
    return head


def answered(way: str, address: str, numbers: int, word: Any, heartbeat: float) -> Any:
    """What comes back of a word, by either kind of remote."""
    head: Any = head_of(numbers)
    if way == "blocking":
        with connect(head, address, heartbeat=heartbeat) as remote:
            return remote(word, timeout=60)

    async def ask() -> Any:
        async with await connect_async(head, address, heartbeat=heartbeat) as remote:
            return await remote(word, timeout=60)

    return asyncio.run(ask())


@pytest.mark.parametrize("way", ["blocking", "asyncio"])
@pytest.mark.parametrize("size", [160_000, 10], ids=["a long request", "a long answer"])
def test_a_message_that_takes_many_heartbeats_arrives_over_the_one_connection(size: int, way: str) -> None:
    word, numbers = np.zeros(size, np.uint8), 3 if size > 1000 else 40_000
    with serve(Large(), message_timeout=60) as server:
        for slower in (1, 1, 3, 3):  # where the machine stands still for a heartbeat, again, and then with longer ones
            relay = Relay(server.address, 150_000 / slower)
            try:
                answer = answered(way, relay.address, numbers, word, 0.25 * slower)
            except ConnectionLost:
                continue
            finally:
                relay.close()
            assert np.asarray(answer).shape == (1, numbers)
            if relay.connections == 1:
                return
    pytest.fail("each was sent over several connections")


@pytest.fixture
def relay() -> Iterator[Relay]:
    tail = Tail()
    with serve(tail, workers=4) as server:
        relay = Relay(server.address)
        yield relay
        tail.gate.set()
        relay.close()


def dial(address: str, **options: object) -> Remote:
    return connect(StandIn(), address, **{"heartbeat": 0.1, "timeout": 60.0, **options})  # type: ignore[arg-type]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of the server is waited for, however late this machine is."""
    ping = Client.ping
    monkeypatch.setattr(Client, "ping", lambda client, *, timeout: ping(client, timeout=30.0))


def be_patient(remote: Remote) -> None:
    """As `patient`, from the next connection on."""
    link = remote._link
    opened = link._open

    def open_(seconds: float) -> Client:
        link._heartbeat = 30.0
        return opened(seconds)

    link._open = open_


@pytest.mark.usefixtures("patient")
def test_a_quiet_connection_is_watched_and_its_round_trip_known(relay: Relay) -> None:
    with dial(relay.address) as remote:
        eventually(lambda: remote.stats.round_trip_seconds is not None)
        assert 0 < (remote.stats.round_trip_seconds or 0) < 30
        assert remote.stats.connections == 1


def test_a_busy_connection_is_not_pinged(relay: Relay) -> None:
    with dial(relay.address) as remote:
        client = remote._link.current
        assert client is not None
        began = last = time.monotonic()
        calls = pauses = 0
        while last - began < 0.6:
            remote(after(0))
            calls += 1
            now = time.monotonic()
            pauses, last = pauses + int((now - last) / 0.05), now
        others = client._protocol.received - calls
        assert others <= 3 + calls // 20 + pauses, "WELCOME, and a ping where the machine paused for a while"


def test_a_half_open_connection_is_replaced_before_anybody_asks(relay: Relay) -> None:
    with dial(relay.address) as remote:
        be_patient(remote)
        relay.hold()
        eventually(lambda: relay.connections == 2)
        eventually(lambda: remote.stats.reachable)
        assert remote(after(0)).tolist() == [[0, 1, 2]]
        assert remote.last is not None
        assert not remote.last.retried


def test_a_connection_that_nobody_reads_any_more_keeps_no_call_waiting_for_long(relay: Relay) -> None:
    with dial(relay.address) as remote:
        client = remote._link.current
        assert client is not None
        lead = exchange._Lead()
        assert client._exchange._take(lead), "an interrupt took its thread away between two steps"
        began = time.monotonic()
        assert remote(after(0)).tolist() == [[0, 1, 2]]
        eventually(lambda: remote.stats.reachable)
        assert time.monotonic() - began < 20
    lead.over = True
    client._exchange._free()  # in place of the garbage collector, which complains


def test_a_fresh_connection_counts_before_the_old_one_is_closed(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    with dial(relay.address) as remote:
        client = remote._link.current
        assert client is not None
        closing, close = threading.Event(), client.close
        signs: list[int] = []

        def slow() -> None:
            signs.append(remote._link.breaker._signs)
            close()
            closing.set()

        monkeypatch.setattr(client, "close", slow)
        relay.hold()
        assert closing.wait(30)
        assert signs == [1]


def test_a_request_on_a_half_open_connection_is_sent_again_over_a_fresh_one(relay: Relay) -> None:
    with dial(relay.address) as remote:
        remote(after(0))
        be_patient(remote)
        client = remote._link.current
        assert client is not None
        submit = client.submit

        def hold_and_submit(*body: bytes, **options: Any) -> PendingReply:
            relay.hold()
            return submit(*body, **options)

        client.submit = hold_and_submit  # type: ignore[method-assign]
        began = time.monotonic()
        assert remote(after(0)).tolist() == [[0, 1, 2]]
        assert time.monotonic() - began < 20
        assert remote.last is not None
        assert remote.last.retried
        assert remote.last.source == "edge"
        assert "ConnectionLost" not in (remote.last.reason or "ConnectionLost")
        assert remote.stats.retried == 1


def test_a_broken_connection_costs_one_retry_and_no_error(relay: Relay) -> None:
    with dial(relay.address, heartbeat=30) as remote:
        remote(after(0))
        relay.cut()
        assert remote(after(0)).tolist() == [[0, 1, 2]]
        assert remote.stats.failed == 0


def test_a_request_is_sent_twice_at_most() -> None:
    class Fickle(Tail):
        calls = 0

        def answer(self, payload: bytes) -> bytes:
            Fickle.calls += 1
            relay.cut()
            return b""

    with serve(Fickle()) as server:
        relay = Relay(server.address)
        with dial(relay.address, heartbeat=30) as remote, pytest.raises(ConnectionLost):
            remote(after(0))
        relay.close()
    assert Fickle.calls == 2


@pytest.mark.usefixtures("patient")
def test_a_slow_answer_is_waited_for_while_the_server_gives_signs(relay: Relay) -> None:
    with dial(relay.address) as remote:
        assert remote(after(60)).tolist() == [[0, 1, 2]]
        assert relay.connections == 1


@pytest.mark.usefixtures("patient")
def test_a_late_answer_makes_the_server_prove_itself(relay: Relay) -> None:
    with dial(relay.address) as remote:
        with pytest.raises(ReadTimeout):
            remote(HELD, timeout=0.1)
        eventually(lambda: remote.stats.reachable)
        assert relay.connections == 1, "it does: no reason for another connection"
        assert remote.stats.failed == 1


def test_calls_of_a_crowd_share_one_attempt() -> None:
    server = serve(Tail())
    with dial(server.address) as remote:
        server.close()
        host, port = server.address.split(":")
        with socket.create_server((host, int(port))) as silent, ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(remote, after(0), timeout=0.5) for _ in range(8)]
            for call in calls:
                with pytest.raises(WireError):
                    call.result(30)
            silent.settimeout(0.1)
            attempts = 0
            with contextlib.suppress(TimeoutError):
                while True:
                    silent.accept()[0].close()
                    attempts += 1
        assert attempts <= 3


def test_a_server_that_comes_back_is_found_without_a_call() -> None:
    server = serve(Tail())
    with dial(server.address) as remote:
        server.close()
        eventually(lambda: not remote.stats.reachable)
        with serve(Tail(), server.address):
            eventually(lambda: remote.stats.reachable)
            assert remote(after(0)).tolist() == [[0, 1, 2]]


def test_a_wrong_token_is_an_error_at_once() -> None:
    with serve(Tail(), token="right") as server, pytest.raises(AuthenticationError):
        dial(server.address, token="wrong")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"heartbeat": 0}, "finite number above 0"),
        ({"heartbeat": 1e-9}, "a heartbeat of 1e-09 seconds .* at least 0.001"),
        ({"token": ""}, "token of 0 bytes"),
        ({"timeout": -1}, "finite number above 0"),
    ],
)
def test_what_cannot_become_right_is_refused(arguments: dict[str, Any], words: str) -> None:
    async def twin(address: str) -> None:
        await connect_async(StandIn(), address, **arguments)  # type: ignore[arg-type]

    with serve(Tail()) as server, pytest.raises(LocalProtocolError, match=words):
        asyncio.run(twin(server.address))
    with serve(Tail()) as server, pytest.raises(LocalProtocolError, match=words):
        dial(server.address, **arguments)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "compoff-link"}


def test_no_thread_stays_behind() -> None:
    eventually(lambda: not threads())
    with serve(Tail()) as server:
        with dial(server.address) as remote:
            remote(after(0))
            assert len(threads()) == 1
        eventually(lambda: not threads())
        forgotten = dial(server.address)
        assert len(threads()) == 1
        del forgotten
        gc.collect()
        eventually(lambda: not threads())
        with pytest.raises(AuthenticationError), serve(Tail(), token="t") as other:
            dial(other.address)
        eventually(lambda: not threads())


async def alive(server: Server) -> tuple[int, int]:
    """Connections that a server has, and tasks beside this one, as soon as there are none, or after a while."""
    for _ in range(3000):
        found = server.stats().connections, len(asyncio.all_tasks()) - 1
        if found == (0, 0):
            break
        await asyncio.sleep(0.01)
    return found


@pytest.mark.parametrize("elsewhere", [False, True])
def test_no_task_stays_behind_an_async_remote(elsewhere: bool) -> None:
    async def main(server: Server) -> None:
        for _ in range(3):
            forgotten = await connect_async(StandIn(), server.address)  # type: ignore[arg-type]
            await forgotten(after(0))
            if elsewhere:  # whose thread collects it does not matter
                box = [forgotten]
                del forgotten
                await asyncio.to_thread(box.clear)
            else:
                del forgotten
        gc.collect()
        assert await alive(server) == (0, 0)

    with serve(Tail()) as server:
        asyncio.run(main(server))


def test_a_copy_holds_the_connection_when_the_original_has_gone() -> None:
    async def main(server: Server) -> None:
        original = await connect_async(StandIn(), server.address)  # type: ignore[arg-type]
        twin = copy.copy(original)
        del original
        gc.collect()
        assert (await twin(after(0))).tolist() == [[0, 1, 2]]
        del twin
        gc.collect()
        assert await alive(server) == (0, 0)

    with serve(Tail()) as server:
        original = dial(server.address)
        twin = copy.copy(original)
        del original
        gc.collect()
        assert twin(after(0)).tolist() == [[0, 1, 2]]
        del twin
        gc.collect()
        eventually(lambda: not server.stats().connections)
        original = dial(server.address)
        twin = copy.copy(original)
        original.close()
        with pytest.raises(LocalProtocolError, match="this Remote was closed"):
            twin(after(0))
        asyncio.run(main(server))


def test_it_says_once_that_the_edge_is_gone_and_once_that_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "compoff.connect")
    server = serve(Tail())
    with dial(server.address, on_failure="local", local=len) as remote:
        server.close()
        for _ in range(50):
            remote(after(0), timeout=0.5)
            time.sleep(0.01)
        be_patient(remote)
        with serve(Tail(), server.address):
            eventually(lambda: remote.stats.reachable)
            eventually(lambda: len(caplog.records) > 1)  # said just after
            assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_connection_that_ends_under_a_ping_is_closed_when_the_ping_is_over(relay: Relay) -> None:
    with dial(relay.address) as remote:
        link = remote._link
        client = link.current
        assert client is not None
        pinging, end = threading.Event(), threading.Event()
        ping = client.ping

        def slow(**timeout: float) -> float:
            pinging.set()
            end.wait(30)
            return ping(**timeout)

        client.ping = slow  # type: ignore[method-assign]
        assert pinging.wait(30)
        sign = client._exchange.start(client._protocol.send_ping, 30.0)  # what a ping has on the way
        link.report(client, ConnectionLost("the server is stopping"))
        assert client in link._retired
        client._exchange.wait(sign, time.monotonic() + 30)
        end.set()
        eventually(lambda: not link._retired and client._exchange._closed)
        assert remote(after(0)).tolist() == [[0, 1, 2]]
