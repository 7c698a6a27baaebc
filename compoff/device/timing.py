"""How long things take here: a running estimate of times, and what a call may wait for. No clock."""

from __future__ import annotations

__all__ = ["Estimate", "RetryBudget"]

_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4
_CREDIT, _MOST_RETRIES = 0.1, 10.0


class Estimate:
    """Mean and mean deviation of a time, each new one counting an eighth and a quarter.

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

    __slots__ = ("_deviation", "best", "mean")

    def __init__(self) -> None:
        """Start without a time."""
        self.mean: float | None = None
        self.best = 0.0
        self._deviation = 0.0

    def add(self, seconds: float) -> None:
        """Take a measured time into account, in seconds."""
        mean = self.mean
        if mean is None:
            self.mean, self.best, self._deviation = seconds, seconds, seconds / 2
            return
        error = seconds - mean
        self._deviation += _DEVIATION_GAIN * (abs(error) - self._deviation)
        self.mean = mean + _GAIN * error
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


class RetryBudget:
    """Retries that calls have earned: one for ten calls, ten at most, so that retries never double a crowd's load.

    Examples:
        >>> budget = RetryBudget()
        >>> sum(budget.spend() for _ in range(20))
        10
        >>> for _ in range(10):
        ...     budget.earn()
        >>> budget.spend(), budget.spend()
        (True, False)

    Source: this project.
    """

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        """Start with ten."""
        self._credit = _MOST_RETRIES

    def earn(self) -> None:
        """Count a call."""
        if self._credit < _MOST_RETRIES:
            self._credit += _CREDIT

    def spend(self) -> bool:
        """Take one retry; False where none is left."""
        if self._credit < 1 - 1e-9:
            return False
        self._credit -= 1
        return True
