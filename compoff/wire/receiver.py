"""How asyncio hands bytes over here: out of one buffer that stays, since a new one for each read costs page faults.

Knows nothing of frames: ``async_client`` and ``compoff.edge.connection`` say what becomes of the bytes.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from compoff.forks import give_up

__all__ = ["Receiver", "leave_transport", "new_buffer"]


def new_buffer(num_bytes: int) -> memoryview:
    """A buffer for receivers of one event loop; any number of them may share it.

    Args:
        num_bytes: The most that is read at once.
    """
    return memoryview(bytearray(num_bytes))


def leave_transport(transport: asyncio.BaseTransport | None) -> None:
    """Leave a connection to the parent, in a forked child.

    To close its transport would say goodbye in TLS, and stop the parent's loop from listening where both share its
    selector.

    Args:
        transport: The connection's transport; None before there is one.
    """
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None:
        give_up(sock.fileno())


class Receiver(asyncio.BufferedProtocol):
    """A protocol that is given what arrives as bytes.

    Args:
        buffer: Where the event loop reads to; free again when ``receive`` returns.

    Source: this project.
    """

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        del sizehint
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes are there."""
        self.receive(bytes(self._buffer[:nbytes]))

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Take what came."""
