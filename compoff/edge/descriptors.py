"""How many connections the operating system lets this process hold: each takes a descriptor."""

from __future__ import annotations

import contextlib
import logging
import sys

if sys.platform != "win32":
    import resource

__all__ = ["room_for"]

_logger = logging.getLogger("compoff.serve")
_OTHERS = 64  # for the program's files, libraries and threads


def room_for(connections: int) -> int:
    """Raise this process's soft limit of descriptors where it is too low; never the hard one.

    Args:
        connections: How many there may be at a time.

    Returns:
        How many there can be: as many, or fewer where the hard limit allows no more, and then a warning says so.
    """
    if sys.platform == "win32":
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):  # forbidden here: what is there has to do
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    room = min(connections, max(1, soft - _OTHERS))
    if room < connections:
        _logger.warning(
            "max_connections is %d here, not %d: this process may hold %d descriptors (ulimit -n)",
            room,
            connections,
            soft,
        )
    return room
