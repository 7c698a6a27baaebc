"""What a server allows a client: how many, how much, how long."""

from __future__ import annotations

import math
from dataclasses import dataclass

from compoff.checks import check_whole, is_number
from compoff.errors import LocalProtocolError

__all__ = ["Limits"]

_SHORTEST = 0.001  # seconds that a client is given at least: nobody is quicker


@dataclass(frozen=True)
class Limits:
    """What a server allows; times in seconds. ``serve`` explains each.

    Source: this project.
    """

    max_connections: int
    window: int
    max_pending: int
    max_held_bytes: int
    max_batch: int
    handshake_timeout: float
    message_timeout: float
    idle_timeout: float
    drain_timeout: float

    def check(self) -> None:
        """Refuse limits that nothing fits.

        Raises:
            LocalProtocolError: A limit is not positive and finite, or a time so short that no client keeps to it.
        """
        for name, value in vars(self).items():
            if name.startswith(("max_", "window")):
                check_whole(name, value, LocalProtocolError)
            if not (is_number(value) and 0 < value < math.inf):
                message = f"{name}={value!r:.80} was given; expected a finite number above 0"
                raise LocalProtocolError(message)
        for name in ("handshake_timeout", "message_timeout", "idle_timeout"):
            if getattr(self, name) < _SHORTEST:
                message = f"{name}={getattr(self, name)} was given; expected seconds, at least {_SHORTEST:g}"
                raise LocalProtocolError(message)

    @property
    def tick(self) -> float:
        """Seconds between two looks at all clocks: every timeout is kept to a fifth of the shortest."""
        return min(1.0, min(self.handshake_timeout, self.message_timeout, self.idle_timeout) / 5)
