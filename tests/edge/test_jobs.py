"""Jobs: every way in which a tail can end, and what a client may learn of it."""

from __future__ import annotations

import logging
import math
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import compoff.edge.jobs
import compoff.edge.workers
from compoff.edge.batching import Job, Lane, Outcome
from compoff.edge.jobs import answer_now, describe_error, run_jobs
from compoff.edge.workers import Workers
from compoff.errors import BackendError, ConnectionLost, PayloadError, ServerBusy
from compoff.wire.messages import ErrorCode
from compoff.wire.replies import FULL
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Tail:
    """Does what it was made with."""

    artifact_id = bytes(range(32))
    max_payload_bytes = 100

    def __init__(self, do: Callable[[bytes], bytes]) -> None:
        self._do = do

    def answer(self, payload: bytes) -> bytes:
        return self._do(payload)


class Client:
    """Somebody who waits, or has gone."""

    def __init__(self, here: bool = True) -> None:
        self._here = here

    def wants(self, request_id: int) -> bool:
        return self._here

    def deliver(self, job: Job, outcome: Outcome | None) -> None:
        """Nothing: the outcomes are looked at where they come from."""

    def settle(self) -> None:
        """Nothing."""


def job(do: Callable[[bytes], bytes], *, deadline: float = math.inf, wanted: bool = True) -> Job:
    return Job(Lane(Tail(do), 1), b"payload", FULL, deadline, Client(wanted), 1, 0.0)


def run_job(one: Job) -> Outcome | None:
    [outcome] = run_jobs([one])
    return outcome


def raising(error: BaseException) -> Callable[[bytes], bytes]:
    def do(payload: bytes) -> bytes:
        raise error

    return do


def test_an_answer() -> None:
    assert run_job(job(bytes.upper)) == Outcome(b"PAYLOAD")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PayloadError("bad checksum\nat byte 3"), ErrorCode.PAYLOAD, "bad checksum"),
        (ServerBusy("no room"), ErrorCode.BUSY, "no room"),
        (ValueError("no"), ErrorCode.TAIL, "ValueError: no"),
        (ValueError(), ErrorCode.TAIL, "ValueError"),
        (RuntimeError("first\nTraceback: second"), ErrorCode.TAIL, "RuntimeError: first"),
        (MemoryError("too much"), ErrorCode.TAIL, "MemoryError: too much"),
        (SystemExit(1), ErrorCode.TAIL, "SystemExit: 1"),
        (KeyboardInterrupt(), ErrorCode.TAIL, "KeyboardInterrupt"),
    ],
)
def test_what_a_tail_raises(error: BaseException, code: ErrorCode, text: str) -> None:
    assert run_job(job(raising(error))) == Outcome(b"", code, text)


@pytest.mark.parametrize("base", [ValueError, PayloadError])
def test_an_error_without_words_does_not_end_the_thread(base: type[Exception]) -> None:
    class Mute(base):  # type: ignore[misc, valid-type]
        def __str__(self) -> str:
            raise RuntimeError("not even that")

    outcomes: list[Outcome | None] = []
    workers = Workers(1, 0, 0.0, lambda jobs, found, seconds: outcomes.extend(found))
    for do in (raising(Mute()), bytes.upper):
        one = job(do)
        workers.open(one.lane)
        workers.submit(one)
    workers.stop(30)
    [mute, right] = outcomes
    assert mute is not None
    assert "it has no words" in mute.text
    assert right == Outcome(b"PAYLOAD")


def test_an_answer_that_is_no_bytes() -> None:
    outcome = run_job(job(lambda payload: "text"))  # type: ignore[arg-type, return-value]
    assert outcome == Outcome(b"", ErrorCode.TAIL, "TypeError: the tail answered with str; expected bytes")


def test_an_expired_job_is_not_even_decoded() -> None:
    called: list[bytes] = []
    outcome = run_job(job(lambda payload: called.append(payload) or b"", deadline=time.monotonic() - 0.001))
    assert outcome is not None
    assert outcome.code is ErrorCode.DEADLINE
    assert run_job(job(lambda payload: called.append(payload) or b"", wanted=False)) is None
    assert called == []


