"""Batches: fairness between devices, waiting for company, decoding ahead, and what one bad request may do to others."""

from __future__ import annotations

import contextlib
import gc
import math
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.edge.batching import FairQueue, Job, Lane, Outcome, Pace
from compoff.edge.servable import Batchable
from compoff.edge.server import serve
from compoff.errors import FeatureError, LocalProtocolError, PayloadError, ReadTimeout, RemoteError, ServerBusy
from compoff.manifest import TensorSpec
from compoff.wire.client import Client, open_client
from compoff.wire.frames import Frame, FrameType, serialize
from compoff.wire.messages import Hello, Offer
from compoff.wire.replies import FULL, TopK, reply_form
from compoff.wire.tensors import unpack
from tests.edge.peers import ID, Echo, Peer, content, eventually, request

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from compoff.edge.server import Server


class Squares:
    """Squares each byte of a payload, one sample a byte; notes the runs, and does what some bytes ask for."""

    artifact_id = ID
    max_payload_bytes = 64
    max_batch = 16
    outputs = (TensorSpec((2,), "float32"),)

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.runs: list[int] = []
        self.values: list[float] = []
        self.decoded: list[bytes] = []
        self.decoders: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, payload: bytes) -> bytes:
        raise AssertionError("a tail that can batch is never asked like this")

    def decode(self, payload: bytes) -> np.ndarray:
        self.decoded.append(payload)
        self.decoders.add(threading.current_thread().name)
        if payload == b"damaged":
            raise PayloadError("the payload is damaged")
        return np.frombuffer(payload, np.uint8).astype(np.float32)

    def run(self, decoded: Sequence[Any]) -> list[list[np.ndarray]]:
        self.runs.append(len(decoded))
        self.values += [float(value) for part in decoded for value in part]
        self.gate.wait(30)
        time.sleep(self.seconds)
        if any((part == 255).any() for part in decoded):
            raise ValueError("255 is too much")
        scale = 1e6 if any((part == 254).any() for part in decoded) else 1
        return [[np.stack([part, scale * part * part], 1)] for part in decoded]


def squared(reply: bytes) -> list[float]:
    [array] = unpack(reply, 1)
    return array[:, 1].tolist()


class Device:
    """Somebody who asks; only its name matters here."""

    def wants(self, request_id: int) -> bool:
        return True

    def deliver(self, job: Job, outcome: Outcome | None) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""


def job(lane: Lane, device: Device, number: int, arrived: float = 0.0) -> Job:
    return Job(lane, b"", FULL, math.inf, device, number, arrived)


def test_everyone_has_a_turn() -> None:
    lane, queue = Lane(Echo(), 1), FairQueue()
    greedy, modest, late = Device(), Device(), Device()
    for number in range(5):
        queue.push(job(lane, greedy, number))
    queue.push(job(lane, modest, 10))
    queue.push(job(lane, late, 20))
    queue.push(job(lane, modest, 11))
    assert (len(queue), queue.count(greedy), queue.greediest()) == (8, 5, greedy)
    assert [queue.pop().request_id for _ in range(8)] == [0, 10, 20, 1, 11, 2, 3, 4]
    assert (len(queue), queue.count(greedy), queue.greediest()) == (0, 0, None)
    queue.push(job(lane, late, 30))
    queue.push(job(lane, late, 31))
    assert [queue.pop_newest(late).request_id for _ in range(2)] == [31, 30]
    assert len(queue) == 0


