"""A batch of requests through a tail: for each an outcome, whatever the tail does; what it raises becomes words.

Knows nothing of connections, queues and threads: ``batching`` forms the batch, ``workers`` gives it the thread.
"""

from __future__ import annotations

import re
import time
import traceback
from typing import TYPE_CHECKING, Any, cast

from compoff.edge.batching import Outcome
from compoff.errors import BackendError, FeatureError, PayloadError, ServerBusy, WireError
from compoff.wire.messages import ErrorCode, one_line
from compoff.wire.replies import reduce_reply
from compoff.wire.tensors import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from compoff.edge.batching import Job
    from compoff.edge.servable import Batchable

__all__ = ["answer_now", "describe_error", "run_jobs", "went_through"]

# A word with a separator at its start, after a drive, or after a dot or tilde; "16/3" and "n/a" are none.
_PATH = re.compile(r"(?<![\w/\\.~])(?:[A-Za-z]:|~\w*|\.{1,2})?[/\\][^\s'\"`,;:)\]}>]+")
_MAX_WORDS = 300


_TOO_LATE = Outcome(b"", ErrorCode.DEADLINE, "its deadline had passed before its turn came")
_LATE = Outcome(b"", ErrorCode.DEADLINE, "the answer was ready only after its deadline")
_OVERDUE = Outcome(b"", ErrorCode.DEADLINE, "its deadline passed before there was an answer")


def went_through(outcomes: Iterable[Outcome | None]) -> int:
    """How many jobs the tail really answered: neither refused before it nor dropped, nor failed in it.

    Args:
        outcomes: What became of the jobs.

    Returns:
        Their number; only they show how long the tail takes.
    """
    return sum(outcome is not None and (outcome.code is None or outcome is _LATE) for outcome in outcomes)


def answer_now(job: Job) -> Outcome:
    """Answer one job that has just come."""
    tail = job.lane.batchable
    outcome = _answer_one(job) if tail is None else _answer_batch(tail, [job], None)[0]
    return _LATE if outcome.code is None and time.monotonic() >= job.deadline else outcome


def run_jobs(jobs: Sequence[Job], decode: Callable[[Job, Batchable], None] | None = None) -> list[Outcome | None]:
    """Answer jobs of one lane.

    Args:
        jobs: The jobs; several only where the tail can take several.
        decode: Has a job decoded, in this thread or another; None to do it here.

    Returns:
        An outcome for each, or None where the client has gone or waits no longer.
    """
    outcomes: list[Outcome | None] = [None] * len(jobs)
    wanted: list[int] = []
    now = time.monotonic()
    for index, job in enumerate(jobs):
        if now >= job.deadline:
            outcomes[index] = _TOO_LATE
        elif job.asker.wants(job.request_id):
            wanted.append(index)
    tail = jobs[0].lane.batchable
    if tail is None:
        for index in wanted:
            outcomes[index] = _answer_one(jobs[index])
    else:
        answers = _answer_batch(tail, [jobs[index] for index in wanted], decode)
        for index, outcome in zip(wanted, answers, strict=True):
            outcomes[index] = outcome
    now = time.monotonic()
    for index in wanted:
        if now >= jobs[index].deadline and cast("Outcome", outcomes[index]).code is None:
            outcomes[index] = _LATE
    return outcomes