def test_an_answer_after_the_deadline_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bytes] = []
    monkeypatch.setattr(compoff.edge.jobs, "time", SimpleNamespace(monotonic=lambda: 50.0 * len(called)))
    outcome = run_job(job(lambda payload: called.append(payload) or b"late", deadline=20.0))
    assert called
    assert outcome is not None
    assert (outcome.code, outcome.body) == (ErrorCode.DEADLINE, b"")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[Errno 2] No such file: '/srv/models/tail.pt2'", "[Errno 2] No such file: '<path>'"),
        ("C:\\models\\tail.pt2 is damaged", "<path> is damaged"),
        ("in ~/models/a and ../b/c or ./d", "in <path> and <path> or <path>"),
        ("(/a/b), then \"/c\"", "(<path>), then \"<path>\""),
        ("shapes 3/4 and n/a stay", "shapes 3/4 and n/a stay"),
        ("sizes (1, 3) x [4]: 5", "sizes (1, 3) x [4]: 5"),
        ("x" * 1000, "x" * 288),
        ("\x1b[2J", "?[2J"),
    ],
)  # fmt: skip
def test_paths_and_control_characters_are_taken_out(text: str, shown: str) -> None:
    assert describe_error(RuntimeError(text)).removeprefix("RuntimeError: ")[:288] == shown


def test_the_log_has_the_frames_and_not_the_payload(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "compoff.serve"):
        run_job(job(raising(ValueError("no"))))
    assert "in answer" in caplog.text
    assert "the tail of 00010203 raised ValueError: no" in caplog.text
    assert "payload'" not in caplog.text


class Together:
    """Takes several at once, and fails as it was told to."""

    artifact_id = bytes(range(32))
    max_payload_bytes = 100
    max_batch = 8
    outputs = ()

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.runs: list[int] = []

    def answer(self, payload: bytes) -> bytes:
        raise AssertionError("several are decoded and run")

    def decode(self, payload: bytes) -> bytes:
        return payload

    def run(self, decoded: Sequence[bytes]) -> list[list[Any]]:
        self.runs.append(len(decoded))
        raise self._error


def batch(tail: Together, deadlines: Sequence[float]) -> list[Job]:
    lane = Lane(tail, 8)
    return [
        Job(lane, b"x", FULL, deadline, Client(), number, 0.0) for number, deadline in enumerate(deadlines, start=1)
    ]


def test_after_a_batch_that_failed_each_is_tried_alone_while_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    tail = Together(ValueError("no"))
    # A batch takes 50 s of this clock.
    monkeypatch.setattr(compoff.edge.jobs, "time", SimpleNamespace(monotonic=lambda: 50.0 * len(tail.runs)))
    outcomes = run_jobs(batch(tail, [math.inf, 20.0, 30.0, math.inf]))
    assert tail.runs == [4, 1, 1]
    codes = [outcome.code for outcome in outcomes if outcome is not None]
    assert codes == [ErrorCode.TAIL, ErrorCode.DEADLINE, ErrorCode.DEADLINE, ErrorCode.TAIL]


@pytest.mark.parametrize("cause", [TimeoutError("late"), ConnectionLost("gone")])
def test_where_nobody_answered_a_batch_it_is_not_waited_for_once_more(cause: Exception) -> None:
    error = BackendError("no answer within 30 s")
    error.__cause__ = cause
    tail = Together(error)
    outcomes = run_jobs(batch(tail, [math.inf] * 4))
    assert tail.runs == [4]
    assert [outcome.code for outcome in outcomes if outcome is not None] == [ErrorCode.TAIL] * 4


def test_jobs_are_decoded_here_where_no_other_thread_does() -> None:
    class Lengths(Together):
        def run(self, decoded: Sequence[bytes]) -> list[list[Any]]:
            return [[np.array(len(one))] for one in decoded]

    one, two, now = batch(Lengths(AssertionError()), [math.inf] * 3)
    two.payload = now.payload = b"xx"
    outcomes = [*run_jobs([one, two]), answer_now(now)]
    assert [outcome and unpack(outcome.body) for outcome in outcomes] == [[1], [2], [2]]


