"""Requests of many devices ─► one batch: who comes next, how many go together, how long to wait for more.

Plain data without threads: whoever holds a ``Lane`` across threads locks it. ``workers`` does, and runs what comes out.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from compoff.edge.servable import Batchable, Punctual
from compoff.edge.sparing import Sparing
from compoff.edge.stats import TailCounters

if TYPE_CHECKING:
    import threading
    from collections.abc import Sized

    from compoff.edge.servable import Servable
    from compoff.wire.messages import ErrorCode
    from compoff.wire.replies import ReplyForm

__all__ = ["Asker", "FairQueue", "Job", "Lane", "Outcome", "Pace"]

_logger = logging.getLogger("compoff.serve")
_MOST_FAILURES = 10  # of a tail, a minute: each with its traceback
_PROMPT = 60e-6  # seconds; a hand-over to another thread and back costs about as much
_STREAK = 32  # answers in a row that have to be prompt before a tail is taken for a prompt one
_SLOW = 5e-3  # seconds; a prompt tail that once takes this long has to show twice as many prompt answers
_LONGEST_STREAK = 2**20
_WAIT_SHARE = 0.25  # of the time that the last batch took
_SMOOTHING = 0.1  # weight of the newest measurement in a running mean


class Outcome(NamedTuple):
    """What became of a job: a body, or an error code with words."""

    body: bytes
    code: ErrorCode | None = None
    text: str = ""


class Asker(Protocol):
    """Who waits for the outcome of a job: a connection."""

    def wants(self, request_id: int) -> bool:
        """Whether the client is there and still waits; any thread may ask."""
        ...

    def deliver(self, job: Job, outcome: Outcome | None) -> None:
        """Take an outcome, or None where nobody waits for one; in the event loop's thread."""
        ...

    def settle(self) -> None:
        """Send what was delivered; in the event loop's thread."""
        ...


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way through a tail.

    Args:
        lane: The queue of its tail.
        payload: What the client sent.
        reply: The form in which it wants the answer.
        deadline: Moment of ``time.monotonic()`` at which the client stops waiting; infinite for none.
        asker: Whose request it is.
        request_id: Which of its requests.
        arrived: Moment of ``time.perf_counter()`` at which it was taken.

    Source: this project.
    """

    lane: Lane
    payload: bytes
    reply: ReplyForm
    deadline: float
    asker: Asker
    request_id: int
    arrived: float
    claimed: bool = False  # whether a thread decodes it, or has
    decoded: Sized | None = None
    num_samples: int = 0  # of what was decoded
    run: int = 0  # the same for those that went through the tail together
    failure: BaseException | None = None  # what decoding raised
    ready: threading.Event | None = None  # there where a thread of the pool decodes it

    def decode(self, tail: Batchable) -> None:
        """Decode the payload, or keep why it cannot be."""
        try:
            decoded = tail.decode(self.payload)
            self.num_samples = len(decoded)
            self.decoded = decoded  # last: another thread may look at it already
        except BaseException as error:  # it becomes this request's answer, whatever it is
            self.failure = error


class FairQueue:
    """Jobs that wait, taken in turn from everyone who waits, and from each in the order they came.

    Examples:
        >>> queue = FairQueue()
        >>> len(queue)
        0

    Source: round robin of queues: RFC 970.
    """

    def __init__(self) -> None:
        self._of: dict[Asker, deque[Job]] = {}  # in the order of their turns
        self._size = 0

    def __len__(self) -> int:
        """Jobs that wait."""
        return self._size

    def push(self, job: Job) -> None:
        """Add a job behind the others of its asker, who comes last if it had none."""
        self._of.setdefault(job.asker, deque()).append(job)
        self._size += 1

    def pop(self) -> Job:
        """Take the job whose turn it is."""
        asker = next(iter(self._of))
        own = self._of.pop(asker)
        job = own.popleft()
        if own:
            self._of[asker] = own
        self._size -= 1
        return job

    def count(self, asker: Asker) -> int:
        """Jobs of one asker that wait."""
        return len(self._of.get(asker, ()))

    def greediest(self) -> Asker | None:
        """Who has the most jobs waiting, if anyone has."""
        return max(self._of, key=self.count, default=None)

    def pop_newest(self, asker: Asker) -> Job:
        """Take back the last job of an asker."""
        own = self._of[asker]
        job = own.pop()
        if not own:
            del self._of[asker]
        self._size -= 1
        return job


class Pace:
    """How long a tail takes: whether it is prompt enough to be asked without handing over to another thread.

    One that answered in microseconds for a while is; a slow answer takes that back, and it is trusted later each time.

    Examples:
        >>> pace = Pace()
        >>> for _ in range(32):
        ...     pace.clock(1e-6)
        >>> pace.prompt
        True
        >>> pace.clock(0.5)
        >>> pace.prompt
        False

    Source: this project.
    """

    def __init__(self) -> None:
        self._streak = 0
        self._needed = _STREAK

    @property
    def prompt(self) -> bool:
        """Whether the tail answers in microseconds."""
        return self._streak >= self._needed

    def clock(self, seconds: float, *, through: bool = True) -> None:
        """Note how long one answer took; a quick refusal that never reached the tail says nothing of it."""
        if seconds <= _PROMPT:
            self._streak = min(self._streak + through, 4 * self._needed)
        elif seconds <= _SLOW:
            self._streak //= 2  # another process may have had the processor: a few of these in a row count
        else:
            if self.prompt:
                self._needed = min(2 * self._needed, _LONGEST_STREAK)
            self._streak = 0


class Lane:
    """The jobs that wait for one tail.

    Args:
        servable: The tail.
        max_batch: Jobs that may go together, where the tail can take several.
        counters: The counters of the tail whose place this one takes, which go on; None to start at nothing.

    Source: this project.
    """

    def __init__(self, servable: Servable, max_batch: int, counters: TailCounters | None = None) -> None:
        self.servable = servable
        self.batchable = servable if isinstance(servable, Batchable) else None
        self.punctual = servable if isinstance(servable, Punctual) else None
        self.elsewhere = bool(getattr(servable, "elsewhere", False))  # whether it may have to be waited for
        self.max_batch = max_batch if self.batchable is not None else 1
        self.waiting = FairQueue()
        self.running = 0  # jobs taken out and not answered
        self.entrusted = 0  # jobs that the workers have, waiting or running, as the event loop knows them
        self.ahead = 0  # jobs that wait and have been given to the decoding threads
        self.closed = False  # whether no further job can come
        self.quorum = 1  # jobs that have to wait here before an idle worker is woken
        self.pace = Pace()
        self.counters = TailCounters(servable.artifact_id) if counters is None else counters
        self.seconds_per_job = 0.0  # running mean
        self.failures = Sparing(_logger, logging.ERROR, most=_MOST_FAILURES)
        self._since = math.inf  # when the oldest of the jobs began to wait for company
        self._last_batch = 1
        self._last_seconds = 0.0

    def push(self, job: Job) -> None:
        """Add a job."""
        if not self.waiting:
            self._since = job.arrived
        self.waiting.push(job)

    def patience(self, now: float, max_wait: float) -> float:
        """Seconds until what waits should go as it is; 0 for at once.

        Only after a batch of several is there anything to wait for: who is alone goes at once. And never is waited
        longer than a part of what a batch takes, or a fast tail would lose more than it gains.
        """
        if len(self.waiting) >= min(self.max_batch, self._last_batch):
            return 0.0
        return max(0.0, self._since + min(max_wait, _WAIT_SHARE * self._last_seconds) - now)

    def expected(self) -> int:
        """Jobs that would go together without waiting for more: as many as the last time."""
        return min(self.max_batch, self._last_batch)

    def take(self) -> list[Job]:
        """The next batch, fairly."""
        jobs = [self.waiting.pop() for _ in range(min(self.max_batch, len(self.waiting)))]
        self._last_batch = len(jobs)
        self._since = -math.inf  # what is left has waited long enough
        self.quorum, self.ahead = 1, 0
        self.running += len(jobs)
        return jobs

    def done(self, num_jobs: int, num_through: int, seconds: float) -> None:
        """Note that a batch is over, how many of its jobs went through the tail, and how long that took."""
        self.running -= num_jobs
        if not num_through:
            return
        self._last_seconds = seconds
        share = seconds / num_through
        self.seconds_per_job += (share - self.seconds_per_job) * _SMOOTHING if self.seconds_per_job else share

    @property
    def expected_wait(self) -> float:
        """Seconds until a job that came now would be answered, were there one worker and this tail alone."""
        return (len(self.waiting) + self.running) * self.seconds_per_job
