"""What answers where the edge cannot: the whole model on this device, after the edge or beside it.

Every such answer is marked in its report. How the edge is asked is for ``edge``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from compoff.device.local_runs import MARGIN, LocalRuns, nobody
from compoff.device.timing import Estimate
from compoff.errors import PayloadError, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compoff.device.answers import CallReport
    from compoff.device.calls import Call
    from compoff.device.edge import Asked, Edge
    from compoff.device.statistics import Tally

__all__ = ["Fallback", "Hedge", "OnFailure", "not_answered", "reserve"]

OnFailure: TypeAlias = Literal["raise", "local", "hedge"]
"""What a remote does where the edge gives no answer."""

_LOOK = 0.002  # seconds between two looks at the edge while the device computes beside it


def reserve(local_seconds: Estimate, timeout: float) -> float:
    """Seconds before a call's deadline at which the device has to start.

    Args:
        local_seconds: How long the whole model takes.
        timeout: What the call was given.

    Returns:
        Half of it where nothing is known yet, or where the whole model cannot make it anyway.
    """
    seconds = local_seconds.upper(otherwise=timeout / 2)
    return max(seconds, min(MARGIN, timeout / 10)) if seconds < 0.9 * timeout else timeout / 2


class Fallback:
    """``on_failure="local"``: the edge first; where it fails or takes too long, the device.

    Args:
        edge: The way to the edge.
        whole: The whole model, as each head's calls call it.

    Source: this project.
    """

    def __init__(self, edge: Edge, whole: Sequence[Callable[..., Any]]) -> None:
        """Start without knowing how long the whole model takes."""
        self.edge = edge
        self._whole = whole
        self._seconds = Estimate(warm_up=True)

    def answer(self, call: Call) -> tuple[Any, CallReport]:
        """Answer a call, one way or the other.

        Args:
            call: The call.

        Returns:
            The output and the report.

        Raises:
            FeatureError: The head cannot take the inputs.
            ConnectionLost: The remote was closed meanwhile.
        """
        breaker = self.edge.link.breaker
        if not breaker.closed:
            return self.here(call, breaker.reason or "the edge cannot be reached")
        stall = self.edge.stalls[call.route]
        if not stall.asks(time.monotonic(), call.timeout):
            return self.here(call, stall.reason)
        try:
            return self.edge.answer(call, self._latest(call))
        except (WireError, PayloadError) as error:
            if self.edge.link.closed:
                raise
            return self.here(call, str(error))

    def here(self, call: Call, reason: str) -> tuple[Any, CallReport]:
        """Answer a call on this device, without asking the edge.

        Args:
            call: The call.
            reason: Why.

        Returns:
            The output and the report.

        Raises:
            FeatureError: The head could not take the inputs.
        """
        call.check()
        started = time.perf_counter()
        output = call.run_whole(self._whole)
        ended = time.perf_counter()
        self._seconds.add(ended - started)
        return output, call.from_device(reason, started, ended)

    def close(self) -> None:
        """Nothing is left behind."""

    def _latest(self, call: Call) -> float:
        """The last moment to turn to the device, so that it ends by the deadline if it can at all."""
        return call.deadline - reserve(self._seconds, call.timeout)


class Hedge(Fallback):
    """``on_failure="hedge"``: where the edge takes longer than it mostly does, the device starts, too; the first wins.

    Args:
        edge: The way to the edge.
        whole: The whole model, as each head's calls call it.
        tally: Where hedged calls are counted.

    Source: Dean and Barroso, "The Tail at Scale" (2013), hedged requests.
    """

    def __init__(self, edge: Edge, whole: Sequence[Callable[..., Any]], tally: Tally) -> None:
        """Start with one thread for the whole model, made when it is first needed."""
        super().__init__(edge, whole)
        self._tally = tally
        self._runs = LocalRuns(whole, self._seconds)

    def answer(self, call: Call) -> tuple[Any, CallReport]:
        """Answer a call by whichever is first.

        Args:
            call: The call.

        Returns:
            The output and the report.

        Raises:
            ReadTimeout: Neither had answered by the deadline.
            WireError: The edge failed, and the whole model raised.
            FeatureError: The head cannot take the inputs.
            ConnectionLost: The remote was closed meanwhile.
        """
        breaker = self.edge.link.breaker
        if not breaker.closed:
            return self._race(call, None, breaker.reason or "the edge cannot be reached")
        try:
            patience = self.edge.patience.seconds(call.timeout)
            asked = self.edge.submit(call, min(self._latest(call), time.monotonic() + patience))
        except (WireError, PayloadError) as error:
            if self.edge.link.closed:
                raise
            return self._race(call, None, str(error))
        try:
            return self._after(call, asked)
        finally:
            asked.end()

    def here(self, call: Call, reason: str) -> tuple[Any, CallReport]:
        """Answer a call on this device by its deadline, without asking the edge.

        Args:
            call: The call.
            reason: Why.

        Returns:
            The output and the report.

        Raises:
            ReadTimeout: The device had not answered by then.
            FeatureError: The head could not take the inputs.
        """
        return self._race(call, None, reason)

    def close(self) -> None:
        """Let go of the thread; a whole model that runs in it is not waited for."""
        self._runs.close()

    def _after(self, call: Call, asked: Asked) -> tuple[Any, CallReport]:
        patience = self.edge.patience.seconds(call.timeout)
        moment = min(self._latest(call), call.after_encoded(patience))
        if asked.wait(moment):
            try:
                return asked.settle()
            except (WireError, PayloadError) as error:
                if self.edge.link.closed:
                    raise
                return self._race(call, None, str(error))
        self._tally.hedged()
        self.edge.patience.missed()
        return self._race(call, asked, call.reason or not_answered(patience))

    def _race(self, call: Call, asked: Asked | None, reason: str) -> tuple[Any, CallReport]:
        """Run the whole model beside what may still come from the edge, and take what is first."""
        call.check()
        started = time.perf_counter()
        try:
            run = self._runs.submit(call, hurry=True)
        except RuntimeError:  # it was closed
            self.edge.link.check_open(under_way=True)
            raise
        try:
            return self._first(call, asked, run, reason, started)
        finally:
            run.cancel()  # one that waits behind others must not run for nobody, and keep those after it waiting

    def _first(
        self,
        call: Call,
        asked: Asked | None,
        run: concurrent.futures.Future[Any],
        reason: str,
        started: float,
    ) -> tuple[Any, CallReport]:
        """What is first, what was asked of the edge or the run."""
        local: concurrent.futures.Future[Any] | None = run
        while True:
            _wait(asked, local, call.deadline)
            if local is not None and local.done():
                failure = self._failure(local)
                if failure is None:
                    ended = time.perf_counter()
                    return local.result(), call.from_device(reason, started, ended, beside=asked is not None)
                if asked is None:
                    raise failure
                local = None
            if asked is not None and asked.wait(time.monotonic()):
                try:
                    return asked.settle()
                except (WireError, PayloadError) as error:
                    if local is None:
                        raise
                    asked, reason = None, str(error)
            if time.monotonic() >= call.deadline:
                raise nobody(call, reason)

    def _failure(self, run: concurrent.futures.Future[Any]) -> BaseException | None:
        """Why a run that is over has no result; None where it has one."""
        if run.cancelled():
            self.edge.link.check_open(under_way=True)
        return run.exception()


def not_answered(patience: float) -> str:
    """Why the device started beside the edge.

    Args:
        patience: How long the edge was waited for, in seconds.
    """
    return f"the edge had not answered {f'after {patience:.3g} s' if patience else 'the calls before'}"


def _wait(asked: Asked | None, local: concurrent.futures.Future[Any] | None, deadline: float) -> None:
    """Wait for either, or until the deadline; for both at once by looking at each in turn."""
    now = time.monotonic()
    if asked is not None:
        asked.wait(deadline if local is None else min(deadline, now + _LOOK))
    elif local is not None:
        # Unlike ``concurrent.futures.wait`` this wakes up where a closed remote cancels what waits for its turn.
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            local.exception(min(max(0.0, deadline - now), threading.TIMEOUT_MAX))
