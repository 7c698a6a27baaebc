"""A log that nobody can fill: of one kind of message so many a minute, and how many more there were.

A stranger can cause any number of them, and so can a tail that fails every request.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

__all__ = ["Sparing"]

_WINDOW = 60.0  # seconds


class Sparing:
    """One kind of message of a log; safe to use from many threads.

    Args:
        logger: The log.
        level: Of these messages.
        most: How many are written in a minute; what comes then is counted.
        clock: Seconds of any clock.

    Examples:
        >>> import logging
        >>> sparing = Sparing(logging.getLogger("compoff.serve"), logging.INFO, most=60)
        >>> sparing.log("closed %s: %s", "192.0.2.1", "it sent no HELLO")

    Source: this project.
    """

    def __init__(
        self, logger: logging.Logger, level: int, *, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._level = level
        self._most = most
        self._clock = clock
        self._lock = threading.Lock()
        self._since = -math.inf  # when the minute began
        self._count = 0  # since then

    def log(self, message: str, *values: object) -> None:
        """Write a message, or only count it.

        Args:
            message: Its form, as a log takes it.
            *values: What is put into it.
        """
        if not self._logger.isEnabledFor(self._level):
            return
        with self._lock:
            now, left_out = self._clock(), 0
            if now - self._since >= _WINDOW:
                left_out = max(0, self._count - self._most)
                self._count, self._since = 0, now
            self._count += 1
            if self._count > self._most:
                return
            last = self._count == self._most
        if left_out:
            self._logger.log(self._level, "%d messages like the next were left out", left_out)
        self._logger.log(self._level, message, *values)
        if last:
            self._logger.log(self._level, "more messages like the last are left out for up to %d s", _WINDOW)