def test_only_after_a_batch_is_there_anything_to_wait_for() -> None:
    lane, device = Lane(Squares(), 8), Device()
    lane.push(job(lane, device, 1, arrived=10.0))
    assert lane.patience(10.0, 0.5) == 0.0
    assert len(lane.take()) == 1
    for number in range(3):
        lane.push(job(lane, device, number, arrived=11.0 + number))
    assert [len(lane.take()), lane.running] == [3, 4]
    lane.done(4, 4, 4.0)
    lane.push(job(lane, device, 1, arrived=20.0))
    assert lane.patience(20.1, 9.9) == pytest.approx(0.9), "a quarter of what the last batch took"
    assert lane.patience(20.1, 0.5) == pytest.approx(0.4)
    assert lane.patience(20.6, 0.5) == 0.0
    lane.push(job(lane, device, 2, arrived=20.2))
    assert lane.patience(20.3, 0.5) == pytest.approx(0.2), "it is the oldest that waits"
    lane.push(job(lane, device, 3, arrived=20.3))
    assert lane.patience(20.3, 0.5) == 0.0, "as many as last time are there"
    assert (lane.running, lane.seconds_per_job, lane.expected_wait) == (0, pytest.approx(1.0), pytest.approx(3.0))
    lane.take()
    lane.done(3, 0, 1e-6)  # refused or dropped: they say nothing of the tail
    assert (lane.running, lane.seconds_per_job) == (0, pytest.approx(1.0))


def test_promptness_is_earned_slowly_and_lost_at_once() -> None:
    pace = Pace()
    for _ in range(31):
        pace.clock(1e-6)
    assert not pace.prompt
    pace.clock(1e-6)
    pace.clock(1e-3)
    assert not pace.prompt, "two prompt ones short"
    for _ in range(200):
        pace.clock(1e-6)
    pace.clock(1e-3)
    assert pace.prompt, "the processor may have been away once"
    pace.clock(0.01)
    for _ in range(63):
        pace.clock(1e-6)
    assert not pace.prompt, "the second time it takes twice as long"
    pace.clock(1e-6)
    assert pace.prompt


def test_what_never_reaches_the_tail_does_not_make_it_prompt() -> None:
    pace = Pace()
    for _ in range(100):
        pace.clock(1e-6, through=False)
    assert not pace.prompt
    for _ in range(32):
        pace.clock(1e-6)
    pace.clock(0.01, through=False)
    assert not pace.prompt, "to fail slowly is slow, too"


def test_damaged_and_late_requests_leave_a_slow_tail_in_its_own_thread() -> None:
    tail = Squares()
    with serve(tail) as server, open_client(server.address, [ID]) as client, open_client(server.address, [ID]) as other:
        for _ in range(100):
            with pytest.raises(PayloadError):
                client.request(b"damaged", timeout=30)
        [lane] = server._service._lanes.values()
        assert not lane.pace.prompt
        assert not server.stats().tails[0].batch_sizes
        tail.gate.clear()
        pending = client.submit(b"\x03", timeout=30)
        eventually(lambda: tail.runs == [1])
        other.ping(timeout=20)  # others are not kept waiting
        tail.gate.set()
        assert squared(pending.result()) == [9.0]


def test_a_tail_that_is_elsewhere_is_never_waited_for_where_requests_are_received() -> None:
    class Far(Echo):
        elsewhere = True

        def __init__(self) -> None:
            super().__init__()
            self.threads: set[str] = set()

        def answer(self, payload: bytes) -> bytes:
            self.threads.add(threading.current_thread().name)
            return super().answer(payload)

    tail = Far()
    with serve(tail) as server, open_client(server.address, [ID]) as client:
        [lane] = server._service._lanes.values()
        for _ in range(3000):
            client.request(b"x", timeout=30)
            if lane.pace.prompt:
                break
        client.request(b"x", timeout=30)
    assert tail.threads == {"compoff-tail-0"}


