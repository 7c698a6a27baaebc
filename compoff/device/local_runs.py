"""The whole model in a thread of its own: one run at a time, and none for a call whose time will be over by then."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import queue
import threading
import time
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from compoff.errors import ReadTimeout
from compoff.forks import leave_to_parent
from compoff.printable import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from compoff.device.calls import Call
    from compoff.device.timing import Estimate

__all__ = ["MARGIN", "LocalRuns", "nobody"]

_logger = logging.getLogger("compoff.connect")
MARGIN = 0.05  # seconds that a thread may take to wake on a busy machine
_MANY = 8  # entries that wait from which those that nobody waits for any more are taken out, with their inputs
_LONGEST_END = 5.0  # seconds that a process which ends waits for the run under way

_Entry: TypeAlias = "tuple[Future[Any], Callable[[], Any]]"
_Waiting: TypeAlias = "queue.SimpleQueue[_Entry | None]"


class LocalRuns:
    """What runs the whole model for one call after another; its thread is made when it is first needed.

    Args:
        whole: The whole model, as each head's calls call it.
        seconds: How long it takes; each run counts.

    Source: this project.
    """

    def __init__(self, whole: Sequence[Callable[..., Any]], seconds: Estimate) -> None:
        """Start without a thread."""
        self._whole = whole
        self._seconds = seconds
        self._lock = threading.Lock()
        self._closed = False
        self._fails = False  # since it last answered, which the log has heard of
        self._waiting: _Waiting = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending: weakref.finalize[..., Any] | None = None
        weakref.finalize(self, self._waiting.put, None).atexit = False  # nobody asks any more
        leave_to_parent(self)

    def submit(self, call: Call, *, hurry: bool) -> Future[Any]:
        """Have the whole model run, after those that were submitted before.

        Args:
            call: The call.
            hurry: Whether the edge may answer first: the run is left out where it has waited for others and cannot end
                by the call's deadline, and the log hears of a model that raises, which nobody may wait for.

        Returns:
            The output to come.

        Raises:
            RuntimeError: This was closed.
        """
        asked = time.perf_counter() if hurry else None
        context, future = contextvars.copy_context(), Future[Any]()
        with self._lock:
            if self._closed:
                raise RuntimeError("these local runs were closed")
            if self._thread is None:
                self._thread, self._ending = _started(self._waiting)
            if self._waiting.qsize() >= _MANY:  # a run that hangs would keep all that came after it
                _sift(self._waiting)
            self._waiting.put((future, lambda: context.run(self._run, call, asked)))
        return future

    def abandon(self) -> None:
        """Wait for no thread at the end of a forked child: it is not there."""
        if self._ending is not None:
            self._ending.detach()

    def close(self) -> None:
        """Let go of the thread and cancel what waits for it; a run under way is not waited for."""
        with self._lock:
            self._closed = True
            _cancel(self._waiting)
            self._waiting.put(None)

    def _run(self, call: Call, asked: float | None) -> Any:
        started = time.perf_counter()
        # What has waited for others and cannot end in time any more would only keep those behind it waiting.
        waited = asked is not None and started - asked > MARGIN
        if waited and time.monotonic() + (self._seconds.mean or 0.0) > call.deadline:
            raise nobody(call, "it had others to answer first")
        try:
            output = call.run_whole(self._whole)
        except Exception as error:
            if asked is not None and not self._fails:
                self._fails = True
                _logger.warning("the whole model on this device raises, and cannot stand in: %s", told(error))
            raise
        self._fails = False
        self._seconds.add(time.perf_counter() - started)
        return output


def _started(waiting: _Waiting) -> tuple[threading.Thread, weakref.finalize[..., Any]]:
    """A thread that runs what waits; unlike one of a pool, it keeps no process from ending for longer than a moment."""
    idle = threading.Event()
    idle.set()
    thread = threading.Thread(target=_work, args=(waiting, idle), name="compoff-local", daemon=True)
    thread.start()
    return thread, weakref.finalize(thread, _end, waiting, idle)


def _end(waiting: _Waiting, idle: threading.Event) -> None:
    """At the end of the process: PyTorch aborts one that ends while a thread is inside it."""
    _cancel(waiting)
    idle.wait(_LONGEST_END)


def _cancel(waiting: _Waiting) -> None:
    """Cancel what has not begun."""
    for entry in _taken(waiting):
        if entry is not None:
            entry[0].cancel()


def _sift(waiting: _Waiting) -> None:
    """Take out what was canceled; the rest stays in its order."""
    for entry in tuple(_taken(waiting)):
        if entry is None or not entry[0].cancelled():
            waiting.put(entry)


def _taken(waiting: _Waiting) -> Iterator[_Entry | None]:
    """All that waits now."""
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()


def _work(waiting: _Waiting, idle: threading.Event) -> None:
    while (entry := waiting.get()) is not None:
        idle.clear()
        _complete(*entry)
        del entry  # neither a call's inputs nor its answer are kept until the next
        idle.set()


def _complete(future: Future[Any], run: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = run()
    except BaseException as error:  # whatever it is, somebody waits
        future.set_exception(error)
    else:
        future.set_result(result)


def nobody(call: Call, reason: str) -> ReadTimeout:
    """The error of a call that neither the edge nor the device answered in time.

    Args:
        call: The call.
        reason: Why.
    """
    return ReadTimeout(f"neither the edge nor the device answered within {call.timeout:g} s ({reason})")
