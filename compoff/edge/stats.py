"""What a server counts: requests, bytes, times and batch sizes of each tail, and a snapshot of them for others to show.

Counting is done by the event loop's thread, a few additions for each request. ``Server.stats`` takes the snapshot.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compoff.checks import is_number
from compoff.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compoff.wire.messages import ErrorCode

__all__ = ["LATENCY_BOUNDS", "Histogram", "ServerStats", "TailCounters", "TailStats"]

LATENCY_BOUNDS = (*(mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1.0, 2.0, 5.0)), 10.0)
"""Upper bounds of the buckets of a latency, in seconds: 10 µs to 10 s; one more bucket holds what is longer."""


@dataclass(frozen=True)
class Histogram:
    """How often a time fell into each bucket of ``LATENCY_BOUNDS``.

    Args:
        counts: One count a bound, and one for what is beyond the last.
        total: Sum of all times, in seconds.

    Examples:
        >>> histogram = Histogram((0, 0, 0, 90, 0, 0, 10) + (0,) * 13, 0.03)
        >>> f"{histogram.percentile(50):.2g} {histogram.percentile(99):.2g}"
        '7.8e-05 0.00095'

    Source: this project.
    """

    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of times measured."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """A time that so many of the times do not exceed, as fine as the buckets are.

        Args:
            percent: From 0 to 100: 50 for the median.

        Returns:
            Seconds; 0 without any.

        Raises:
            LocalProtocolError: The percentage is out of range.
        """
        if not (is_number(percent) and 0 <= percent <= 100):
            raise LocalProtocolError(f"percent is {percent!r:.80}; expected a number from 0 to 100, such as 99")
        rank = self.count * percent / 100
        below = 0
        for index, count in enumerate(self.counts):
            if count and below + count >= rank:
                low = LATENCY_BOUNDS[index - 1] if index else 0.0
                high = LATENCY_BOUNDS[min(index, len(LATENCY_BOUNDS) - 1)]
                return low + (high - low) * max(0.0, rank - below) / count if high > low else high
            below += count
        return 0.0


@dataclass(frozen=True)
class TailStats:
    """What became of the requests for one tail since the server started.

    Args:
        artifact_id: The export, 32 bytes.
        requests: Requests taken, also those refused for want of room.
        replies: Requests answered by the tail.
        errors: Requests answered by an error, by its code in lower case, such as ``"busy"`` or ``"deadline"``.
        bytes_in: Payload bytes taken.
        bytes_out: Reply bytes given.
        waiting: Requests that wait for their turn now.
        running: Requests in the tail now.
        busy_seconds: Time that workers have spent in this tail, decoding included.
        latency: From a request's arrival to its reply.
        batch_sizes: How many runs through the tail there were of each number of requests.

    Examples:
        >>> TailCounters(bytes(32)).snapshot(waiting=0, running=0).latency.count
        0

    Source: this project.
    """

    artifact_id: bytes
    requests: int
    replies: int
    errors: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    waiting: int
    running: int
    busy_seconds: float
    latency: Histogram
    batch_sizes: Mapping[int, int]


@dataclass(frozen=True)
class ServerStats:
    """A server at one moment.

    Args:
        uptime: Seconds since it listens.
        connections: Clients connected now, also those that have not said HELLO.
        accepted: Connections taken since the start; with TLS, those that finished its handshake.
        refused: Connections closed for what they sent, for want of room, or in the handshake of TLS.
        pending: Requests taken and not answered.
        held_bytes: Payloads that wait and messages half received, in bytes.
        unread_bytes: Answers written that clients have not taken, in bytes.
        tails: One for each tail that is served now.

    Examples:
        >>> from compoff.edge.server import serve
        >>> class Echo:
        ...     artifact_id = bytes(32)
        ...     max_payload_bytes = 100
        ...     def answer(self, payload):
        ...         return payload
        >>> with serve(Echo()) as server:
        ...     stats = server.stats()
        >>> stats.connections, [tail.requests for tail in stats.tails]
        (0, [0])

    Source: this project.
    """

    uptime: float
    connections: int
    accepted: int
    refused: int
    pending: int
    held_bytes: int
    unread_bytes: int
    tails: tuple[TailStats, ...]


class TailCounters:
    """The numbers of one tail while they grow.

    Args:
        artifact_id: The export.

    Source: this project.
    """

    def __init__(self, artifact_id: bytes) -> None:
        self.artifact_id = artifact_id
        self.requests = self.replies = self.bytes_in = self.bytes_out = 0
        self.busy_seconds = self.latency_total = 0.0
        self.errors: Counter[str] = Counter()
        self.batch_sizes: Counter[int] = Counter()
        self.latency_counts = [0] * (len(LATENCY_BOUNDS) + 1)

    def reply(self, num_bytes: int, seconds: float) -> None:
        """Count one reply and the time since its request arrived."""
        self.replies += 1
        self.bytes_out += num_bytes
        self.latency_total += seconds
        self.latency_counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1

    def error(self, code: ErrorCode) -> None:
        """Count one refusal."""
        self.errors[code.name.lower()] += 1

    def snapshot(self, waiting: int, running: int) -> TailStats:
        """The numbers as they are now."""
        return TailStats(
            artifact_id=self.artifact_id,
            requests=self.requests,
            replies=self.replies,
            errors=dict(self.errors),
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            waiting=waiting,
            running=running,
            busy_seconds=self.busy_seconds,
            latency=Histogram(tuple(self.latency_counts), self.latency_total),
            batch_sizes=dict(self.batch_sizes),
        )
