"""Threads that run tails: one payload in, one outcome out; what a tail raises becomes words for the client.

Knows nothing of connections and event loops: a job brings its own way to deliver the outcome.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from compoff.errors import PayloadError
from compoff.wire.messages import ErrorCode, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Job", "Outcome", "Servable", "Workers", "describe_error", "run_job"]

_logger = logging.getLogger("compoff.serve")
# A word with a separator at its start, after a drive, or after a dot or tilde; "16/3" and "n/a" are none.
_PATH = re.compile(r"(?<![\w/\\.~])(?:[A-Za-z]:|~\w*|\.{1,2})?[/\\][^\s'\"`,;:)\]}>]+")
_MAX_WORDS = 300


class Servable(Protocol):
    """What a server can answer with; ``compoff.edge.tail`` has the real one.

    Source: this project.
    """

    @property
    def artifact_id(self) -> bytes:
        """SHA-256 of the export, 32 bytes; only clients that name it get here."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """Longest payload that can be right, in bytes; nothing longer is read."""
        ...

    def answer(self, payload: bytes) -> bytes:
        """Body of the reply; called by one of the worker threads.

        Raises:
            PayloadError: The payload cannot be decoded; the client is told so.
        """
        ...


class Outcome(NamedTuple):
    """What became of a job: a body, or an error code with words."""

    body: bytes
    code: ErrorCode | None = None
    text: str = ""


@dataclass(frozen=True)
class Job:
    """One request on its way through a tail.

    Args:
        servable: The tail.
        payload: What the client sent.
        deadline: Moment of ``time.monotonic()`` at which the client stops waiting; infinite for none.
        wanted: Whether the client is still there; any thread may ask.
        deliver: Takes the outcome, or None where nobody waits for one; called by a worker thread.

    Source: this project.
    """

    servable: Servable
    payload: bytes
    deadline: float
    wanted: Callable[[], bool]
    deliver: Callable[[Outcome | None], None]


class Workers:
    """A few threads that take jobs in the order they came.

    Args:
        count: Number of threads.

    Source: this project.
    """

    def __init__(self, count: int) -> None:
        """Start the threads; as daemons, so that a tail that hangs cannot keep the process alive."""
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"compoff-tail-{index}", daemon=True) for index in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._queue.put(job)

    def stop(self, timeout: float) -> None:
        """End the threads after the jobs that are queued, and wait ``timeout`` seconds for that at most."""
        for _ in self._threads:
            self._queue.put(None)
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.deliver(run_job(job))
            del job  # a payload must not live on while the thread waits for the next


def run_job(job: Job) -> Outcome | None:
    """Answer one job; whatever the tail does, there is an outcome.

    Returns:
        The outcome, or None where the client has gone.
    """
    if not job.wanted():
        return None
    if time.monotonic() >= job.deadline:
        return Outcome(b"", ErrorCode.DEADLINE, "its deadline had passed before its turn came")
    try:
        body = _answer(job)
    except PayloadError as error:
        return Outcome(b"", ErrorCode.PAYLOAD, _words(error))
    except BaseException as error:  # also SystemExit: one tail's exit must not end the answers of the others
        text = describe_error(error)
        frames = "".join(traceback.format_tb(error.__traceback__))
        _logger.error("the tail of %s raised %s\n%s", job.servable.artifact_id.hex()[:8], text, frames)
        return Outcome(b"", ErrorCode.TAIL, text)
    if time.monotonic() >= job.deadline:
        return Outcome(b"", ErrorCode.DEADLINE, "the answer was ready only after its deadline")
    return Outcome(body)


def describe_error(error: BaseException) -> str:
    r"""Type and first line of an exception, without file paths: what a client may know of it.

    Examples:
        >>> describe_error(ValueError("no file /srv/models/tail.pt2\nsecret"))
        'ValueError: no file <path>'

    Source: this project.
    """
    words = _words(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _answer(job: Job) -> bytes:
    body = job.servable.answer(job.payload)
    if not isinstance(body, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a tail of the user's own may err
        message = f"the tail answered with {type(body).__name__}; expected bytes"
        raise TypeError(message)
    return body


def _words(error: BaseException) -> str:
    try:
        return _scrub(str(error))
    except BaseException:  # an exception of the tail's own that cannot even say what it is must not end the thread
        return "it has no words"


def _scrub(text: str) -> str:
    return _PATH.sub("<path>", one_line(text))[:_MAX_WORDS]
