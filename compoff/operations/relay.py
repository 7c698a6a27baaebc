"""A tail that another process of this machine holds: several fronts decode and encrypt, one process has the GPU.

The fronts ask over our own wire, so batches form in that process from the requests of all of them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

from compoff.device.answers import longest_reply
from compoff.errors import (
    BackendError,
    ConnectionLost,
    ConnectTimeout,
    PayloadError,
    ReadTimeout,
    RemoteProtocolError,
    WireError,
)
from compoff.operations.checked import CheckedTail
from compoff.wire.client import open_client
from compoff.wire.replies import FULL
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from compoff.operations.checked import Checked
    from compoff.wire.client import Client, PendingReply

__all__ = ["RelayTail"]

_logger = logging.getLogger("compoff.serve")
_PAUSE = 0.1  # seconds before the process with the tail is looked for again; it may be starting


class RelayTail(CheckedTail):
    """What a front serves: payloads are checked here and answered there.

    Args:
        folder: The tail's folder, or the one around head and tail.
        address: ``"host:port"`` of the server that holds the tail; it is connected to when it is first needed.
        token: Its token.
        timeout: Seconds within which an answer has to come, with all second tries.

    Raises:
        ArtifactError: The folder is damaged or foreign.
        BackendError: The tail's answers say their own structure.

    Source: this project.
    """

    def __init__(self, folder: str | Path, address: str, *, token: str | None = None, timeout: float = 30.0) -> None:
        super().__init__(folder)
        self._address = address
        self._token = token
        self._timeout = timeout
        self._lock = threading.Lock()
        self._client: Client | None = None

    def run(self, decoded: Sequence[Checked]) -> list[list[NDArray[Any]]]:
        """Have several requests answered.

        Args:
            decoded: What `decode` made of each.

        Returns:
            The leaves of the output of each.

        Raises:
            BackendError: The process with the tail did not answer in time.
            RemoteError: The tail raised.
        """
        replies = self.run_until(decoded, [math.inf] * len(decoded))
        return [reply for reply in replies if reply is not None]  # all of them: no deadline comes first

    def run_until(self, decoded: Sequence[Checked], deadlines: Sequence[float]) -> list[list[NDArray[Any]] | None]:
        """Have several requests answered, each by its own deadline, which the process with the tail is told.

        Args:
            decoded: What `decode` made of each.
            deadlines: Of each, as a moment of ``time.monotonic()``; infinite for none.

        Returns:
            The leaves of the output of each; None where its deadline came first.

        Raises:
            BackendError: The process with the tail did not answer in time.
            RemoteError: The tail raised.
        """
        end = time.monotonic() + self._timeout
        last = min(end, max(deadlines, default=end))  # the moment from which nobody waits any more
        while True:
            try:
                replies = self._asked(decoded, deadlines, end, last)
                break
            # A tail may be asked twice; whoever broke the protocol ended the connection of every other request, too.
            except (ConnectionLost, ConnectTimeout, ReadTimeout, RemoteProtocolError) as error:
                if time.monotonic() + _PAUSE >= last:
                    if last < end:
                        return [None] * len(decoded)
                    _logger.error("the process with the tail gave no answer: %s", error)
                    raise BackendError(f"the process with the tail gave no answer within {self._timeout} s") from error
                time.sleep(_PAUSE)
            except (WireError, PayloadError) as error:  # the words are for devices, to whom this address is nobody's
                raise type(error)(str(error).replace(self._address, "the process with the tail")) from error
        return [None if reply is None else unpack(reply) for reply in replies]

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _asked(
        self, decoded: Sequence[Checked], deadlines: Sequence[float], end: float, last: float
    ) -> list[bytes | None]:
        """All of them at once over the one connection."""
        client = self._connection(last)
        asked: list[PendingReply | None] = []
        try:
            for one, deadline in zip(decoded, deadlines, strict=True):
                now = time.monotonic()
                left = max(0.001, min(deadline, end) - now)
                asked.append(client.submit(one.payload, timeout=left) if now < deadline else None)
            return [
                None if reply is None else _in_time(reply, own=deadline < end)
                for reply, deadline in zip(asked, deadlines, strict=True)
            ]
        except (WireError, PayloadError):
            for reply in asked:  # nobody waits for the others any more, and each would hold its place in the window
                if reply is not None:
                    reply.cancel()
            raise

    def _connection(self, deadline: float) -> Client:
        """The connection that stands, or a new one."""
        with self._lock:
            if self._client is None or self._client.closed or self._client.stuck:
                if self._client is not None:
                    self._client.close()
                left = max(0.001, min(5.0, deadline - time.monotonic()))
                self._client = open_client(
                    self._address,
                    [self.artifact_id],
                    token=self._token,
                    connect_timeout=left,
                    max_reply_bytes=longest_reply(FULL, self.manifest),
                )
            return self._client


def _in_time(reply: PendingReply, *, own: bool) -> bytes | None:
    """An answer, or None where the request's own deadline came first; the front's says that nobody answers."""
    try:
        return reply.result()
    except ReadTimeout:
        if own:
            return None
        raise