def test_requests_of_many_devices_and_forms_run_as_one_batch() -> None:
    tail = Squares()
    assert isinstance(tail, Batchable)
    assert not isinstance(Echo(), Batchable)
    offers = [Offer(ID), Offer(ID, reply_form("fp16")), Offer(ID, reply_form(TopK(1)))]
    with serve(tail, max_batch=10) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_client(server.address, offers)) for _ in range(6)]
        tail.gate.clear()
        first = clients[0].submit(b"\x01", timeout=30)
        eventually(lambda: tail.runs == [1])
        pending = [
            client.submit(bytes([2 + index]), route=index % 3, timeout=30) for index, client in enumerate(clients)
        ]
        many = [clients[0].submit(bytes([9]) * 10, timeout=30) for _ in range(2)]
        eventually(lambda: server.stats().pending == 9)
        tail.gate.set()
        assert squared(first.result()) == [1.0]
        for index, one in enumerate(pending):
            arrays = unpack(one.result())
            assert [str(array.dtype) for array in arrays] == [["float32"], ["float16"], ["float32", "uint8"]][index % 3]
            assert arrays[0].max() == (2 + index) ** 2
        assert [squared(one.result()) for one in many] == [[81.0] * 10] * 2
        assert tail.runs == [1, 7, 1], "10 samples fit beside 6 of the others, not 20: a run takes 16"
        [stats] = server.stats().tails
        assert stats.batch_sizes == {1: 2, 7: 1}
        assert (stats.requests, stats.replies, stats.bytes_in, stats.latency.count) == (9, 9, 27, 9)


def test_one_bad_request_spoils_no_batch() -> None:
    tail = Squares()
    with serve(tail) as server, open_client(server.address, [Offer(ID, reply_form("fp16"))]) as client:
        tail.gate.clear()
        first = client.submit(b"\x01", timeout=30)
        eventually(lambda: tail.runs == [1])
        good = [client.submit(bytes([number]), timeout=30) for number in range(3)]
        damaged, raising = client.submit(b"damaged", timeout=30), client.submit(b"\xff", timeout=30)
        eventually(lambda: server.stats().pending == 6)
        tail.gate.set()
        assert squared(first.result()) == [1.0]
        assert [squared(one.result()) for one in good] == [[0.0], [1.0], [4.0]]
        with pytest.raises(PayloadError, match="is damaged"):
            damaged.result()
        with pytest.raises(RemoteError, match="ValueError: 255 is too much"):
            raising.result()
        with pytest.raises(FeatureError, match=r"does not fit float16; ask for reply='full'"):
            client.request(b"\xfe", timeout=30)
        [stats] = server.stats().tails
        assert stats.errors == {"payload": 1, "tail": 1, "reply": 1}
    with serve(Echo()) as server, pytest.raises(LocalProtocolError, match="one form only"):
        open_client(server.address, [Offer(ID, reply_form("argmax"))])
    with serve(tail) as server, pytest.raises(LocalProtocolError, match="3 values were asked for"):
        open_client(server.address, [Offer(ID, reply_form(TopK(3)))])


def test_what_waits_is_decoded_meanwhile_but_not_what_has_expired() -> None:
    tail = Squares()
    with serve(tail, decoders=2) as server, open_client(server.address, [ID]) as client:
        tail.gate.clear()
        first = client.submit(b"\x01", timeout=30)
        eventually(lambda: tail.runs == [1])
        ahead = [client.submit(bytes([number]), timeout=30) for number in range(5)]
        eventually(lambda: len(tail.decoded) == 6)
        assert any(name.startswith("compoff-decode") for name in tail.decoders)
        late = client.submit(b"late", timeout=0.001)
        canceled = client.submit(b"canceled", timeout=30)
        canceled.cancel()
        client.ping(timeout=30)  # behind the others: the server has them
        time.sleep(0.001)
        tail.gate.set()
        assert [squared(one.result()) for one in (first, *ahead)] == [[1.0], [0.0], [1.0], [4.0], [9.0], [16.0]]
        with pytest.raises(ReadTimeout):
            late.result()
        assert client.request(b"", timeout=30)
        assert tail.decoded.count(b"late") <= 1
        assert len(tail.decoded) <= 9, "nothing is decoded twice"


def test_without_decoding_threads_the_worker_decodes() -> None:
    tail = Squares(0.01)
    with serve(tail, decoders=0, workers=2) as server, open_client(server.address, [ID]) as client:
        pending = [client.submit(bytes([number]), timeout=30) for number in range(12)]
        assert [squared(one.result()) for one in pending] == [[float(number * number)] for number in range(12)]
        assert all(name.startswith("compoff-tail") for name in tail.decoders)