def _answer_one(job: Job) -> Outcome:
    try:
        body = job.lane.servable.answer(job.payload)
        if not isinstance(body, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a tail of the user's own may err
            message = f"the tail answered with {type(body).__name__}; expected bytes"
            raise TypeError(message)
    except BaseException as error:  # also SystemExit: one tail's exit must not end the answers of the others
        return _failure(job, error)
    return Outcome(body)


def _answer_batch(
    tail: Batchable, jobs: Sequence[Job], decode: Callable[[Job, Batchable], None] | None
) -> list[Outcome]:
    for job in jobs:
        if decode is None:
            job.decode(tail)
        else:
            decode(job, tail)
    outcomes = {id(job): _failure(job, job.failure) for job in jobs if job.failure is not None}
    right = [job for job in jobs if job.failure is None]
    try:
        groups = _groups(right, tail.max_batch)
    except BaseException as error:  # as in _answer_one
        outcomes |= {id(job): _failure(job, error) for job in right}
        groups = []
    for group in groups:
        for job, outcome in zip(group, _run(tail, group), strict=True):
            outcomes[id(job)] = outcome
    return [outcomes[id(job)] for job in jobs]


def _groups(jobs: Sequence[Job], max_samples: int) -> list[list[Job]]:
    """Jobs that go through the tail in one run: one payload may hold as many samples as a run takes."""
    groups: list[list[Job]] = []
    room = 0
    for job in jobs:
        if not groups or job.num_samples > room:
            groups.append([])
            room = max_samples
        groups[-1].append(job)
        room -= job.num_samples
    return groups


def _run(tail: Batchable, jobs: Sequence[Job]) -> list[Outcome]:
    for job in jobs:
        job.run = id(jobs[0])  # not the job: one that held itself would keep its payload for the garbage collector
    try:
        every_answer = _answers(tail, jobs)
        if len(every_answer) != len(jobs):
            message = f"the tail answered {len(every_answer)} of {len(jobs)} payloads"
            raise RuntimeError(message)
    except BaseException as error:  # as in _answer_one
        if len(jobs) == 1:
            return [_failure(jobs[0], error)]
        if isinstance(error, BackendError) and isinstance(error.__cause__, (TimeoutError, WireError)):
            # Nobody answered at all: to wait for that once more for each would keep everybody else waiting.
            return [_failure(job, error) for job in jobs]
        # One request of the batch may be to blame: the others get their answers, each alone.
        return [_alone(tail, job) for job in jobs]
    punctual = jobs[0].lane.punctual is not None
    return [
        _OVERDUE if punctual and answer is None else _reduced(job, answer)
        for job, answer in zip(jobs, every_answer, strict=True)
    ]


def _answers(tail: Batchable, jobs: Sequence[Job]) -> list[Any]:
    """What the tail says; one of the user's own may return anything."""
    decoded = [job.decoded for job in jobs]
    punctual = jobs[0].lane.punctual
    if punctual is None:
        return list(tail.run(decoded))
    return list(punctual.run_until(decoded, [job.deadline for job in jobs]))


def _alone(tail: Batchable, job: Job) -> Outcome:
    """A job of a batch that failed, if anybody still waits for it."""
    if time.monotonic() >= job.deadline or not job.asker.wants(job.request_id):
        return _LATE
    return _run(tail, [job])[0]


def _reduced(job: Job, answer: list[NDArray[Any]]) -> Outcome:
    try:
        return Outcome(pack(reduce_reply(job.reply, answer)))
    except FeatureError as error:
        return Outcome(b"", ErrorCode.REPLY, _words(error))
    except BaseException as error:  # as in _answer_one
        return _failure(job, error)


def _failure(job: Job, error: BaseException) -> Outcome:
    if isinstance(error, PayloadError):
        return Outcome(b"", ErrorCode.PAYLOAD, _words(error))
    if isinstance(error, ServerBusy):  # of the process that a front asks
        return Outcome(b"", ErrorCode.BUSY, _words(error))
    text = describe_error(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    job.lane.failures.log("the tail of %s raised %s\n%s", job.lane.servable.artifact_id.hex()[:8], text, frames)
    return Outcome(b"", ErrorCode.TAIL, text)


def describe_error(error: BaseException) -> str:
    r"""Type and first line of an exception, without file paths: what a client may know of it.

    Examples:
        >>> describe_error(ValueError("no file /srv/models/tail.pt2\nsecret"))
        'ValueError: no file <path>'

    Source: this project.
    """
    words = _words(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _words(error: BaseException) -> str:
    try:
        return _scrub(str(error))
    except BaseException:  # an exception of the tail's own that cannot even say what it is must not end the thread
        return "it has no words"


def _scrub(text: str) -> str:
    return _PATH.sub("<path>", one_line(text))[:_MAX_WORDS]
