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
from compoff.device.timing import Estimate, Patience
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
    SplitError,
)
from compoff.operations.certificates import Authority
from compoff.wire.tensors import pack
from compoff.wire.tls import TLS
from tests.device.stand_in import HELD, StandIn, Tail, after
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
    """The whole model: another answer, so that a test can tell; when the gate is open, if there is one."""

    def __init__(self, seconds: float = 0.0, gate: threading.Event | None = None) -> None:
        self.seconds = seconds
        self.gate = gate
        self.calls = 0

    def __call__(self, word: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.calls += 1
        time.sleep(self.seconds)
        if self.gate is not None:
            self.gate.wait(60)
        return np.full((1, 3), 7)


class Shortened(StandIn):
    """A head that takes a limit, as `compoff.Head` does."""

    def __call__(self, word: np.ndarray[Any, Any], quality: int | None = None, max_bytes: int | None = None) -> Payload:
        return super().__call__(word[:max_bytes], quality)


class Blocking:
    """A remote as both kinds are tested."""

    def __init__(self, address: str, head: StandIn | None = None, **options: Any) -> None:
        self._remote = connect(head or StandIn(), address, **{"heartbeat": 5.0, **options})  # type: ignore[arg-type]

    def __call__(self, word: Any, timeout: float = 20.0, **options: Any) -> Any:
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
                connect_async(head or StandIn(), address, **{"heartbeat": 5.0, **options})  # type: ignore[arg-type]
            )
        except BaseException:
            self._stop()
            raise

    def __call__(self, word: Any, timeout: float = 20.0, **options: Any) -> Any:
        return self._run(self._remote(word, timeout=timeout, **options)).tolist()

    def close(self) -> None:
        self._run(self._remote.close())
        self._stop()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _stop(self) -> None:
        async def end() -> None:
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others, timeout=30)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.fixture(params=[Blocking, Async], ids=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _time_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is waited for, however late this machine is."""
    for name in ("link.FIRST_ATTEMPT", "async_link.FIRST_ATTEMPT", "connecting._FIRST_WAIT"):
        monkeypatch.setattr(f"compoff.device.{name}", 30.0)


@pytest.fixture
def tail() -> Tail:
    return Tail()


@pytest.fixture
def server(tail: Tail) -> Iterator[Server]:
    with serve(tail, workers=4) as server:
        yield server
        tail.gate.set()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What holds a whole model up until the test is over, or opens it."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge is waited for, however late this machine is."""
    monkeypatch.setattr(Patience, "seconds", lambda self, timeout: timeout / 2)


def unused() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.usefixtures("patient")
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
    assert sorted(times)[2] < 5, "a call that waits for the edge takes ten seconds"
    assert remote.stats.failed == 0
    remote.close()


def test_a_tail_that_hangs_in_a_server_that_lives_is_not_waited_for_by_every_call(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging(Tail):
        def answer(self, payload: bytes) -> bytes:
            freed.wait(60)
            return super().answer(payload)

    def in_vain() -> bool:
        """Whether the edge, not the head, took all the time of a call."""
        eventually(lambda: remote.stats.reachable)
        assert remote(after(0), timeout=0.2) == LOCAL
        return "gave no answer within" in (remote.last.reason or "")

    freed = threading.Event()
    with serve(Hanging(), workers=16) as server, contextlib.ExitStack() as at_last:
        at_last.callback(freed.set)
        remote = kind(server.address, on_failure="local", local=Whole())
        at_last.callback(remote.close)
        stall = (remote._remote._stalls if kind is Async else remote._remote._edge.stalls)[0]
        for _ in range(3):
            eventually(in_vain)
        assert stall._count == 3
        eventually(lambda: remote.stats.reachable)
        assert 0.0 < stall._again < time.monotonic() + 1.0
        stall._again = time.monotonic() + 60.0
        began = time.monotonic()
        for _ in range(5):
            assert remote(after(0), timeout=20) == LOCAL
        assert time.monotonic() - began < 8, "none of them has waited"
        assert "no answer to 3 calls in a row" in (remote.last.reason or "")
        assert len(caplog.records) == 1

        def asked_again() -> bool:
            stall._again = 0.0
            return in_vain()

        eventually(asked_again)
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
    for _ in range(3):  # unless the machine was busy
        began = time.monotonic()
        assert remote(HELD, timeout=1.5) == LOCAL
        if time.monotonic() - began < 1.5:
            break
    else:
        pytest.fail("none was in time")
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
    assert remote(HELD, timeout=60) == LOCAL
    assert time.monotonic() - began < 20
    assert "had not answered" in (remote.last.reason or "")
    assert remote.last.remote_seconds > remote.last.local_seconds, "the edge was waited for all the while"
    assert remote.stats.hedged == hedged + 1
    remote.close()


def test_an_edge_that_hangs_does_not_make_hedged_calls_wait_longer_and_longer(kind: Any) -> None:
    class Hanging(Tail):
        hangs = False

        def answer(self, payload: bytes) -> bytes:
            freed.wait(60 if self.hangs else 0)
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
            assert remote(after(0), timeout=60) == LOCAL
            times.append(time.monotonic() - began)
        assert "had not answered the calls before" in (remote.last.reason or "")
        assert sorted(times)[6] < 3.0, "without a bound it takes five seconds by then"
        freed.set()
        eventually(lambda: remote(after(0), timeout=60) == EDGE)  # it was asked all the same


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
            with contextlib.suppress(ReadTimeout):  # where this machine is busy
                assert (await remote(after(0), timeout=0.1)).tolist() == LOCAL
        gc.collect()
        return told

    assert asyncio.run(main()) == []


def test_hedging_takes_the_edge_where_that_is_the_first(
    kind: Any, server: Server, tail: Tail, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "seconds", lambda self, timeout: 0.01)
    whole = Whole(gate=gate)
    remote = kind(server.address, on_failure="hedge", local=whole)

    def let_go() -> None:
        eventually(lambda: whole.calls == 1)
        tail.gate.set()

    with ThreadPoolExecutor(1) as pool:
        both_work = pool.submit(let_go)
        assert remote(HELD, timeout=30) == EDGE
        both_work.result()
    assert remote.last.source == "edge"
    remote.close()


def test_a_hedged_call_ends_by_its_deadline_whatever_both_do(
    kind: Any, server: Server, tail: Tail, gate: threading.Event
) -> None:
    remote = kind(server.address, on_failure="hedge", local=Whole(gate=gate), heartbeat=0.1)

    def end() -> None:
        began = time.monotonic()
        with pytest.raises(ReadTimeout):
            remote(HELD, timeout=0.2)
        assert time.monotonic() - began < 10

    def sent() -> bool:
        end()
        return remote.stats.payload_bytes > 0

    eventually(sent)
    assert remote.stats.payload_bytes == 1, "the one byte that was sent counts, though nothing came back"
    tail.gate.set()
    server.close()
    eventually(lambda: not remote.stats.reachable)
    end()
    assert remote.stats.failed == remote.stats.calls
    remote.close()


def test_calls_that_gave_up_leave_the_device_to_those_that_wait(kind: Any, gate: threading.Event) -> None:
    whole = Whole(gate=gate)
    remote = kind(unused(), on_failure="hedge", local=whole)

    def ask(_: int) -> None:
        with pytest.raises(ReadTimeout):
            remote(after(0), timeout=0.2)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    gate.set()
    assert remote(after(0), timeout=30) == LOCAL
    assert whole.calls <= 2, "the one that had begun, and the last"
    remote.close()


def test_a_head_that_is_slower_than_the_edge_starts_no_local_run(
    kind: Any, server: Server, gate: threading.Event
) -> None:
    remote = kind(server.address, StandIn(0.05), on_failure="hedge", local=Whole(gate=gate))
    for _ in range(15):
        assert remote(after(0)) == EDGE
    assert remote.stats.hedged < 8, "the edge is given its usual time from when the payload is made"
    remote.close()


def test_the_head_s_time_is_not_taken_for_the_edge_s(server: Server) -> None:
    head = StandIn()
    remote = Async(server.address, head, on_failure="hedge", local=Whole())

    def late() -> bool:
        with contextlib.suppress(ReadTimeout):  # where this machine is busy
            return remote(after(0), timeout=0.3) == LOCAL and "the head" in (remote.last.reason or "")
        return False

    for _ in range(5):
        remote(after(0))
    before = remote._remote._patience.mean  # type: ignore[attr-defined]
    head.seconds = 0.6
    eventually(late)
    assert remote._remote._patience.mean == before  # type: ignore[attr-defined]
    remote.close()


def test_runs_that_nobody_awaits_keep_no_head_waiting(kind: Any, server: Server, gate: threading.Event) -> None:
    whole = Whole(gate=gate)
    remote = kind(server.address, on_failure="hedge", local=whole)
    for _ in range(5):
        remote(after(0))
    with ThreadPoolExecutor(12) as pool:
        assert all(answer == EDGE for answer in pool.map(remote, [after(5)] * 12))
    assert remote(after(0)) == EDGE
    assert whole.calls <= 1, "one at a time"
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


def test_a_hedged_request_whose_connection_breaks_is_sent_again(kind: Any, gate: threading.Event) -> None:
    class Fickle(Tail):
        calls = 0

        def answer(self, payload: bytes) -> bytes:
            self.calls += 1
            if self.calls == 6:
                relay.cut()
            return super().answer(payload)

    with serve(Fickle()) as server:
        relay = Relay(server.address)
        remote = kind(relay.address, on_failure="hedge", local=Whole(gate=gate))
        for _ in range(5):
            remote(after(0))
        assert remote(after(10)) == EDGE
        assert remote.last.retried
        assert (remote.stats.retried, remote.stats.failed) == (1, 0)
        remote.close()
        relay.close()


def test_an_edge_that_is_gone_for_good_keeps_no_local_answer_waiting(
    kind: Any, server: Server, gate: threading.Event
) -> None:
    relay = Relay(server.address)
    remote = kind(relay.address, on_failure="hedge", local=Whole(gate=gate))
    for _ in range(5):
        remote(after(0))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(remote, HELD, 60.0)
        eventually(lambda: remote.stats.payload_bytes == 6)
        relay.close()
        gate.set()
        began = time.monotonic()
        assert call.result() == LOCAL
    assert time.monotonic() - began < 20
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
    remote = kind(server.address, on_failure="hedge", local=Whole(), timeout=number(30), heartbeat=number(10))
    assert type(remote._remote.timeout) is float
    assert remote(after(0), timeout=number(40)) == EDGE
    assert type(remote._remote._link._heartbeat) is float
    remote.close()


def test_a_hedged_call_whose_remote_is_closed_says_so(kind: Any, gate: threading.Event) -> None:
    whole = Whole(gate=gate)
    remote = kind(unused(), on_failure="hedge", local=whole)
    runs = remote._remote._runs if kind is Async else remote._remote._fallback._runs
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(remote, after(0), timeout=60) for _ in range(3)]
        eventually(lambda: whole.calls == 1 and runs._waiting.qsize() == 2)
        remote.close() if kind is Blocking else remote._run(remote._remote.close())
        eventually(lambda: sum(call.done() for call in calls) == 2)  # at once, not at their deadlines
        closed = [call.done() and isinstance(call.exception(), ConnectionLost) for call in calls]
        assert sum(closed) == 2, "those that stood behind the first"
        gate.set()
    if kind is Async:
        remote._stop()


@pytest.mark.parametrize(
    ("policy", "moment"),
    [
        *((policy, moment) for policy in ("raise", "local", "hedge") for moment in ("in the head", "at the edge")),
        ("raise", "without a connection"),
    ],
)
def test_what_is_under_way_when_a_remote_is_closed_is_a_lost_connection(
    kind: Any, server: Server, tail: Tail, gate: threading.Event, policy: str, moment: str
) -> None:
    class Held(StandIn):
        calls = 0

        def __call__(self, word: np.ndarray[Any, Any], quality: int | None = None) -> Payload:
            if moment == "in the head":
                head.calls += 1
                gate.wait(60)
            return super().__call__(word, quality)

    head = Held()
    options: dict[str, Any] = {} if policy == "raise" else {"on_failure": policy, "local": Whole(gate=gate)}
    options["heartbeat"] = 0.1 if moment == "without a connection" else 5.0
    remote = kind(server.address, head, **options)
    if moment == "without a connection":
        link, never = remote._remote._link, threading.Event()

        def stuck(seconds: float) -> Any:
            never.wait(1.0)
            raise ConnectTimeout("no connection")

        async def stuck_too(seconds: float) -> Any:
            await asyncio.sleep(1.0)
            raise ConnectTimeout("no connection")

        def counted(*how: Any) -> Any:
            head.calls += 1
            return connection(*how)

        connection, link.connection = link.connection, counted
        link._open = stuck if kind is Blocking else stuck_too
        server.close()
        eventually(lambda: link.current is None or link.current.closed)

    def all_are_there() -> bool:
        return (remote.stats.payload_bytes if moment == "at the edge" else head.calls) == 4

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(remote, HELD, timeout=60) for _ in range(4)]
        eventually(all_are_there)
        began = time.monotonic()
        remote.close() if kind is Blocking else remote._run(remote._remote.close())
        gate.set()
        ends = [call.exception(30) for call in calls]
    assert time.monotonic() - began < 20
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
    tail = Tail()
    with serve(tail, max_pending=1) as server, ThreadPoolExecutor(2) as pool:
        remote = kind(server.address, on_failure=policy, local=Whole())
        held = pool.submit(remote, HELD, 60.0)
        eventually(lambda: server.stats().pending == 1)
        assert remote(after(0)) == LOCAL
        tail.gate.set()
        assert held.result(60) in (EDGE, LOCAL)
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