@contextlib.contextmanager
def greedy_and_modest(tail: Squares, **options: Any) -> Iterator[tuple[Server, Client, Client]]:
    """Two devices of a server whose tail is held up."""
    tail.gate.clear()
    with (
        serve(tail, **options) as server,
        open_client(server.address, [ID]) as greedy,
        open_client(server.address, [ID]) as modest,
    ):
        yield server, greedy, modest


def test_a_greedy_device_does_not_starve_another() -> None:
    tail = Squares()
    with greedy_and_modest(tail, max_batch=2) as (server, greedy, modest):
        flood = [greedy.submit(b"\x01", timeout=30) for _ in range(15)]
        eventually(lambda: server.stats().pending == 15)
        one = modest.submit(b"\x02", timeout=30)
        eventually(lambda: server.stats().pending == 16)
        tail.gate.set()
        for pending in (one, *flood):
            pending.result()
        assert tail.values.index(2.0) <= 3, "its turn is in the batch after the one that ran"


def test_who_has_most_waiting_is_refused_first() -> None:
    tail = Squares()
    with greedy_and_modest(tail, max_batch=1, max_pending=6) as (server, greedy, modest):
        flood = [greedy.submit(bytes([0]), timeout=30)]
        eventually(lambda: tail.runs == [1])
        flood += [greedy.submit(bytes([number]), timeout=30) for number in range(1, 6)]
        eventually(lambda: server.stats().pending == 6)
        others = [modest.submit(bytes([10 + number]), timeout=30) for number in range(4)]
        eventually(lambda: server.stats().tails[0].errors.get("busy") == 4)
        tail.gate.set()
        outcomes: list[Any] = []
        for one in (*flood, *others):
            try:
                outcomes += squared(one.result())
            except ServerBusy:
                outcomes.append("busy")
        # One of the flood runs; of its five that wait two give way, until both have as many, give or take one.
        assert outcomes == [0.0, 1.0, 4.0, 9.0, "busy", "busy", 100.0, 121.0, "busy", "busy"]
        assert server.stats().pending == 0


def test_a_prompt_tail_is_asked_where_requests_are_received_until_it_is_slow() -> None:
    threads: list[str] = []

    alone = threading.Lock()

    class Prompt(Echo):
        def answer(self, payload: bytes) -> bytes:
            assert alone.acquire(blocking=False)
            threads.append(threading.current_thread().name)
            if payload == b"slow":
                time.sleep(0.02)
            alone.release()
            return payload

    def ask(client: Client, number: int) -> None:
        for _ in range(number):
            assert client.request(b"x", timeout=30) == b"x"

    # Two threads never ask it at the same time, or a tail that is not made for that would have to fear it.
    with serve(Prompt()) as server, open_client(server.address, [ID]) as client:
        for _ in range(50):
            ask(client, 100)
            if threads[-1] == "compoff-serve":
                break
        assert threads[0] == "compoff-tail-0"
        assert threads[-1] == "compoff-serve"
        assert client.request(b"slow", timeout=30) == b"slow"
        pending = [client.submit(body, timeout=30) for body in (b"slow", b"x", b"y")]
        assert [one.result() for one in pending] == [b"slow", b"x", b"y"]
        ask(client, 2)
        assert threads[-2:] == ["compoff-tail-0"] * 2
        [stats] = server.stats().tails
        assert stats.replies == stats.requests == len(threads)


