"""Where the edge cannot answer: whose answer comes, when, and that it always says so. Blocking and asyncio alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.device.connecting import connect, connect_async
from compoff.device.fallback import reserve
from compoff.device.timing import Estimate
from compoff.edge.server import Server, serve
from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    ConnectionLost,
    ConnectTimeout,
    FeatureError,
    LocalProtocolError,
    PayloadError,
    ReadTimeout,
    ServerBusy,
)
from compoff.operations.certificates import Authority
from compoff.wire.tensors import pack
from compoff.wire.tls import TLS
from tests.device.stand_in import StandIn, Tail, after
from tests.device.test_link import Relay
from tests.edge.peers import eventually
from tests.golden_head import golden_head, golden_inputs
from tests.wire.scripted import scripted_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compoff.coding import Payload
    from compoff.device.answers import CallReport
    from compoff.device.calls import Call
    from compoff.device.statistics import RemoteStats

EDGE, LOCAL = [[0, 1, 2]], [[7, 7, 7]]


class Whole:
    """The whole model: another answer, so that a test can tell."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self, word: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls += 1
        time.sleep(self.seconds)
        return np.full((1, 3), 7)


class Shortened(StandIn):
    """A head that takes a limit, as `compoff.Head` does."""

    def __call__(self, word: np.ndarray[Any, Any], quality: int | None = None, max_bytes: int | None = None) -> Payload:
        return super().__call__(word[:max_bytes], quality)


class Blocking:
    """A remote as both kinds are tested."""

    def __init__(self, address: str, head: StandIn | None = None, **options: Any) -> None:
        self._remote = connect(head or StandIn(), address, **{"heartbeat": 0.1, **options})  # type: ignore[arg-type]

    def __call__(self, word: Any, timeout: float = 2.0, **options: Any) -> Any:
        return self._remote(word, timeout=timeout, **options).tolist()

    @property
    def last(self) -> CallReport:
        assert self._remote.last is not None
        return self._remote.last

    @property
    def stats(self) -> RemoteStats:
        return self._remote.stats

    def close(self) -> None:
        self._remote.close()


class Async(Blocking):
    """The asyncio remote, in an event loop of another thread."""

    def __init__(self, address: str, head: StandIn | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        try:
            self._remote = self._run(
                connect_async(head or StandIn(), address, **{"heartbeat": 0.1, **options})  # type: ignore[arg-type]
            )
        except BaseException:
            self._stop()
            raise

    def __call__(self, word: Any, timeout: float = 2.0, **options: Any) -> Any:
        return self._run(self._remote(word, timeout=timeout, **options)).tolist()

    def close(self) -> None:
        self._run(self._remote.close())
        self._stop()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _stop(self) -> None:
        async def end() -> None:
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=5)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(params=[Blocking, Async], ids=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Tail(), workers=4) as server:
        yield server


def unused() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_while_the_edge_answers_it_is_asked(kind: Any, server: Server, policy: str) -> None:
    whole = Whole()
    remote = kind(server.address, on_failure=policy, local=whole)
    for _ in range(5):
        assert remote(after(0)) == EDGE
        assert (remote.last.source, remote.last.reason) == ("edge", None)
    assert whole.calls == 0
    assert (remote.stats.edge, remote.stats.local) == (5, 0)
    remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_device_starts_without_an_edge_and_finds_it_later(kind: Any, policy: str) -> None:
    address = unused()
    remote = kind(address, on_failure=policy, local=Whole())
    assert remote(after(0)) == LOCAL
    assert remote.last.source == "local"
    assert "refused" in (remote.last.reason or "")
    assert (remote.last.payload_bytes, remote.last.reply_bytes) == (0, 0)
    assert not remote.stats.reachable
    with serve(Tail(), address):
        eventually(lambda: remote.stats.reachable)
        assert remote(after(0)) == EDGE
    remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge", "raise"])
