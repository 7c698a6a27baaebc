"""What a remote counts of its calls, and a snapshot of it for people and metrics."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from compoff.checks import is_number
from compoff.errors import LocalProtocolError, PayloadError, WireError

if TYPE_CHECKING:
    from collections.abc import Generator

    from compoff.device.answers import CallReport

__all__ = ["RemoteStats", "Seconds", "Tally"]

Seconds: TypeAlias = Literal["head_seconds", "remote_seconds", "local_seconds", "total_seconds"]
"""A time of a ``CallReport``."""

_RECENT_CALLS = 1024


@dataclass(frozen=True)
class RemoteStats:
    """What a remote has done so far.

    Args:
        edge: Calls that the edge answered.
        local: Calls that the whole model on the device answered.
        failed: Calls that ended with an error of the wire.
        retried: Requests whose connection broke, so that they were to be sent again over a fresh one.
        hedged: Calls for which the whole model was started while the edge was still being waited for.
        connections: Connections opened, the first included.
        reachable: Whether the edge gives signs; False while local answers are given at once because it gives none.
        reason: Why it is not reachable.
        round_trip_seconds: Running mean of the pings' times, in seconds; None before the first.
        payload_bytes: Bytes of all payloads that were sent, without frames; also of those that got no answer, or were
            sent again.
        reply_bytes: Bytes of the replies that were the answers, without frames.
        recent: Reports of the last answered calls, at most 1024.
        raised: Calls that ended in any other way: inputs or options were refused, the whole model raised, or a task was
            canceled.

    Examples:
        >>> from compoff.device.answers import CallReport
        >>> reports = tuple(CallReport("input", 10, 20, 0.0, 0.0, seconds) for seconds in (0.1, 0.2, 0.3))
        >>> stats = RemoteStats(3, 0, 0, 0, 0, 1, True, None, None, 30, 60, reports)
        >>> stats.calls, stats.quantile(0.5), stats.quantile(0.99)
        (3, 0.2, 0.3)

    Source: this project.
    """

    edge: int
    local: int
    failed: int
    retried: int
    hedged: int
    connections: int
    reachable: bool
    reason: str | None
    round_trip_seconds: float | None
    payload_bytes: int
    reply_bytes: int
    recent: tuple[CallReport, ...] = field(repr=False)
    raised: int = 0

    @property
    def calls(self) -> int:
        """Calls that have ended, one way or another; what is asked of a closed remote is none."""
        return self.edge + self.local + self.failed + self.raised

    def quantile(self, fraction: float, field: Seconds = "total_seconds") -> float | None:
        """A time that so many of the recent calls did not exceed.

        Args:
            fraction: From 0 to 1: 0.5 for the median, 0.99 for the slowest hundredth.
            field: Which of a report's times.

        Returns:
            Seconds; None before the first answered call.

        Raises:
            LocalProtocolError: The fraction is out of range, or a report has no such time.
        """
        if not (is_number(fraction) and 0 <= fraction <= 1):
            raise LocalProtocolError(f"fraction is {fraction!r:.80}; expected a number from 0 to 1, such as 0.99")
        if field not in get_args(Seconds):
            raise LocalProtocolError(f"field is {field!r:.80}; expected one of {', '.join(get_args(Seconds))}")
        times = sorted(float(getattr(report, field)) for report in self.recent)
        return times[min(len(times) - 1, max(0, math.ceil(fraction * len(times)) - 1))] if times else None


class Tally:
    """Counts of one remote; threads share it."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._lock = threading.Lock()
        self._edge = self._local = self._failed = self._raised = self._retried = self._hedged = 0
        self._payload_bytes = self._reply_bytes = 0
        self._recent: deque[CallReport] = deque(maxlen=_RECENT_CALLS)

    def answered(self, report: CallReport) -> None:
        """Count an answered call."""
        with self._lock:
            if report.source == "edge":
                self._edge += 1
            else:
                self._local += 1
            self._reply_bytes += report.reply_bytes
            self._recent.append(report)

    @contextlib.contextmanager
    def failures(self) -> Generator[None]:
        """Count the call in the block where it ends with an error, whatever that is."""
        try:
            yield
        except (WireError, PayloadError):
            with self._lock:
                self._failed += 1
            raise
        except BaseException:  # an interrupt or a canceled task, too
            with self._lock:
                self._raised += 1
            raise

    def sent(self, num_bytes: int) -> None:
        """Count a payload that was sent."""
        with self._lock:
            self._payload_bytes += num_bytes

    def retried(self) -> None:
        """Count a request that was sent again."""
        with self._lock:
            self._retried += 1

    def hedged(self) -> None:
        """Count a call for which the whole model was started before the edge had answered or failed."""
        with self._lock:
            self._hedged += 1

    def snapshot(
        self, *, connections: int, reachable: bool, reason: str | None, round_trip: float | None
    ) -> RemoteStats:
        """The counts of now, with what the link knows."""
        with self._lock:
            return RemoteStats(
                self._edge,
                self._local,
                self._failed,
                self._retried,
                self._hedged,
                connections,
                reachable,
                reason,
                round_trip,
                self._payload_bytes,
                self._reply_bytes,
                tuple(self._recent),
                self._raised,
            )
