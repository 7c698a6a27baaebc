"""What all connections of one server share: its tails, its limits, and how much of them is used.

Everything but ``Workers`` is touched by the server's event loop only. Knows nothing of bytes on a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from compoff.edge.workers import Job, Outcome, Workers
from compoff.errors import LocalProtocolError
from compoff.wire.messages import ErrorCode
from compoff.wire.server_protocol import check_limits, only_full

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compoff.edge.workers import Servable
    from compoff.wire.protocol import Request
    from compoff.wire.replies import ReplyForm
    from compoff.wire.security import Tokens

__all__ = ["Limits", "Peer", "Service"]


@dataclass(frozen=True)
class Limits:
    """What a server allows; times in seconds. ``serve`` explains each.

    Source: this project.
    """

    max_connections: int
    window: int
    max_pending: int
    max_held_bytes: int
    handshake_timeout: float
    message_timeout: float
    idle_timeout: float
    drain_timeout: float

    def check(self) -> None:
        """Refuse limits that nothing fits.

        Raises:
            LocalProtocolError: A limit is not positive and finite.
        """
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                message = f"{name}={value} was given; expected a positive number"
                raise LocalProtocolError(message)

    @property
    def tick(self) -> float:
        """Seconds between two looks at all clocks: every timeout is kept to a fifth of the shortest."""
        return min(1.0, min(self.handshake_timeout, self.message_timeout, self.idle_timeout) / 5)


class Peer(Protocol):
    """What the service needs of a connection."""

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers written to this connection that its client has not taken, when they were last counted."""
        ...

    def count_unread(self) -> None:
        """Count them, and tell the service."""
        ...

    def check_clock(self, now: float) -> None:
        """Close where a timeout is over at this moment of ``time.monotonic()``."""
        ...

    def drain(self) -> None:
        """Take no new requests, and close when the answers in flight are sent."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Service:
    """Tails, limits, counters.

    Args:
        tails: What to answer with, one for each artifact.
        token: The shared secret, several of which each will do, or None.
        limits: What is allowed.
        workers: Number of threads that run tails.

    Raises:
        LocalProtocolError: Tails, token or limits cannot be served.

    Source: this project.
    """

    def __init__(self, tails: Sequence[Servable], token: Tokens, limits: Limits, workers: int) -> None:
        """Check everything, then start the workers."""
        limits.check()
        if workers < 1:
            message = f"workers={workers} was given; expected at least 1"
            raise LocalProtocolError(message)
        self._tails = {tail.artifact_id: tail for tail in tails}
        if len(self._tails) != len(tails):
            message = "two of the tails are of the same artifact; serve each once"
            raise LocalProtocolError(message)
        self.artifacts = {artifact_id: tail.max_payload_bytes for artifact_id, tail in self._tails.items()}
        check_limits(self.artifacts, token, limits.window)
        if max(self.artifacts.values()) > limits.max_held_bytes:
            message = f"a payload may have {max(self.artifacts.values())} bytes; raise max_held_bytes to at least that"
            raise LocalProtocolError(message)
        self.token = token  # read anew by every connection
        self.limits = limits
        self.peers: set[Peer] = set()
        self.held_bytes = 0  # half-received messages and payloads that wait for a tail
        self.unread_bytes = 0  # answers written that clients have not taken
        self._pending = 0
        self._drained = asyncio.Event()
        self._workers = Workers(workers)

    def check_reply(self, artifact_id: bytes, reply: ReplyForm) -> None:
        """Refuse a form of reply that a tail cannot give.

        Raises:
            FeatureError: It cannot.
        """
        only_full(artifact_id, reply)

    def expected_wait(self) -> float:
        """Seconds that a request would wait for its turn now."""
        return 0.0

    def join(self, peer: Peer) -> bool:
        """Count a connection in; False where there is no room."""
        if len(self.peers) >= self.limits.max_connections:
            return False
        self.peers.add(peer)
        return True

    def leave(self, peer: Peer) -> None:
        """Count a connection out."""
        self.peers.discard(peer)
        if not self.peers:
            self._drained.set()

    def take(self, request: Request, wanted: Callable[[], bool], deliver: Callable[[Outcome | None], None]) -> None:
        """Have a request answered.

        Args:
            request: The request.
            wanted: Whether the client is still there; any thread may ask.
            deliver: Takes the outcome in the event loop's thread, or None where nobody waits for one.
        """
        size = len(request.body)
        if self._pending >= self.limits.max_pending or self.held_bytes + size > self.limits.max_held_bytes:
            deliver(Outcome(b"", ErrorCode.BUSY, f"{self._pending} requests are waiting for this server"))
            return
        self._pending += 1
        self.held_bytes += size
        loop = asyncio.get_running_loop()

        def finish(outcome: Outcome | None) -> None:
            self._pending -= 1
            self.held_bytes -= size
            deliver(outcome)

        def hand_over(outcome: Outcome | None) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped and its loop is closed
                loop.call_soon_threadsafe(finish, outcome)

        deadline = time.monotonic() + request.deadline_ms / 1000 if request.deadline_ms else math.inf
        self._workers.submit(Job(self._tails[request.artifact_id], request.body, deadline, wanted, hand_over))

    def dismiss_all(self) -> None:
        """Ask every client to connect again; its answers in flight still go out."""
        for peer in tuple(self.peers):
            peer.drain()

    def shed(self) -> None:
        """Where unread answers are too many, cut off whoever leaves the most of them, until they are few enough."""
        if self.unread_bytes <= self.limits.max_held_bytes:
            return
        for peer in self.peers:
            peer.count_unread()
        for peer in sorted(self.peers, key=lambda peer: peer.unread_bytes, reverse=True):
            if self.unread_bytes <= self.limits.max_held_bytes:
                return
            peer.abort()

    async def watch(self) -> None:
        """Look at the clocks of all connections, for ever."""
        while True:
            await asyncio.sleep(self.limits.tick)
            now = time.monotonic()
            for peer in tuple(self.peers):
                peer.check_clock(now)

    async def drain(self) -> None:
        """Let the answers in flight out, then close every connection."""
        for peer in tuple(self.peers):
            peer.drain()
        if self.peers:
            self._drained.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), self.limits.drain_timeout)
        for peer in tuple(self.peers):
            peer.abort()
        await asyncio.sleep(0.001)  # for the callbacks that close the sockets

    def stop(self) -> None:
        """End the worker threads; one that hangs in a tail is left behind."""
        self._workers.stop(0.5)
