"""The blocking client over real sockets: threads, order, deadlines, errors, and the end of it."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from compoff.edge.server import serve
from compoff.errors import (
    ConnectionLost,
    LocalProtocolError,
    PayloadError,
    ReadTimeout,
    RemoteError,
    ServerBusy,
)
from compoff.wire.client import Client, open_client
from tests.edge.peers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ID, OTHER_ID = bytes(range(32)), bytes(range(1, 33))


class Reverse:
    """Answers with the payload reversed: one of digits after as many milliseconds, "held" when the gate is open."""

    artifact_id = ID
    max_payload_bytes = 2**20

    def __init__(self) -> None:
        self.gate = threading.Event()

    def answer(self, payload: bytes) -> bytes:
        if payload == b"broken":
            raise PayloadError("the payload is broken")
        if payload == b"raise":
            raise ValueError("cannot read '/srv/secret/tail.pt2'\nsecond line")
        if payload.isdigit():
            time.sleep(int(payload) / 1000)
        if payload == b"held":
            self.gate.wait(30)
        return payload[::-1]


class Other(Reverse):
    artifact_id = OTHER_ID
    max_payload_bytes = 10

    def answer(self, payload: bytes) -> bytes:
        return b"other " + payload


@pytest.fixture
def tail() -> Reverse:
    return Reverse()


@pytest.fixture
def client(tail: Reverse) -> Iterator[Client]:
    with serve([tail, Other()], workers=4) as server, open_client(server.address, [ID, OTHER_ID]) as client:
        yield client
        tail.gate.set()


def test_a_request_is_answered_on_its_route(client: Client) -> None:
    assert client.request(b"payload", timeout=30) == b"daolyap"
    assert client.request(b"payload", route=1, timeout=30) == b"other payload"
    assert client.request(b"", timeout=30) == b""
    big = random.Random(0).randbytes(2**20)
    assert client.request(big, timeout=30) == big[::-1]
    assert (client.window, client.max_payload_bytes(), client.max_payload_bytes(1)) == (16, 2**20, 10)


def test_16_threads_each_get_their_own_answers(client: Client) -> None:
    def work(number: int) -> int:
        rng = random.Random(number)
        for index in range(150):
            body = f"{number} {index} ".encode() + rng.randbytes(rng.choice((0, 10, 3000)))
            assert client.request(body, timeout=20) == body[::-1]
        return number

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == list(range(16))


def test_answers_may_come_out_of_order(client: Client, tail: Reverse) -> None:
    slow, fast = client.submit(b"held", timeout=30), client.submit(b"fast", timeout=30)
    assert fast.result() == b"tsaf"
    assert not slow.done()
    tail.gate.set()
    assert slow.result() == b"dleh"
    assert slow.done()
    assert slow.result() == b"dleh", "again: the same"


def test_a_thread_that_leaves_hands_the_reading_over(client: Client) -> None:
    # The leader's answer comes first, or its deadline passes: the followers must still get theirs.
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            waits = [(b"0010", 30), (b"0040", 30), (b"held", 0.02), (b"0060", 30), (b"0020", 30)]
            results = [pool.submit(client.request, body, timeout=timeout) for body, timeout in waits]
            for (body, _), result in zip(waits, results, strict=True):
                if body == b"held":
                    with pytest.raises(ReadTimeout):
                        result.result(30)
                else:
                    assert result.result(30) == body[::-1]


def test_two_threads_may_wait_for_one_answer(client: Client) -> None:
    pending = client.submit(b"0050", timeout=30)
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(pending.result) for _ in range(3)]
        assert [result.result(30) for result in results] == [b"0500"] * 3


def test_a_deadline_ends_the_wait_and_the_late_answer_is_dropped(client: Client, tail: Reverse) -> None:
    with pytest.raises(ReadTimeout, match=r"no answer within 0\.05 s"):
        client.request(b"held", timeout=0.05)
    assert [client.request(b"%04d" % number, timeout=30) for number in range(5)] == [
        b"0000",
        b"1000",
        b"2000",
        b"3000",
        b"4000",
    ]
    tail.gate.set()
    eventually(lambda: client.request(b"right", timeout=30) == b"thgir" and not client._protocol._abandoned)


def test_waiting_a_little_gives_nothing_up(client: Client, tail: Reverse) -> None:
    pending = client.submit(b"held", timeout=30)
    assert not pending.wait(0.01)
    tail.gate.set()
    assert pending.wait(30)
    assert pending.result() == b"dleh"


def test_a_cancelled_request(client: Client) -> None:
    pending = client.submit(b"0050", timeout=30)
    assert not client.idle
    pending.cancel()
    assert client.idle
    with pytest.raises(ReadTimeout, match="cancelled"):
        pending.result()
    assert client.request(b"next", timeout=30) == b"txen"
    answered = client.submit(b"x", timeout=30)
    assert answered.result() == b"x"
    answered.cancel()
    assert answered.result() == b"x", "an answer that is there stays"


def test_the_server_does_not_work_for_a_cancelled_request() -> None:
    answered: list[bytes] = []

    class Counted(Reverse):
        def answer(self, payload: bytes) -> bytes:
            answered.append(payload)
            return super().answer(payload)

    tail = Counted()
    with serve(tail, workers=1) as server, open_client(server.address, [ID]) as client:
        first = client.submit(b"held", timeout=30)
        eventually(lambda: answered == [b"held"])
        unwanted = [client.submit(b"unwanted", timeout=30) for _ in range(client.window - 1)]
        for one in unwanted:
            one.cancel()
        client.ping(timeout=30)  # behind the others: the server knows
        tail.gate.set()
        assert first.result() == b"dleh"
        assert client.request(b"next", timeout=30) == b"txen", "the places in the window are free again"
    assert answered == [b"held", b"next"]


def test_what_the_server_says_of_its_time(client: Client) -> None:
    slow = client.submit(b"0050", timeout=30)
    assert slow.server_seconds == 0
    slow.result()
    assert 0.05 <= slow.server_seconds < 30
    assert client.idle_timeout == 300
    client.ping(timeout=30)
    assert 0 <= client.queue_seconds < 30


def test_errors_of_the_tail_come_back_without_paths(client: Client) -> None:
    with pytest.raises(PayloadError, match="the payload is broken"):
        client.request(b"broken", timeout=30)
    with pytest.raises(RemoteError) as caught:
        client.request(b"raise", timeout=30)
    assert "ValueError: cannot read '<path>'" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "second line" not in str(caught.value)
    assert client.address in str(caught.value)
    assert client.request(b"on", timeout=30) == b"no", "the connection goes on"


def test_misuse_changes_nothing(client: Client) -> None:
    with pytest.raises(LocalProtocolError, match="route 2"):
        client.request(b"x", route=2, timeout=30)
    with pytest.raises(LocalProtocolError, match="11 bytes was given"):
        client.request(bytes(11), route=1, timeout=30)
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(LocalProtocolError, match="finite number above 0"):
            client.request(b"x", timeout=timeout)
    assert client.request(b"on", timeout=30) == b"no"


def test_beyond_the_window_is_busy_at_once(client: Client, tail: Reverse) -> None:
    pending = [client.submit(b"held", timeout=30) for _ in range(16)]
    with pytest.raises(ServerBusy, match="16 requests are unanswered"):
        client.submit(b"x", timeout=30)
    tail.gate.set()
    assert [one.result() for one in pending] == [b"dleh"] * 16
    assert client.request(b"on", timeout=30) == b"no"


def test_ping(client: Client, tail: Reverse) -> None:
    slow = client.submit(b"held", timeout=30)
    came = client.moved.came
    assert 0 < client.ping(timeout=20) < 20, "a ping passes the tail by"
    assert client.moved.came > came, "and is answered"
    tail.gate.set()
    assert slow.result() == b"dleh"


def test_submitting_without_reading_does_not_block_both_ends() -> None:
    # The answers fill the buffers of both ends unless the sender reads while it cannot write.
    body = bytes(2**20)
    with serve(Reverse(), window=64) as server, open_client(server.address, [ID]) as client:
        pending = [client.submit(body, timeout=20) for _ in range(40)]
        assert all(one.result() == body for one in pending)


def test_close_ends_what_waits(client: Client) -> None:
    pending = client.submit(b"held", timeout=60)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(pending.result)
        time.sleep(0.05)
        client.close()
        with pytest.raises(ConnectionLost, match="closed on this side"):
            result.result(20)
    assert client.closed
    with pytest.raises(ConnectionLost, match="closed on this side"):
        client.request(b"x", timeout=30)
    client.close()


def test_server_stops_gracefully() -> None:
    tail = Reverse()
    with serve(tail) as server, open_client(server.address, [ID]) as client:
        pending = client.submit(b"held", timeout=30)
        eventually(lambda: server.stats().pending == 1)
        stopping = threading.Thread(target=server.close)
        stopping.start()
        eventually(lambda: all(one._drain_end is not None for one in server._service.peers))
        tail.gate.set()
        assert pending.result() == b"dleh", "an answer in flight still comes"
        with pytest.raises(ConnectionLost):
            client.request(b"x", timeout=30)
        stopping.join(30)
        assert not stopping.is_alive()
        with pytest.raises(ConnectionLost, match=r"no connection to 127.*Connection refused.*compoff serve"):
            open_client(server.address, [ID])


def test_a_look_finds_the_goodbye_that_came_meanwhile() -> None:
    with serve(Reverse()) as server, open_client(server.address, [ID]) as client:
        assert client.request(b"x", timeout=30) == b"x"
        assert client.idle
        client.look()
        assert not client.closed
        server.readmit()
        eventually(lambda: client.look() or client.closed)


def test_it_leaves_no_thread_behind(client: Client) -> None:
    before = set(threading.enumerate())
    client.request(b"x", timeout=30)
    assert set(threading.enumerate()) <= before
