"""How long things take here: a running estimate of times, and what a call may wait for. No clock."""

from __future__ import annotations

import math

__all__ = ["LEAST_PATIENCE", "Estimate", "Patience", "RetryBudget"]

LEAST_PATIENCE = 0.01  # seconds: below, what a machine does beside this would be taken for a slow edge

_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4
_CREDIT, _MOST_RETRIES = 0.1, 10.0
_CREDIT_A_SECOND = 0.1  # for who calls seldom: a device that wakes once in a while may find its connection gone
_MISSES, _EVERY = 3, 16


class Estimate:
    """Mean and mean deviation of a time, each new one counting an eighth and a quarter.

    Args:
        warm_up: Whether the first time may hold a warm-up, which no later one does: a shorter second takes its place.
        gain: What a new time counts in the mean, in place of the eighth.

    Examples:
        >>> estimate = Estimate()
        >>> estimate.upper(otherwise=1.0)
        1.0
        >>> for seconds in (0.1, 0.1, 0.1):
        ...     estimate.add(seconds)
        >>> 0.1 < estimate.upper(otherwise=1.0) < 0.3
        True

    Source: RFC 6298, Sec. 2.
    """

    __slots__ = ("_deviation", "_gain", "_warm_up", "best", "mean")

    def __init__(self, *, warm_up: bool = False, gain: float = _GAIN) -> None:
        """Start without a time."""
        self._warm_up = warm_up
        self._gain = gain
        self.mean: float | None = None
        self.best = 0.0
        self._deviation = 0.0

    def add(self, seconds: float) -> None:
        """Take a measured time into account, in seconds."""
        mean = self.mean
        again, self._warm_up = self._warm_up and mean is not None, self._warm_up and mean is None
        if mean is None or (again and seconds < mean):
            self.mean, self.best, self._deviation = seconds, seconds, seconds / 2
            return
        error = seconds - mean
        self._deviation += _DEVIATION_GAIN * (abs(error) - self._deviation)
        self.mean = mean + self._gain * error
        if seconds < self.best:
            self.best = seconds

    def upper(self, *, otherwise: float) -> float:
        """What the next time hardly exceeds: mean plus four deviations, at least twice the best.

        Args:
            otherwise: Seconds to say where nothing was measured yet.

        Returns:
            Seconds.
        """
        if self.mean is None:
            return otherwise
        return max(self.mean + 4 * self._deviation, 2 * self.best)


class Patience(Estimate):
    """How long the edge is waited for before the device starts, too: what its answers mostly took.

    A call that it has not answered by then says nothing of its time but that it was longer: it is counted, not taken
    into the mean, which would make the next call wait longer for an edge that hangs. After three of them in a row the
    device starts at once, and only one call in sixteen gives an edge that has ever answered its time.

    Examples:
        >>> patience = Patience()
        >>> for _ in range(20):
        ...     patience.add(0.1)
        >>> 0.1 < patience.seconds(timeout=10.0) < 0.3
        True
        >>> for _ in range(3):
        ...     patience.missed()
        >>> patience.seconds(timeout=10.0)
        0.0

    Source: Dean and Barroso, "The Tail at Scale" (2013), hedged requests.
    """

    __slots__ = ("_misses",)

    def __init__(self) -> None:
        """Start without an answer."""
        super().__init__(warm_up=True)
        self._misses = 0

    def add(self, seconds: float) -> None:
        """Take the time of an answer into account, in seconds."""
        super().add(seconds)
        self._misses = 0

    def missed(self) -> None:
        """Count a call that the edge had not answered by then; its answer, if it still comes first, takes that back."""
        self._misses += 1

    def seconds(self, timeout: float) -> float:
        """How long the edge is waited for now.

        Args:
            timeout: What the call was given, in seconds.

        Returns:
            Seconds: half of `timeout` where nothing is known yet; 0 where the edge is not to be waited for.
        """
        if self._misses >= _MISSES and (self.mean is None or self._misses % _EVERY):
            return 0.0
        return max(LEAST_PATIENCE, self.upper(otherwise=timeout / 2))


class RetryBudget:
    """Retries that are left: one for ten calls or ten seconds, ten at most, so that they never double a crowd's load.

    Examples:
        >>> budget = RetryBudget()
        >>> sum(budget.spend(now=0.0) for _ in range(20))
        10
        >>> for _ in range(10):
        ...     budget.earn()
        >>> budget.spend(now=0.0), budget.spend(now=0.0), budget.spend(now=10.0)
        (True, False, True)

    Source: this project.
    """

    __slots__ = ("_credit", "_spent")

    def __init__(self) -> None:
        """Start with ten."""
        self._credit = _MOST_RETRIES
        self._spent = math.inf  # when one was last asked for

    def earn(self) -> None:
        """Count a call."""
        if self._credit < _MOST_RETRIES:
            self._credit += _CREDIT

    def spend(self, now: float) -> bool:
        """Take one retry; False where none is left.

        Args:
            now: A moment of any clock, in seconds.
        """
        waited = max(0.0, now - self._spent)
        self._credit, self._spent = min(_MOST_RETRIES, self._credit + _CREDIT_A_SECOND * waited), now
        if self._credit < 1 - 1e-9:
            return False
        self._credit -= 1
        return True