@pytest.mark.parametrize("tls", [None, ssl.create_default_context()], ids=["plain", "tls"])
@pytest.mark.parametrize("way", ["reset", "end"])
def test_a_proxy_without_a_server_behind_it_keeps_no_device_from_starting(
    kind: Any, way: str, tls: ssl.SSLContext | None, policy: str
) -> None:
    def script(connection: socket.socket, parser: object) -> None:
        connection.recv(1 if way == "reset" else 10_000)  # an end with bytes that nobody read is a reset

    with scripted_server(script) as address:
        if policy == "raise":
            with pytest.raises(ConnectionLost, match=r"hung up.*TLS|reset by peer|server hung up"):
                kind(address, tls=tls)
            return
        remote = kind(address, tls=tls, on_failure=policy, local=Whole())
        assert remote(after(0)) == LOCAL
        assert not remote.stats.reachable
        remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_an_edge_that_goes_is_noticed_and_no_call_waits_for_it_again(kind: Any, policy: str) -> None:
    server = serve(Tail())
    remote = kind(server.address, on_failure=policy, local=Whole())
    assert remote(after(0)) == EDGE
    server.close()
    times = []
    for _ in range(5):
        began = time.monotonic()
        assert remote(after(0)) == LOCAL
        times.append(time.monotonic() - began)
    assert sorted(times)[2] < 0.5, "a call that waits for the edge takes a second and more"
    assert remote.stats.failed == 0
    remote.close()