class Own:
    """Takes several at once, and is not what it says."""

    artifact_id = bytes(range(32))
    max_payload_bytes = 100
    outputs = ()

    def __init__(self, decoded: Any, max_batch: Any = 4, answers: Any = None) -> None:
        self._decoded = decoded
        self._answers = answers
        self._max_batch = max_batch
        self.right = True

    @property
    def max_batch(self) -> Any:
        if self.right:
            return 4
        if isinstance(self._max_batch, Exception):
            raise self._max_batch
        return self._max_batch

    def answer(self, payload: bytes) -> bytes:
        raise AssertionError("several are decoded and run")

    def decode(self, payload: bytes) -> Any:
        return [1] if self.right else self._decoded

    def run(self, decoded: Sequence[Any]) -> Any:
        return [[] for _ in decoded] if self.right or self._answers is None else self._answers


class Lying(list[Any]):
    """Has another length than it says."""

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("decoders", [0, 1])
@pytest.mark.parametrize(
    ("tail", "text"),
    [
        (Own(iter([1])), "TypeError: object of type 'list_iterator' has no len()"),
        (Own(None), "TypeError: object of type 'NoneType' has no len()"),
        (Own([1], ValueError("no")), "ValueError: no"),
        (Own([1], "4"), "TypeError: "),
        (Own([1], answers=Lying()), "RuntimeError: the tail answered 0 of 1 payloads"),
    ],
)
def test_a_tail_of_ones_own_that_is_not_what_it_says_does_not_end_the_thread(
    tail: Own, text: str, decoders: int, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[Outcome | None] = []
    workers = Workers(1, decoders, 0.0, lambda jobs, found, seconds: outcomes.extend(found))
    tail.right = True
    lane = Lane(tail, 8)
    workers.open(lane)
    for number, right in enumerate((False, False, True)):
        tail.right = right
        workers.submit(Job(lane, b"x", FULL, time.monotonic() + 60, Client(), number, time.perf_counter()))
        deadline = time.monotonic() + 30
        while len(outcomes) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    workers.stop(30)
    codes = [outcome.code for outcome in outcomes if outcome is not None]
    assert codes == [ErrorCode.TAIL, ErrorCode.TAIL, None]
    assert all(outcome is not None and outcome.text.startswith(text) for outcome in outcomes[:2])
    assert lane.running == 0
    assert text in caplog.text


@pytest.mark.parametrize("decoded", [None, iter([1])])
def test_what_has_no_length_is_not_taken_for_decoded(decoded: Any) -> None:
    tail = Own(decoded)
    one = Job(Lane(tail, 8), b"x", FULL, math.inf, Client(), 1, 0.0)
    tail.right = False
    one.decode(tail)
    assert isinstance(one.failure, TypeError)
    assert one.decoded is None


def test_an_error_of_the_servers_own_is_an_outcome_and_does_not_end_the_thread(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> list[Outcome | None]:
        monkeypatch.undo()
        raise RuntimeError("a mistake in /srv/compoff/jobs.py")

    monkeypatch.setattr(compoff.edge.workers, "run_jobs", fail)
    outcomes: list[Outcome | None] = []
    workers = Workers(1, 0, 0.0, lambda jobs, found, seconds: outcomes.extend(found))
    for one in (job(bytes.upper), job(bytes.upper)):
        workers.open(one.lane)
        workers.submit(one)
    workers.stop(30)
    assert outcomes == [Outcome(b"", ErrorCode.TAIL, "RuntimeError: a mistake in <path>"), Outcome(b"PAYLOAD")]
    assert "a batch of requests failed" in caplog.text


def test_a_tail_that_fails_every_request_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    failing = job(raising(ValueError("no")))
    for _ in range(50):
        outcome = run_job(failing)
        assert outcome is not None
        assert outcome.code is ErrorCode.TAIL
    assert len(caplog.records) == 11
    assert "more messages like the last are left out" in caplog.messages[-1]
