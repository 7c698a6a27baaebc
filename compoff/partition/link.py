"""What a link takes now: a round trip, and seconds for each byte, as the last calls had them."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["LinkEstimate"]

_KEEP = 0.75  # of what calls before told, at each new one: the last four count two thirds
_PINGS = 6  # of which the shortest counts: one that waits behind a payload says nothing of the way
_AROUND = 112  # bytes around a request and its reply: the headers of frames, TCP and IP


class LinkEstimate:
    """How long bytes take to the edge and back.

    Each call's time, less a round trip, over its bytes; the mean of the last. Pings tell the round trip; until there is
    one, all of the time is put on the bytes, as in the paper.

    Examples:
        >>> link = LinkEstimate()
        >>> link.seconds(1000) is None
        True
        >>> link.ping(0.020)
        >>> for num_bytes in (500, 2000):
        ...     link.add(num_bytes, 0.020 + (num_bytes + 112) / 50_000)
        >>> round(link.bytes_per_second), round(link.seconds(1000), 3)
        (50000, 0.042)

    Source: DeepCOD (SenSys 2020), Sec. 3.4.2 and 4.2: the harmonic mean of the throughput of the last ten calls, from
    their times without the server's. The round trip, which the paper leaves in, would pass for slow bytes where
    payloads are as short as ours; and the later calls count more.
    """

    __slots__ = ("_best", "_count", "_each", "_inverse", "_pings")

    def __init__(self) -> None:
        """Start without a call."""
        self._pings: deque[float] = deque(maxlen=_PINGS)
        self._best = math.inf  # seconds a byte, as few as there ever were
        # Of the calls, each multiplied by its weight: their number, seconds a byte, and one over bytes.
        self._count = self._each = self._inverse = 0.0

    def add(self, num_bytes: float, seconds: float) -> None:
        """Take a call into account.

        Args:
            num_bytes: What was sent and came back, in bytes, without headers.
            seconds: Time from sending to the answer without the server's own, in seconds.
        """
        self.at_least(num_bytes, seconds)
        slope = self._slope()
        if slope > 0:  # a call that was shorter than its ping tells of no speed
            self._best = min(self._best, slope)

    def at_least(self, num_bytes: float, seconds: float) -> None:
        """Take a call into account that was given up; it tells nothing of what the link carries at its best.

        Args:
            num_bytes: What was sent and would have come back, in bytes, without headers.
            seconds: Time from sending until then, in seconds.
        """
        num_bytes += _AROUND
        self._count = _KEEP * self._count + 1
        self._each = _KEEP * self._each + seconds / num_bytes
        self._inverse = _KEEP * self._inverse + 1 / num_bytes

    def ping(self, seconds: float | None) -> None:
        """Take the time of next to no bytes into account; the same one again, or None, changes nothing."""
        if seconds is not None and not (self._pings and self._pings[-1] == seconds):
            self._pings.append(seconds)

    @property
    def round_trip(self) -> float | None:
        """Seconds of next to no bytes: the shortest of the last pings; None before the first."""
        return min(self._pings, default=None)

    @property
    def bytes_per_second(self) -> float | None:
        """What the link carries; infinite where bytes took no time, None before the first call."""
        if not self._count:
            return None
        slope = self._slope()
        return 1 / slope if slope > 0 else math.inf

    @property
    def line(self) -> tuple[float, float]:
        """Seconds of a call with an empty payload and reply, and seconds a byte; nothing where nothing is known."""
        slope = self._slope()
        return (self.round_trip or 0.0) + _AROUND * slope, slope

    @property
    def line_at_best(self) -> tuple[float, float]:
        """The same for a link that carries as much as it ever did, or all that is wanted where it never carried any."""
        slope = min(self._slope(), self._best) if self._best < math.inf else 0.0
        return (self.round_trip or 0.0) + _AROUND * slope, slope

    def seconds(self, num_bytes: float) -> float | None:
        """How long so many bytes take.

        Args:
            num_bytes: Bytes to the edge and back, without headers.

        Returns:
            Seconds; None before the first call and ping.
        """
        if not self._count and self.round_trip is None:
            return None
        start, slope = self.line
        return start + num_bytes * slope

    def _slope(self) -> float:
        if not self._count:
            return 0.0
        return max(0.0, (self._each - (self.round_trip or 0.0) * self._inverse) / self._count)
