"""The whole model in a thread of its own: one run at a time, and none for a call whose time will be over by then."""

from __future__ import annotations

import contextvars
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from compoff.errors import ReadTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from compoff.device.calls import Call
    from compoff.device.timing import Estimate

__all__ = ["MARGIN", "LocalRuns", "nobody"]

MARGIN = 0.05  # seconds that a thread may take to wake on a busy machine


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
        self._pool = ThreadPoolExecutor(1, "compoff-local")

    def submit(self, call: Call, *, hurry: bool) -> Future[Any]:
        """Have the whole model run, after those that were submitted before.

        Args:
            call: The call.
            hurry: Whether the run is left out where it has waited for others and cannot end by the call's deadline.

        Returns:
            The output to come.

        Raises:
            RuntimeError: This was closed.
        """
        asked = time.monotonic() if hurry else None
        return self._pool.submit(contextvars.copy_context().run, self._run, call, asked)

    def close(self) -> None:
        """Let go of the thread and cancel what waits for it; a run under way is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, call: Call, asked: float | None) -> Any:
        started = time.monotonic()
        # What has waited for others and cannot end in time any more would only keep those behind it waiting.
        waited = asked is not None and started - asked > MARGIN
        if waited and started + (self._seconds.mean or 0.0) > call.deadline:
            raise nobody(call, "it had others to answer first")
        output = call.run_whole(self._whole)
        self._seconds.add(time.monotonic() - started)
        return output


def nobody(call: Call, reason: str) -> ReadTimeout:
    """The error of a call that neither the edge nor the device answered in time.

    Args:
        call: The call.
        reason: Why.
    """
    return ReadTimeout(f"neither the edge nor the device answered within {call.timeout:g} s ({reason})")