def test_a_tail_that_hangs_in_a_server_that_lives_is_not_waited_for_by_every_call(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(Tail):
        def answer(self, payload: bytes) -> bytes:
            freed.wait(10)
            return super().answer(payload)

    freed = threading.Event()
    with serve(Hanging(), workers=16) as server, contextlib.ExitStack() as at_last:
        at_last.callback(freed.set)
        remote = kind(server.address, on_failure="local", local=Whole(), heartbeat=5)
        at_last.callback(remote.close)
        stall = (remote._remote._stalls if kind is Async else remote._remote._edge.stalls)[0]
        for _ in range(3):
            assert remote(after(0), timeout=0.2) == LOCAL
            eventually(lambda: remote.stats.reachable)
        assert 0.0 < stall._again < time.monotonic() + 1.0
        stall._again = time.monotonic() + 60.0
        began = time.monotonic()
        for _ in range(5):
            assert remote(after(0), timeout=20) == LOCAL
        assert time.monotonic() - began < 2, "none of them has waited"
        assert "no answer to 3 calls in a row" in (remote.last.reason or "")
        assert len(caplog.records) == 1
        stall._again = 0.0
        assert remote(after(0), timeout=0.2) == LOCAL
        assert "gave no answer within" in (remote.last.reason or "")
        eventually(lambda: remote.stats.reachable)
        freed.set()
        stall._again = 0.0
        assert [remote(after(0)) for _ in range(3)] == [EDGE] * 3
        assert len(caplog.records) == 1


@pytest.mark.parametrize("policy", ["local", "hedge"])
@pytest.mark.parametrize("how", ["raises", "refuses", "damaged", "other shape"])
def test_a_tail_that_fails_each_time_is_told_once_and_not_asked_by_every_call(
    kind: Any, caplog: pytest.LogCaptureFixture, policy: str, how: str
) -> None:
    class Failing(Tail):
        fails, asked = True, 0

        def answer(self, payload: bytes) -> bytes:
            self.asked += 1
            if not self.fails:
                return super().answer(payload)
            if how == "raises":
                raise RuntimeError("out of memory")
            if how == "refuses":
                raise PayloadError("not what this tail takes")
            return b"\0" if how == "damaged" else pack([np.zeros((1, 4), np.float32)])

    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "compoff.connect"]

    tail = Failing()
    with serve(tail) as server, contextlib.ExitStack() as at_last:
        remote = kind(server.address, on_failure=policy, local=Whole())
        at_last.callback(remote.close)
        stall = (remote._remote._stalls if kind is Async else remote._remote._edge.stalls)[0]
        for _ in range(3):
            eventually(lambda: remote(after(0)) == LOCAL and "had not answered" not in (remote.last.reason or ""))
        (warning,) = warnings()
        assert "fails the calls at 'input'" in warning
        assert remote.stats.reachable, "the link is not to blame"
        if policy == "local":
            stall._again = time.monotonic() + 60.0
            asked = tail.asked
            assert remote(after(0)) == LOCAL
            assert "no answer to 3 calls in a row" in (remote.last.reason or "")
            assert tail.asked == asked
        tail.fails, stall._again = False, 0.0
        eventually(lambda: remote(after(0)) == EDGE)
        assert stall._count == 0
        assert len(warnings()) == 1


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_an_edge_without_room_is_told_once_in_a_while_and_asked_again(
    kind: Any, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    class Full(Tail):
        full = True

        def answer(self, payload: bytes) -> bytes:
            if self.full:
                raise ServerBusy("no room")
            return super().answer(payload)

    tail = Full()
    with serve(tail) as server, contextlib.ExitStack() as at_last:
        remote = kind(server.address, on_failure=policy, local=Whole())
        at_last.callback(remote.close)
        for _ in range(4):
            eventually(lambda: remote(after(0)) == LOCAL and "no room" in (remote.last.reason or ""))
        tail.full = False
        eventually(lambda: remote(after(0)) == EDGE)
        tail.full = True
        eventually(lambda: remote(after(0)) == LOCAL and "no room" in (remote.last.reason or ""))
    (told,) = (record for record in caplog.records if record.name == "compoff.connect" and "room" in record.message)
    assert told.levelname == "WARNING"
    assert "'input'" in told.message


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_limit_is_for_the_head_and_not_for_the_whole_model(kind: Any, policy: str) -> None:
    server = serve(Tail())
    remote = kind(server.address, Shortened(), on_failure=policy, local=Whole())
    assert remote(np.zeros(9, np.uint8), max_bytes=4) == EDGE
    assert remote.last is not None
    assert remote.last.quality == 0
    assert remote.last.payload_bytes == 4
    server.close()
    assert remote(np.zeros(9, np.uint8), max_bytes=4) == LOCAL
    remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_slow_edge_leaves_the_device_enough_time(kind: Any, server: Server, policy: str) -> None:
    remote = kind(server.address, on_failure=policy, local=Whole(0.1))
    began = time.monotonic()
    assert remote(after(250), timeout=2.0) == LOCAL
    assert time.monotonic() - began < 2.0
    assert remote.last.source == "local"
    assert remote.last.local_seconds >= 0.1
    eventually(lambda: remote.stats.reachable)
    remote.close()


@pytest.mark.parametrize(
    ("times", "timeout", "expected"),
    [
        ([], 2.0, 1.0),  # nothing is known
        ([0.3] * 50, 2.0, 0.6),  # twice the best
        ([1e-6] * 50, 2.0, 0.05),  # a thread takes time to wake
        ([1e-6] * 50, 0.1, 0.01),
        ([1.5] * 50, 2.0, 1.0),  # it cannot make it anyway
    ],
)
def test_what_is_kept_for_the_device(times: list[float], timeout: float, expected: float) -> None:
    estimate = Estimate()
    for seconds in times:
        estimate.add(seconds)
    assert reserve(estimate, timeout) == pytest.approx(expected, rel=0.01)


def test_hedging_takes_the_first_and_does_not_wait_for_half_the_deadline(kind: Any, server: Server) -> None:
    remote = kind(server.address, on_failure="hedge", local=Whole(0.05))
    for _ in range(20):
        remote(after(0))
    hedged = remote.stats.hedged
    began = time.monotonic()
    assert remote(after(250), timeout=5) == LOCAL
    assert time.monotonic() - began < 2.4
    assert "had not answered" in (remote.last.reason or "")
    assert remote.last.remote_seconds > remote.last.local_seconds, "the edge was waited for all the while"
    assert remote.stats.hedged == hedged + 1
    remote.close()


def test_an_edge_that_hangs_does_not_make_hedged_calls_wait_longer_and_longer(kind: Any) -> None:
    class Hanging(Tail):
        hangs = False

        def answer(self, payload: bytes) -> bytes:
            freed.wait(10 if self.hangs else 0)
            return super().answer(payload)

    freed = threading.Event()
    tail = Hanging()
    with serve(tail, workers=16) as server, contextlib.ExitStack() as at_last:
        at_last.callback(freed.set)
        remote = kind(server.address, on_failure="hedge", local=Whole(0.03))
        at_last.callback(remote.close)
        for _ in range(20):
            remote(after(0))
        tail.hangs = True
        times = []
        for _ in range(9):
            began = time.monotonic()
            assert remote(after(0), timeout=5) == LOCAL
            times.append(time.monotonic() - began)
        assert "had not answered the calls before" in (remote.last.reason or "")
        assert sorted(times)[6] < 1.0, "without a bound it takes five seconds by then"
        freed.set()
        eventually(lambda: remote(after(0), timeout=5) == EDGE)  # it was asked all the same


def test_a_head_that_fails_as_it_is_given_up_leaves_nothing_to_asyncios_log(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def encode(call: Call, until: float) -> bytes:
        with contextlib.suppress(asyncio.CancelledError):  # as Python 3.11 does where the head ends in that moment
            await asyncio.sleep(5)
        raise call.late()

    async def main() -> list[str]:
        told: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        async with await connect_async(StandIn(), server.address, on_failure="hedge", local=Whole()) as remote:  # type: ignore[arg-type]
            monkeypatch.setattr(remote, "_encode", encode)
            assert (await remote(after(0), timeout=0.1)).tolist() == LOCAL
        gc.collect()
        return told

    assert asyncio.run(main()) == []


def test_hedging_takes_the_edge_where_that_is_the_first(kind: Any, server: Server) -> None:
    whole = Whole(2.5)
    remote = kind(server.address, on_failure="hedge", local=whole)
    for _ in range(20):
        remote(after(0))
    began = time.monotonic()
    assert remote(after(20), timeout=5) == EDGE
    assert time.monotonic() - began < 2.4
    assert whole.calls >= 1
    assert remote.last.source == "edge"
    remote.close()


def test_a_hedged_call_ends_by_its_deadline_whatever_both_do(kind: Any, server: Server) -> None:
    remote = kind(server.address, on_failure="hedge", local=Whole(2.0))
    for address_gone in (False, True):
        if address_gone:
            server.close()
            eventually(lambda: not remote.stats.reachable)
        began = time.monotonic()
        with pytest.raises(ReadTimeout):
            remote(after(250), timeout=0.2)
        assert time.monotonic() - began < 1.8
    assert remote.stats.failed == 2
    assert remote.stats.payload_bytes == 1, "the one byte that was sent counts, though nothing came back"
    remote.close()


def test_calls_that_gave_up_leave_the_device_to_those_that_wait(kind: Any) -> None:
    whole = Whole(0.1)
    remote = kind(unused(), on_failure="hedge", local=whole)

    def ask(_: int) -> bool:
        try:
            return bool(remote(after(0), timeout=0.35) == LOCAL)
        except ReadTimeout:
            return False

    with ThreadPoolExecutor(12) as pool:  # four times what the device can do in time
        answered = sum(pool.map(ask, range(48)))
    assert remote(after(0), timeout=1) == LOCAL
    assert whole.calls < 48
    assert answered >= 8
    remote.close()


def test_a_head_that_is_slower_than_the_edge_starts_no_local_run(kind: Any, server: Server) -> None:
    whole = Whole(0.3)
    remote = kind(server.address, StandIn(0.05), on_failure="hedge", local=whole)
    for _ in range(15):
        assert remote(after(0)) == EDGE
    assert remote.stats.hedged < 8, "the edge is given its usual time from when the payload is made"
    remote.close()


def test_the_head_s_time_is_not_taken_for_the_edge_s(server: Server) -> None:
    head = StandIn()
    remote = Async(server.address, head, on_failure="hedge", local=Whole())
    for _ in range(5):
        remote(after(0))
    head.seconds = 0.6
    assert remote(after(0), timeout=0.3) == LOCAL
    assert "the head" in (remote.last.reason or "")
    assert remote._remote._patience.mean < 0.1  # type: ignore[attr-defined]
    remote.close()


def test_runs_that_nobody_awaits_keep_no_head_waiting(kind: Any, server: Server) -> None:
    whole = Whole(1.0)
    remote = kind(server.address, on_failure="hedge", local=whole)
    for _ in range(5):
        remote(after(0))
    with ThreadPoolExecutor(12) as pool:
        assert all(answer == EDGE for answer in pool.map(remote, [after(5)] * 12))
    assert remote(after(0), timeout=0.8) == EDGE
    assert whole.calls <= 3, "one at a time"
    remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_head_that_takes_all_the_time_says_nothing_of_the_edge(
    kind: Any, server: Server, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    remote = kind(server.address, StandIn(0.1), on_failure=policy, local=Whole(), heartbeat=30)
    with contextlib.suppress(ReadTimeout):  # a hedged call ends by its deadline
        assert remote(after(0), timeout=0.05) == LOCAL
    assert remote(after(0)) == EDGE
    assert not caplog.records, "the edge was not even asked"
    remote.close()


def test_a_hedged_request_whose_connection_breaks_is_sent_again(kind: Any) -> None:
    class Fickle(Tail):
        calls = 0

        def answer(self, payload: bytes) -> bytes:
            self.calls += 1
            if self.calls == 6:
                relay.cut()
            return super().answer(payload)

    with serve(Fickle()) as server:
        relay = Relay(server.address)
        remote = kind(relay.address, on_failure="hedge", local=Whole(3.0))
        for _ in range(5):
            remote(after(0))
        assert remote(after(10), timeout=2.5) == EDGE
        assert remote.last.retried
        assert (remote.stats.retried, remote.stats.failed) == (1, 0)
        remote.close()
        relay.close()


def test_an_edge_that_is_gone_for_good_keeps_no_local_answer_waiting(kind: Any, server: Server) -> None:
    relay = Relay(server.address)
    remote = kind(relay.address, on_failure="hedge", local=Whole(0.6))
    for _ in range(5):
        remote(after(0))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(remote, after(200), 5.0)
        time.sleep(0.1)
        relay.close()
        began = time.monotonic()
        assert call.result() == LOCAL
    assert time.monotonic() - began < 1.5
    remote.close()


def test_a_wait_longer_than_any_thread_can_wait(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(Tail())
    remote = kind(server.address, on_failure="hedge", local=Whole(), heartbeat=1e10)
    assert remote(after(0), timeout=1e10) == EDGE
    server.close()
    assert remote(after(0), timeout=1e10) == LOCAL
    assert not [record for record in caplog.records if record.exc_info]
    remote.close()


@pytest.mark.parametrize("number", [np.float16, np.float32, np.longdouble, np.int64])
def test_numbers_of_numpy_are_times_like_python_s(kind: Any, server: Server, number: Any) -> None:
    remote = kind(server.address, on_failure="hedge", local=Whole(), timeout=number(3), heartbeat=number(1))
    assert type(remote._remote.timeout) is float
    assert remote(after(0), timeout=number(4)) == EDGE
    assert type(remote._remote._link._heartbeat) is float
    remote.close()


def test_a_hedged_call_whose_remote_is_closed_says_so(kind: Any) -> None:
    remote = kind(unused(), on_failure="hedge", local=Whole(0.5))
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(remote, after(0), timeout=5) for _ in range(3)]
        time.sleep(0.2)
        remote.close()
        began = time.monotonic()
        closed = [isinstance(call.exception(), ConnectionLost) for call in calls]
    assert sum(closed) == 2  # those that stood behind the first
    assert time.monotonic() - began < 2, "they are told at once, not at their deadlines"


@pytest.mark.parametrize(
    ("policy", "moment"),
    [
        *((policy, moment) for policy in ("raise", "local", "hedge") for moment in ("in the head", "at the edge")),
        ("raise", "without a connection"),
    ],
)
def test_what_is_under_way_when_a_remote_is_closed_is_a_lost_connection(
    kind: Any, server: Server, policy: str, moment: str
) -> None:
    options: dict[str, Any] = {} if policy == "raise" else {"on_failure": policy, "local": Whole(0.3)}
    remote = kind(server.address, StandIn(0.3 if moment == "in the head" else 0.0), **options)
    if moment == "without a connection":
        link, never = remote._remote._link, threading.Event()

        def stuck(seconds: float) -> Any:
            never.wait(1.0)
            raise ConnectTimeout("no connection")

        async def stuck_too(seconds: float) -> Any:
            await asyncio.sleep(1.0)

        link._open = stuck if kind is Blocking else stuck_too
        server.close()
        eventually(lambda: link.current is None or link.current.closed)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(remote, after(30 if moment == "at the edge" else 0), timeout=5) for _ in range(4)]
        time.sleep(0.1)
        began = time.monotonic()
        remote.close() if kind is Blocking else remote._run(remote._remote.close())
        ends = [call.exception(5) for call in calls]
    assert time.monotonic() - began < 2
    assert all(end is None or isinstance(end, ConnectionLost) for end in ends), ends
    assert any(end is not None for end in ends)
    with pytest.raises(LocalProtocolError, match="closed"):
        remote(after(0))
    if kind is Async:
        remote._stop()


def test_a_local_call_is_answered_even_where_that_takes_too_long(kind: Any) -> None:
    remote = kind(unused(), on_failure="local", local=Whole(0.3), timeout=1)
    assert remote(after(0), timeout=0.1) == LOCAL
    remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_an_edge_whose_tail_raises_is_no_reason_to_leave_the_user_alone(kind: Any, policy: str) -> None:
    class Broken(Tail):
        def answer(self, payload: bytes) -> bytes:
            raise ValueError("out of memory")

    with serve(Broken()) as server:
        remote = kind(server.address, on_failure=policy, local=Whole())
        assert remote(after(0)) == LOCAL
        assert "out of memory" in (remote.last.reason or "")
        assert remote.stats.reachable, "the link is not to blame"
        remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_full_server_is_answered_for(kind: Any, policy: str) -> None:
    with serve(Tail(), max_pending=1) as server, ThreadPoolExecutor(2) as pool:
        remote = kind(server.address, on_failure=policy, local=Whole())
        held = pool.submit(remote, after(50), 5.0)
        time.sleep(0.1)
        assert remote(after(0)) == LOCAL
        assert held.result(5) in (EDGE, LOCAL)
        remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_what_the_whole_model_raises_reaches_the_user(kind: Any, policy: str) -> None:
    def broken(_word: Any) -> Any:
        raise ZeroDivisionError("a bug of the user's")

    remote = kind(unused(), on_failure=policy, local=broken, timeout=1)
    with pytest.raises(ZeroDivisionError):
        remote(after(0))
    assert (remote.stats.calls, remote.stats.raised, remote.stats.failed) == (1, 1, 0)
    remote.close()


def test_a_canceled_call_has_ended_too(server: Server) -> None:
    async def main() -> None:
        async with await connect_async(StandIn(), server.address) as remote:  # type: ignore[arg-type]
            call = asyncio.ensure_future(remote(after(50)))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert (remote.stats.calls, remote.stats.raised, remote.stats.failed) == (1, 1, 0)

    asyncio.run(main())


def test_hedging_with_a_broken_model_still_waits_for_the_edge(kind: Any, server: Server) -> None:
    def broken(_word: Any) -> Any:
        raise ZeroDivisionError("a bug of the user's")

    remote = kind(server.address, on_failure="hedge", local=broken)
    for _ in range(20):
        remote(after(0))
    assert remote(after(30), timeout=5) == EDGE
    remote.close()


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_what_no_waiting_mends_is_an_error_from_the_start(kind: Any, policy: str) -> None:
    class Foreign(Tail):
        artifact_id = bytes(32)

    with serve(Tail(), token="right") as guarded, pytest.raises(AuthenticationError):
        kind(guarded.address, on_failure=policy, local=Whole())
    with serve(Foreign()) as foreign, pytest.raises(ArtifactMismatch):
        kind(foreign.address, on_failure=policy, local=Whole())


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_closed_remote_answers_nothing(kind: Any, server: Server, policy: str) -> None:
    remote = Blocking(server.address, on_failure=policy, local=Whole())
    remote.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        remote(after(0))


@pytest.mark.parametrize(
    "options", [{"on_failure": "local"}, {"on_failure": "hedge"}, {"local": Whole()}, {"on_failure": "ignore"}]
)
def test_a_policy_and_its_model_belong_together(kind: Any, server: Server, options: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match="on_failure="):
        kind(server.address, **options)


def test_a_wrong_input_is_nothing_to_answer_locally(kind: Any, server: Server) -> None:
    class Strict(StandIn):
        def __call__(self, word: Any, quality: int | None = None) -> Payload:
            raise ValueError("no such input")

    whole = Whole()
    remote = connect(Strict(), server.address, on_failure="local", local=whole)  # type: ignore[arg-type]
    with remote, pytest.raises(ValueError, match="no such input"):
        remote(after(0))
    assert whole.calls == 0


class Refusing(StandIn):
    """A head that takes no zeros."""

    def check(self, word: np.ndarray[Any, Any], quality: int | None = None, **keywords: Any) -> None:
        if not word.any():
            raise FeatureError(f"zeros cannot be sent as {keywords}")


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_what_the_head_refuses_is_refused_without_an_edge_too(kind: Any, policy: str) -> None:
    server = serve(Tail())
    whole = Whole()
    remote = kind(server.address, Refusing(), on_failure=policy, local=whole)
    server.close()
    eventually(lambda: not remote.stats.reachable)
    with pytest.raises(FeatureError, match=r"zeros cannot be sent as \{'coding': 'raw'\}"):
        remote(after(0), coding="raw")
    assert whole.calls == 0
    assert remote(after(1), coding="raw", max_bytes=4) == LOCAL
    remote.close()


def test_a_local_answer_takes_what_its_head_takes(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    remote = kind(nobody, golden_head(), on_failure="local", local=lambda x: x.sum((1, 2, 3)))
    x = golden_inputs(2)
    assert len(remote(x, coding="huffman")) == 2
    for wrong, options in ((x[:, :, :4], {}), (x.astype(np.float64), {}), (x, {"quality": 9}), (x, {"coding": "zip"})):
        with pytest.raises(FeatureError):
            remote(wrong, **options)
    remote.close()


def test_threads_share_a_remote_while_the_edge_comes_and_goes() -> None:
    address = unused()
    with connect(StandIn(), address, on_failure="local", local=Whole(), heartbeat=0.05) as remote:  # type: ignore[arg-type]
        stop = threading.Event()

        def ask() -> set[str]:
            sources = set()
            while not stop.is_set():
                answer = remote(after(0), timeout=2).tolist()
                assert remote.last is not None
                assert answer == (EDGE if remote.last.source == "edge" else LOCAL)
                sources.add(remote.last.source)
                time.sleep(0.001)
            return sources

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(ask) for _ in range(4)]
            for _ in range(3):
                with serve(Tail(), address):
                    time.sleep(0.3)
                time.sleep(0.1)
            stop.set()
            assert all(call.result(5) == {"edge", "local"} for call in calls)
        assert remote.stats.failed == 0


def test_certificates_that_are_missing_for_a_moment_fail_no_call(kind: Any, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue_server("edge", ["127.0.0.1"])
    tls = TLS(certificate=tmp_path / "edge.pem", key=tmp_path / "edge.key")
    ours = TLS(ca=tmp_path / "ca.pem")
    with serve(Tail(), tls=tls) as server:
        remote = kind(server.address, on_failure="local", local=Whole(), tls=ours)
        assert remote(after(0)) == EDGE
        (tmp_path / "ca.pem").rename(tmp_path / "elsewhere.pem")
        server.readmit()
        eventually(lambda: remote(after(0)) == LOCAL)
        assert "ca.pem" in (remote.last.reason or "")
        (tmp_path / "elsewhere.pem").rename(tmp_path / "ca.pem")
        eventually(lambda: remote.stats.reachable)
        assert remote(after(0)) == EDGE
        remote.close()


def test_a_device_with_a_model_of_its_own_does_not_wait_long_for_its_first_connection(kind: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        remote = kind(f"127.0.0.1:{silent.getsockname()[1]}", on_failure="local", local=Whole(), timeout=30)
        assert remote(after(0)) == LOCAL
        assert time.monotonic() - began < 4
        remote.close()