def test_a_call_whose_options_are_refused_has_ended_too(kind: Any, server: Server) -> None:
    remote = kind(server.address)
    for options, error in (({"split": "nope"}, SplitError), ({"timeout": 0}, LocalProtocolError)):
        with pytest.raises(error):
            remote(after(0), **options)
    assert (remote.stats.calls, remote.stats.raised, remote.stats.failed) == (2, 1, 1)
    remote.close()


def test_a_canceled_call_has_ended_too(server: Server) -> None:
    async def main() -> None:
        async with await connect_async(StandIn(), server.address) as remote:  # type: ignore[arg-type]
            call = asyncio.ensure_future(remote(HELD))
            while not remote.stats.payload_bytes:
                await asyncio.sleep(0.005)
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
    assert remote(after(30), timeout=60) == EDGE
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
    remote = kind(server.address, Refusing(), on_failure=policy, local=whole, heartbeat=0.1)
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
        seen = [set[str]() for _ in range(4)]

        def ask(sources: set[str]) -> None:
            while not stop.is_set():
                answer = remote(after(0), timeout=20).tolist()
                assert remote.last is not None
                assert answer == (EDGE if remote.last.source == "edge" else LOCAL)
                sources.add(remote.last.source)
                time.sleep(0.001)

        def all_take(source: str) -> bool:
            return all(source in sources for sources in seen)

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(ask, sources) for sources in seen]
            try:
                for _ in range(3):
                    with serve(Tail(), address):
                        eventually(lambda: all_take("edge"))
                    for sources in seen:
                        sources.discard("local")
                    eventually(lambda: all_take("local"))
                    for sources in seen:
                        sources.discard("edge")
            finally:
                stop.set()
            for call in calls:
                call.result(30)
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
        eventually(lambda: remote(after(0)) == LOCAL and "ca.pem" in (remote.last.reason or ""))
        (tmp_path / "elsewhere.pem").rename(tmp_path / "ca.pem")
        eventually(lambda: remote.stats.reachable)
        assert remote(after(0)) == EDGE
        remote.close()


def test_a_device_with_a_model_of_its_own_does_not_wait_long_for_its_first_connection(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        remote = kind(f"127.0.0.1:{silent.getsockname()[1]}", on_failure="local", local=Whole(), timeout=120)
        eventually(lambda: not remote.stats.reachable)  # already, unless this machine is busy
        assert remote(after(0), timeout=120) == LOCAL
        assert time.monotonic() - began < 30
        remote.close()