def test_a_tail_that_hangs_where_requests_are_received_does_not_hang_close(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging(Echo):
        def answer(self, payload: bytes) -> bytes:
            if payload == b"hang":
                threads.append(threading.current_thread().name)
                release.wait(60)
            return payload

    threads: list[str] = []
    monkeypatch.setattr(Pace, "prompt", True)
    server = serve(Hanging(), drain_timeout=0.1)
    with open_client(server.address, [ID]) as client:
        start = time.monotonic()
        with pytest.raises(ReadTimeout):
            client.request(b"hang", timeout=0.1)
        server.close()
        assert time.monotonic() - start < 20
        assert threads == ["compoff-serve"]
    assert server.wait(0)
    release.set()
    server._thread.join(30)
    assert not server._thread.is_alive()


def test_another_tail_takes_over_with_requests_in_flight() -> None:
    old, new, other = Squares(), Squares(), Echo()
    other.artifact_id = bytes(32)
    with serve([old, other]) as server, open_client(server.address, [ID]) as client, Peer(server) as peer:
        old.gate.clear()
        in_flight = client.submit(b"\x03", timeout=30)
        eventually(lambda: old.runs == [1])
        waiting = client.submit(b"\x04", timeout=30)
        eventually(lambda: server.stats().pending == 2)
        server.swap([new, other])
        later = client.submit(b"\x05", timeout=30)
        old.gate.set()
        assert [squared(one.result()) for one in (in_flight, waiting, later)] == [[9.0], [16.0], [25.0]]
        assert (sum(old.runs), sum(new.runs)) == (2, 1)
        with pytest.raises(LocalProtocolError, match="nothing to serve"):
            server.swap([])
        peer.read()
        new.gate.clear()
        peer.send(request(1, b"\x06"))
        eventually(lambda: len(new.runs) == 2)
        server.swap(other)
        assert content(peer.read()) is not None
        new.gate.set()
        answer = peer.read()
        assert answer is not None
        assert (answer.request_id, squared(answer.body)) == (1, [36.0])
        assert peer.read() is None
        eventually(lambda: not server.stats().connections)
        assert [stats.artifact_id for stats in server.stats().tails] == [bytes(32)]
    with pytest.raises(LocalProtocolError, match="closed"):
        server.swap(other)


def test_the_counters_of_a_tail_that_is_read_again_go_on() -> None:
    old, other = Squares(), Echo()
    other.artifact_id = bytes(32)
    with serve([old, other]) as server, open_client(server.address, [ID]) as client:
        client.request(b"\x03", timeout=30)
        before = server.stats().tails[0]
        old.gate.clear()
        in_flight = client.submit(b"\x04", timeout=30)
        eventually(lambda: old.runs == [1, 1])
        server.swap([Squares(), other])
        old.gate.set()
        in_flight.result()
        client.request(b"\x05", timeout=30)
        after = server.stats().tails[0]
        assert (before.requests, before.replies) == (1, 1)
        assert (after.requests, after.replies, after.latency.count) == (3, 3, 3)
        assert (after.bytes_in, after.batch_sizes) == (3, {1: 3})
        assert after.busy_seconds > before.busy_seconds


def test_a_tail_that_was_swapped_away_is_let_go_at_once() -> None:
    old = Squares()
    with serve(old) as server:
        alive = weakref.ref(old)
        server.swap(Squares())
        del old
        gc.collect()
        assert alive() is None


def test_who_takes_replies_in_a_form_that_the_next_tail_lacks_connects_again() -> None:
    halves = serialize(Frame(FrameType.HELLO, Hello((Offer(ID, reply_form("fp16")),)).encode()))
    with serve(Squares()) as server, Peer(server, halves) as peer, Peer(server) as other:
        assert peer.read() is not None
        assert other.read() is not None
        server.swap(Echo())
        assert peer.read() == Frame(FrameType.GOODBYE)
        other.send(request(1, b"x"))
        assert content(other.read()) == (FrameType.REPLY, b"x", 1)


def test_a_place_held_in_silence_goes_to_who_speaks() -> None:
    with serve(Echo(), max_connections=3, handshake_timeout=60) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(Peer(server, b"")) for _ in range(3)]
        eventually(lambda: server.stats().connections == 3)
        clients = [stack.enter_context(open_client(server.address, [ID])) for _ in range(3)]
        assert [client.request(b"x", timeout=30) for client in clients] == [b"x"] * 3
        assert [peer.read() for peer in silent] == [None] * 3
        with pytest.raises(ServerBusy):
            open_client(server.address, [ID])
        assert server.stats().refused == 4
        assert server.stats().accepted == 7


@pytest.mark.parametrize("options", [{"decoders": -1}, {"max_wait": -1.0}, {"max_wait": math.nan}, {"max_batch": 0}])
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        serve(Squares(), **options)
