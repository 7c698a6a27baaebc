"""Whether the edge is worth asking, and how long to wait before trying again. No sockets, threads or clocks."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff", "Breaker", "Stall"]

_GOOD_SIGNS = 2
_UNANSWERED, _LONGEST_PAUSE = 3, 60.0


class Breaker:
    """Open after one failure of the link, closed again after two good signs in a row.

    A sign is a connection's welcome or the answer to a ping. While it is open, a caller with another way takes that
    one at once and does not wait for a link that is gone.

    Examples:
        >>> breaker = Breaker()
        >>> breaker.failed("the link is down")
        True
        >>> breaker.closed, breaker.reason
        (False, 'the link is down')
        >>> breaker.succeeded(), breaker.succeeded(), breaker.closed
        (False, True, True)

    Source: this project.
    """

    def __init__(self) -> None:
        """Start closed: nothing is known against the edge."""
        self.closed = True
        self.reason: str | None = None
        self._signs = 0

    def failed(self, reason: str) -> bool:
        """Count a failure; True where the breaker opens with it."""
        opens, self.closed = self.closed, False
        self.reason, self._signs = reason.removesuffix("; ask again"), 0  # as the link does
        return opens

    def succeeded(self) -> bool:
        """Count a good sign; True where the breaker closes with it."""
        if self.closed:
            return False
        self._signs += 1
        if self._signs < _GOOD_SIGNS:
            return False
        self.closed, self.reason = True, None
        return True


class Backoff:
    """Pauses between attempts: each up to twice the last one, and never the same on two devices.

    Args:
        first: The first pause, in seconds.
        longest: What no pause exceeds, in seconds.
        draw: A random number from 0 to 1.

    Examples:
        >>> pauses = Backoff(0.1, 1.0, lambda: 1.0)
        >>> [round(pauses.next(), 1) for _ in range(6)]
        [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015), equal jitter.
    """

    def __init__(self, first: float = 0.1, longest: float = 5.0, draw: Callable[[], float] = random.random) -> None:
        """Start with the first pause."""
        self.first = first
        self._longest = longest
        self._draw = draw
        self._pause = first

    def next(self) -> float:
        """The next pause, in seconds: half of it sure, half of it drawn."""
        pause = self._pause * (0.5 + 0.5 * self._draw())
        self._pause = min(2 * self._pause, self._longest)
        return pause

    def reset(self) -> None:
        """Start again with the first pause, after a success."""
        self._pause = self.first


class Stall:
    """Calls of one head that got no answer from a server that gives signs: a tail that hangs, or fails each time.

    After three in a row only one call in a while asks it, and the others need not wait out their deadlines. The pauses
    grow from a second to a minute, until one is answered.

    Args:
        draw: A random number from 0 to 1.

    Examples:
        >>> stall = Stall(lambda: 1.0)
        >>> for _ in range(3):
        ...     first = stall.unanswered(10.0)
        >>> stall.asks(10.5, 2.0), stall.asks(11.0, 2.0), stall.asks(11.0, 2.0)
        (False, True, False)

    Source: Nygard, "Release It!" (2007), circuit breaker, half-open.
    """

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        """Start without a call."""
        self._pauses = Backoff(1.0, _LONGEST_PAUSE, draw)
        self._count = 0
        self._again = 0.0
        self._busy_told: float | None = None

    @property
    def reason(self) -> str:
        """Why the edge is not asked."""
        return f"the edge gave no answer to {self._count} calls in a row, and only one in a while asks it until it does"

    def asks(self, now: float, seconds: float) -> bool:
        """Whether a call is to ask the edge.

        Args:
            now: A moment of any clock, in seconds.
            seconds: How long the call may take; until then, a minute at most, no other one asks in its place.
        """
        if self._count < _UNANSWERED:
            return True
        if now < self._again:
            return False
        self._again = now + min(seconds, _LONGEST_PAUSE)  # it may end some other way, long before
        return True

    def unanswered(self, now: float) -> bool:
        """Count a call without an answer; True for the first since the last answer.

        Args:
            now: A moment of the same clock.
        """
        self._count += 1
        if self._count >= _UNANSWERED:
            self._again = now + self._pauses.next()
        return self._count == 1

    def busy(self, now: float) -> bool:
        """Note a call that a server without room turned away, which is an answer; True once in a minute.

        Args:
            now: A moment of the same clock.
        """
        if self._busy_told is not None and now < self._busy_told + _LONGEST_PAUSE:
            return False
        self._busy_told = now
        return True

    def answered(self) -> None:
        """Start again, after an answer."""
        if self._count:
            self._count = 0
            self._pauses.reset()
