"""How far the bytes of a connection have come: what shows that the peer is there while no message is complete."""

from __future__ import annotations

import contextlib
import struct
from typing import NamedTuple

try:
    import fcntl
    import termios
except ImportError:  # as on Windows, where what the system has not sent yet is not known
    fcntl = termios = None

__all__ = ["Moved", "unsent"]

_LONG = 1024  # bytes; the system of a peer whose program hangs still acknowledges a ping and a short request


class Moved(NamedTuple):
    """What has come, and what has been taken, in bytes; both only grow."""

    came: int
    left: int

    def further_than(self, before: Moved) -> bool:
        """Whether a long message is on its way: some of it came or went since another look.

        Examples:
            >>> start = Moved(came=100, left=200)
            >>> [one.further_than(start) for one in (Moved(100, 216), Moved(100, 9000), Moved(101, 200))]
            [False, True, True]
        """
        return self.came > before.came or self.left - before.left > _LONG


def unsent(descriptor: int) -> int:
    """Bytes that the system has taken over for a peer which has not acknowledged them; 0 where it does not say.

    Args:
        descriptor: Of a connected socket.
    """
    if fcntl is not None and termios is not None:
        with contextlib.suppress(OSError, ValueError):
            return struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
    return 0
