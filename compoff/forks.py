"""What a forked child must not share with its parent: connections, whose bytes would mix, and native threads."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path
from typing import Protocol

__all__ = ["FORKED", "Shared", "give_up", "leave_to_parent"]

FORKED = "made in another process; connect again after the fork"
"""What is said of a connection in a child of the process that made it."""


class Shared(Protocol):
    """What belongs to the process that made it, in whole or in part."""

    def abandon(self) -> None:
        """Let go of everything, in a forked child, without a byte to the peer; locks may be held for ever."""


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
    if descriptor >= 0:
        with contextlib.suppress(OSError), Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), descriptor, inheritable=False)


def _abandon_all() -> None:
    for one in list(_shared):
        one.abandon()
    _shared.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_abandon_all)
