"""What a forked child must not share with its parent: connections, whose bytes would mix, and native threads."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from typing import Protocol

__all__ = ["FORKED", "OwnLock", "Shared", "give_up", "leave_to_parent"]

FORKED = "made in another process; connect again after the fork"
"""What is said of a connection in a child of the process that made it."""


class Shared(Protocol):
    """What belongs to the process that made it, in whole or in part."""

    def abandon(self) -> None:
        """Let go of everything, in a forked child, without a byte to the peer; locks may be held for ever.

        What goes on in the child belongs to it from now on, and says so with ``leave_to_parent``: it may fork, too.
        """


# The only state of its kind: the interpreter takes one function for the whole process, and never gives it back.
_shared: weakref.WeakSet[Shared] = weakref.WeakSet()


def leave_to_parent(one: Shared) -> None:
    """Have something abandoned in every child that is forked from now on.

    Args:
        one: What belongs to this process; it is not kept alive.
    """
    _shared.add(one)


def give_up(descriptor: int) -> None:
    """Leave what a descriptor speaks with to the parent, in a forked child; without a word to the other end.

    The number stays taken, by nothing, since whoever holds it closes it some time. To close it now would not do: the
    number could be somebody else's by then.

    Args:
        descriptor: The descriptor; less than 0 for one that was closed.
    """
    if descriptor < 0:
        return
    with contextlib.suppress(OSError):
        try:
            nothing = os.open(os.devnull, os.O_RDONLY)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            os.close(descriptor)  # there is no other number left, so that this one comes back at once
            nothing = os.open(os.devnull, os.O_RDONLY)
        if nothing != descriptor:
            os.dup2(nothing, descriptor, inheritable=False)
            os.close(nothing)


class OwnLock:
    """A lock that is free in a forked child, whichever thread held it in the parent.

    It is for what a child finds whole all the same, or makes anew.

    Examples:
        >>> lock = OwnLock()
        >>> with lock:
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        leave_to_parent(self)

    def __enter__(self) -> None:
        """Wait for the lock."""
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        """Let it go."""
        self._lock.release()

    def abandon(self) -> None:
        """Be free, in a forked child: who holds the lock may not be here."""
        self._lock = threading.Lock()
        leave_to_parent(self)


def _abandon_all() -> None:
    everything = list(_shared)
    _shared.clear()
    for one in everything:
        one.abandon()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_abandon_all)
