"""Remote and its connection, with a stand-in for the head: deadlines, reconnection under other calls, bounds."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.device.answers import Heads
from compoff.device.connecting import connect, connect_async
from compoff.edge.server import serve
from compoff.errors import ConnectionLost, ConnectTimeout, LocalProtocolError, ReadTimeout, RemoteProtocolError
from compoff.wire.tensors import pack
from tests.device.stand_in import HELD, StandIn, Tail, after
from tests.edge.peers import Clock, eventually

if TYPE_CHECKING:
    from compoff.coding import Payload


def test_numpy_comes_back_and_can_be_written_to() -> None:
    with serve(Tail()) as server, connect(StandIn(), server.address) as remote:  # type: ignore[arg-type]
        answer = remote(after(0))
        answer += 1
        assert answer.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with serve(Tail()) as server:
        remote = connect(StandIn(), server.address)  # type: ignore[arg-type]
        with remote, pytest.raises(LocalProtocolError, match="finite number above 0"):
            remote(after(0), timeout=timeout)


def test_where_the_head_takes_all_the_time_nothing_is_sent() -> None:
    with serve(Tail()) as server, connect(StandIn(0.1), server.address) as remote:  # type: ignore[arg-type]
        with pytest.raises(ReadTimeout, match="before anything was sent"):
            remote(after(0), timeout=0.05)
        client = remote._link.current
        assert client is not None
        assert not client._protocol._expected


def test_an_async_call_ends_by_its_deadline_whatever_the_head_does() -> None:
    gate = threading.Event()

    class Held(StandIn):
        def __call__(self, word: np.ndarray[Any, Any], quality: int | None = None) -> Payload:
            gate.wait(60)
            return super().__call__(word, quality)

    async def main(address: str) -> float:
        async with await connect_async(Held(), address) as remote:  # type: ignore[arg-type]
            begin = time.monotonic()
            with pytest.raises(ReadTimeout, match="before anything was sent"):
                await remote(after(0), timeout=0.05)
            gate.set()
            return time.monotonic() - begin

    with serve(Tail()) as server:
        assert asyncio.run(main(server.address)) < 20


def test_the_heads_time_holds_no_wait_for_a_thread() -> None:
    async def main(address: str) -> float:
        loop = asyncio.get_running_loop()
        async with await connect_async(StandIn(0.05), address) as remote:  # type: ignore[arg-type]
            loop.set_default_executor(ThreadPoolExecutor(1))
            before = loop.run_in_executor(None, time.sleep, 0.4)
            await remote(after(0), timeout=30)
            await before
            assert remote.last is not None
            assert remote.last.total_seconds > 0.4
            return remote.last.head_seconds

    with serve(Tail()) as server:
        for _ in range(3):  # unless the machine was busy
            seconds = asyncio.run(main(server.address))
            assert seconds >= 0.05
            if seconds < 0.3:
                return
    pytest.fail("the wait counts as the head's time")


def test_a_stopping_server_answers_one_thread_while_another_looks_for_its_successor() -> None:
    tail = Tail()
    with serve(tail) as server, connect(StandIn(), server.address) as remote, ThreadPoolExecutor(2) as pool:  # type: ignore[arg-type]
        slow = pool.submit(remote, HELD, timeout=30)
        eventually(lambda: server.stats().pending == 1)
        stopping = pool.submit(server.close)
        eventually(lambda: all(one._drain_end is not None for one in server._service.peers))
        with serve(Tail(), server.address):
            assert remote(after(0), timeout=30).tolist() == [[0, 1, 2]]
            assert not slow.done(), "this one still has its answer to come, over the old connection"
            tail.gate.set()
            assert slow.result(30).tolist() == [[0, 1, 2]]
            assert not remote._link._retired, "the last call on it closed it"
        stopping.result(30)


def test_a_connection_that_the_server_ended_while_idle_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with serve(Tail(), idle_timeout=300) as server, connect(StandIn(), server.address, heartbeat=30) as remote:  # type: ignore[arg-type]
        for _ in range(3):
            assert remote(after(0)).tolist() == [[0, 1, 2]]
            assert remote.last is not None
            assert not remote.last.retried, "a device that sleeps much would soon have no retries left"
            [idle] = server._service.peers
            clock.advance(server, 301)
            eventually(lambda idle=idle: idle not in server._service.peers)
            time.sleep(0.1)  # after so long a quiet a call first reads what came


def test_a_window_full_of_late_answers_does_not_stop_the_calls_for_good() -> None:
    tail = Tail()
    with serve(tail, window=2, workers=4) as server, connect(StandIn(), server.address) as remote:  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(ReadTimeout):
                remote(HELD, timeout=0.05)
        assert remote(after(0)).tolist() == [[0, 1, 2]]
        tail.gate.set()


def test_a_call_does_not_wait_longer_than_its_own_deadline_for_another_one_that_connects() -> None:
    server = serve(Tail())
    host, port = server.address.split(":")
    with connect(StandIn(), server.address) as remote:  # type: ignore[arg-type]
        server.close()
        with socket.create_server((host, int(port))), ThreadPoolExecutor(1) as pool:
            patient = pool.submit(remote, after(0), timeout=60)
            eventually(lambda: remote._link._wanted)
            begin = time.monotonic()
            with pytest.raises(ConnectTimeout):
                remote(after(0), timeout=0.1)
            assert time.monotonic() - begin < 20
            remote.close()
            with pytest.raises((ConnectTimeout, ConnectionLost)):
                patient.result(30)


def test_what_connects_after_the_end_is_closed() -> None:
    with serve(Tail()) as server, connect(StandIn(), server.address) as remote:  # type: ignore[arg-type]
        link = remote._link
        opened = link._open
        entered, go, fresh = threading.Event(), threading.Event(), []

        def slowly(timeout: float) -> Any:
            entered.set()
            go.wait(30)
            fresh.append(opened(timeout))
            return fresh[0]

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(link, "_open", slowly)
            assert link.current is not None
            link.current.close()
            call = pool.submit(remote, after(0))
            assert entered.wait(30)
            remote.close()
            go.set()
            with pytest.raises(ConnectionLost, match="was closed while the call was under way"):
                call.result(30)
        eventually(lambda: bool(fresh) and fresh[0].closed)


def test_a_reply_longer_than_the_export_can_make_is_not_even_read() -> None:
    longest = Heads(StandIn()).max_reply_bytes  # type: ignore[arg-type]
    assert len(pack([np.zeros((4, 3), np.float32)])) <= longest < 100

    class Long(Tail):
        def answer(self, payload: bytes) -> bytes:
            return bytes(longest + 1)

    with serve(Long()) as server:
        remote = connect(StandIn(), server.address)  # type: ignore[arg-type]
        with remote, pytest.raises(RemoteProtocolError, match="at most"):
            remote(after(0))
