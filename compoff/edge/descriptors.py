"""How many connections the operating system lets this process hold: each takes a descriptor, and is watched."""

from __future__ import annotations

import contextlib
import logging
import math
import selectors

try:
    import resource
except ImportError:  # as on Windows
    resource = None

__all__ = ["MOST_WATCHED", "room_for"]

_logger = logging.getLogger("compoff.serve")
_OTHERS = 64  # for the program's files, libraries and threads

MOST_WATCHED = 512 if issubclass(selectors.DefaultSelector, selectors.SelectSelector) else math.inf
"""Sockets that an event loop can watch: for Windows' ``select`` one more is an error, which would end the loop."""


def room_for(connections: int) -> int:
    """Raise this process's soft limit of descriptors where it is too low; never the hard one.

    Args:
        connections: How many there may be at a time.

    Returns:
        How many there can be: as many, or fewer where the system allows no more, and then a warning says so.
    """
    wanted = connections + _OTHERS
    descriptors = _raised(wanted)
    most, held = min((descriptors, "hold {:d} descriptors (ulimit -n)"), (MOST_WATCHED, "watch {:d} sockets (select)"))
    if most >= wanted:
        return connections
    room = max(1, int(most) - _OTHERS)
    if room < connections:
        _logger.warning(
            "max_connections is %d here, not %d: this process may %s", room, connections, held.format(int(most))
        )
    return room


def _raised(wanted: int) -> float:
    """Descriptors that this process may have, after it has asked for so many."""
    if resource is None:
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    if soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # forbidden here: what is there has to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    return soft
