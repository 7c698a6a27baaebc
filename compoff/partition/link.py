"""What a link takes now: a round trip, and seconds for each byte, as the last calls had them."""

from __future__ import annotations

import math

__all__ = ["LinkEstimate"]

_KEEP = 0.8  # of what calls before told, at each new one: the last five count two thirds


class LinkEstimate:
    """How long bytes take to the edge and back.

    The time of the last calls, less a round trip for each, over their bytes. Pings tell the round trip; until there is
    one, all of the time is put on the bytes, as in the paper.

    Examples:
        >>> link = LinkEstimate()
        >>> link.seconds(1000) is None
        True
        >>> link.ping(0.020)
        >>> for num_bytes in (500, 2000):
        ...     link.add(num_bytes, 0.020 + num_bytes / 50_000)
        >>> round(link.bytes_per_second), round(link.seconds(1000), 3)
        (50000, 0.04)

    Source: DeepCOD (SenSys 2020), Sec. 3.4.2 and 4.2: the harmonic mean of the throughput of the last ten calls, from
    their times without the server's. The round trip, which the paper leaves in, would pass for slow bytes where
    payloads are as short as ours; and calls count by their bytes, the later ones more.
    """

    __slots__ = ("_bytes", "_count", "_seconds", "round_trip")

    def __init__(self) -> None:
        """Start without a call."""
        self.round_trip: float | None = None
        # Of the calls, each multiplied by its weight: their number, bytes and seconds.
        self._count = self._bytes = self._seconds = 0.0

    def add(self, num_bytes: float, seconds: float) -> None:
        """Take a call into account.

        Args:
            num_bytes: What was sent and came back, in bytes.
            seconds: Time from sending to the answer without the server's own, in seconds; of a call that was given up,
                until then.
        """
        self._count = _KEEP * self._count + 1
        self._bytes = _KEEP * self._bytes + num_bytes
        self._seconds = _KEEP * self._seconds + seconds

    def ping(self, seconds: float) -> None:
        """Take the time of next to no bytes into account, in place of the one before."""
        self.round_trip = seconds

    @property
    def bytes_per_second(self) -> float | None:
        """What the link carries; infinite where bytes took no time, None before the first call."""
        if not self._bytes:
            return None
        slope = self.line[1]
        return 1 / slope if slope > 0 else math.inf

    @property
    def line(self) -> tuple[float, float]:
        """Seconds that no bytes take, and seconds a byte; nothing where nothing is known."""
        start = self.round_trip or 0.0
        if not self._bytes:
            return start, 0.0
        return start, max(0.0, self._seconds - start * self._count) / self._bytes

    def seconds(self, num_bytes: float) -> float | None:
        """How long so many bytes take.

        Args:
            num_bytes: Bytes to the edge and back.

        Returns:
            Seconds; None before the first call and ping.
        """
        if not self._bytes and self.round_trip is None:
            return None
        start, slope = self.line
        return start + num_bytes * slope
