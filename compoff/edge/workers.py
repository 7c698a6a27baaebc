"""Threads that run tails, and threads that decode for them what still waits while they are busy.

Knows nothing of connections and event loops: outcomes go to a callback. What goes together is for ``batching``, what
becomes of it for ``jobs``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from compoff.edge.batching import Outcome
from compoff.edge.jobs import describe_error, run_jobs, went_through
from compoff.wire.messages import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compoff.edge.batching import Asker, Job, Lane
    from compoff.edge.servable import Batchable

__all__ = ["Workers"]

_logger = logging.getLogger("compoff.serve")


class Workers:
    """A few threads that take batches of jobs, from the lanes in turn.

    Args:
        count: Number of threads that run tails.
        decoders: Number of threads that decode; 0 to leave that to the others.
        max_wait: Seconds that jobs may wait for as many as the last batch had.
        deliver: Takes jobs with their outcomes and the seconds that they took; called by a worker thread.

    Source: this project.
    """

    def __init__(
        self,
        count: int,
        decoders: int,
        max_wait: float,
        deliver: Callable[[Sequence[Job], Sequence[Outcome | None], float], None],
    ) -> None:
        """Start the threads; as daemons, so that a tail that hangs cannot keep the process alive."""
        self._count = count
        self._max_wait = max_wait
        self._deliver = deliver
        self._lock = threading.Lock()  # guards the lanes and all that is below
        self._lanes: deque[Lane] = deque()
        self._idle = 0  # workers that wait, less the wake-ups under way to them
        self._stopping = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._to_decode: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._num_decoders = decoders
        work = [(self._work, f"compoff-tail-{index}") for index in range(count)]
        work += [(self._decode_ahead, f"compoff-decode-{index}") for index in range(decoders)]
        self._threads = [threading.Thread(target=target, name=name, daemon=True) for target, name in work]
        for thread in self._threads:
            thread.start()

    def shared(self, seconds: float) -> float:
        """How long work takes that all workers share; none where one of them has nothing to do.

        Args:
            seconds: How long one of them would take.
        """
        return 0.0 if self._idle > 0 else seconds / self._count

    def open(self, lane: Lane) -> None:
        """Serve another lane."""
        with self._lock:
            self._lanes.append(lane)

    def close(self, lane: Lane) -> None:
        """Serve a lane no longer: the jobs that wait are done, and then nothing here holds its tail."""
        with self._lock:
            lane.closed = True
            if not lane.waiting and lane in self._lanes:
                self._lanes.remove(lane)

    def submit(self, job: Job) -> None:
        """Have a job done."""
        lane = job.lane
        with self._lock:
            lane.push(job)
            wake = self._idle > 0 and len(lane.waiting) >= lane.quorum
            self._idle -= wake
            ahead = not wake and self._num_decoders > 0 and lane.batchable is not None and lane.ahead < lane.max_batch
            lane.ahead += ahead
        if wake:
            self._wake.put(None)
        elif ahead:
            self._to_decode.put(job)

    def displace(self, asker: Asker) -> Job | None:
        """Take back the newest job of whoever has the most waiting, for the sake of one who has fewer by two."""
        with self._lock:
            own = sum(lane.waiting.count(asker) for lane in self._lanes)
            most = [(lane, other) for lane in self._lanes if (other := lane.waiting.greediest()) is not None]
            lane, other = max(most, key=lambda found: found[0].waiting.count(found[1]), default=(None, None))
            if lane is None or other is None or lane.waiting.count(other) < own + 2:
                return None
            return lane.waiting.pop_newest(other)

    def stop(self, timeout: float) -> None:
        """End the threads after the jobs that wait, and spend ``timeout`` seconds on that at most."""
        with self._lock:
            self._stopping = True
        for _ in self._threads:
            self._wake.put(None)
            self._to_decode.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while jobs := self._next_batch():
            start = time.perf_counter()
            outcomes = self._outcomes(jobs)
            seconds = time.perf_counter() - start
            with self._lock:
                jobs[0].lane.done(len(jobs), went_through(outcomes), seconds)
            self._deliver(jobs, outcomes, seconds)
            del jobs, outcomes  # payloads must not live on while the thread waits for the next

    def _outcomes(self, jobs: Sequence[Job]) -> list[Outcome | None]:
        try:
            return run_jobs(jobs, self._decode)
        except BaseException as error:  # a thread that ended would leave these and all after them without an outcome
            _logger.exception("a batch of requests failed")
            return [Outcome(b"", ErrorCode.TAIL, describe_error(error)) for _ in jobs]

    def _next_batch(self) -> list[Job]:
        """Wait for jobs; none when it is time to stop."""
        while True:
            with self._lock:
                lane, patience = self._choose(time.perf_counter())
                if lane is not None:
                    return self._take(lane)
                if self._stopping:
                    return []
                self._idle += 1
            self._sleep(patience)

    def _choose(self, now: float) -> tuple[Lane | None, float | None]:
        """A lane that can go, those that went last coming last; or how long until one can, None for no end."""
        patience: float | None = None
        for lane in tuple(self._lanes):
            if not lane.waiting:
                if lane.closed:
                    self._lanes.remove(lane)
                continue
            left = 0.0 if self._stopping else lane.patience(now, self._max_wait)
            if left == 0.0:
                self._lanes.remove(lane)
                self._lanes.append(lane)
                return lane, None
            lane.quorum = lane.expected()
            patience = left if patience is None else min(patience, left)
        return None, patience

    def _take(self, lane: Lane) -> list[Job]:
        jobs = lane.take()
        for other in self._lanes:
            if other.quorum > 1:  # its watch is left: whoever comes next shall not count on this thread
                other.quorum = 1
                if self._idle > 0:
                    self._idle -= 1
                    self._wake.put(None)
        return jobs

    def _sleep(self, seconds: float | None) -> None:
        try:
            self._wake.get(timeout=seconds)
        except queue.Empty:
            with self._lock:
                try:
                    self._wake.get_nowait()  # a job was faster, and has counted this thread out already
                except queue.Empty:
                    self._idle -= 1

    def _decode_ahead(self) -> None:
        while (job := self._to_decode.get()) is not None:
            with self._lock:
                mine = not job.claimed
                if mine:
                    job.claimed, job.ready = True, threading.Event()
            tail = job.lane.batchable
            if mine and tail is not None and job.ready is not None:
                if job.deadline > time.monotonic() and job.asker.wants(job.request_id):
                    job.decode(tail)
                    job.ready.set()
                else:
                    self._unclaim(job)
            del job, tail

    def _unclaim(self, job: Job) -> None:
        """Leave a job that is not worth decoding as it was: its turn will say why."""
        with self._lock:
            ready, job.claimed, job.ready = job.ready, False, None
        if ready is not None:
            ready.set()

    def _decode(self, job: Job, tail: Batchable) -> None:
        """Decode a job, or wait for the thread that is at it."""
        while job.decoded is None and job.failure is None:
            with self._lock:
                ready = job.ready
                if not job.claimed:
                    job.claimed = True
            if ready is None:
                job.decode(tail)
                return
            ready.wait()
