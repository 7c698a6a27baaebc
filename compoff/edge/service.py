"""What all connections of one server share: its tails, its limits, and how much of them is used.

Everything but ``Workers`` is touched by the server's event loop only. Knows nothing of bytes on a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from typing import TYPE_CHECKING

from compoff.checks import check_whole, is_number
from compoff.edge.batching import Job, Lane, Outcome
from compoff.edge.jobs import answer_now, went_through
from compoff.edge.places import GUESTS, NO_ROOM, Places
from compoff.edge.sparing import Sparing
from compoff.edge.stats import ServerStats
from compoff.edge.workers import Workers
from compoff.errors import FeatureError, LocalProtocolError, ServerBusy
from compoff.wire.messages import ErrorCode
from compoff.wire.receiver import new_buffer
from compoff.wire.replies import reply_specs
from compoff.wire.security import check_tokens
from compoff.wire.server_protocol import check_limits, only_full

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.edge.batching import Asker
    from compoff.edge.limits import Limits
    from compoff.edge.peer import Peer
    from compoff.edge.servable import Servable
    from compoff.wire.messages import Offer
    from compoff.wire.protocol import Request
    from compoff.wire.replies import ReplyForm
    from compoff.wire.security import Tokens

__all__ = ["Service"]

_logger = logging.getLogger("compoff.serve")
_BUFFER_BYTES = 2**18
_MOST_CLOSINGS = 60  # a minute


class Service:
    """Tails, limits, counters.

    Args:
        tails: What to answer with, one for each artifact.
        token: The shared secret, several of which each will do, or None.
        limits: What is allowed.
        workers: Number of threads that run tails.
        decoders: Number of threads that decode while those are busy.
        max_wait: Seconds that a request may wait for others to join its batch.

    Raises:
        LocalProtocolError: Tails, token or limits cannot be served.

    Source: this project.
    """

    def __init__(
        self,
        tails: Sequence[Servable],
        token: Tokens,
        limits: Limits,
        *,
        workers: int = 1,
        decoders: int = 1,
        max_wait: float = 0.0,
    ) -> None:
        """Check everything, then start the workers."""
        limits.check()
        for name, value, least in (("workers", workers, 1), ("decoders", decoders, 0)):
            check_whole(name, value, LocalProtocolError, least)
        if not is_number(max_wait) or not 0 <= max_wait < math.inf:
            message = f"max_wait={max_wait!r:.80} was given; expected seconds, 0 or more"
            raise LocalProtocolError(message)
        self.token = check_tokens(token)  # read anew by every connection
        self.limits = limits
        self.buffer = new_buffer(_BUFFER_BYTES)  # where every connection's bytes are read to, one at a time
        self.artifacts: dict[bytes, int] = {}  # longest payload of each artifact that is served
        self.peers: dict[Peer, None] = {}  # in the order they came
        self._places = Places()
        self.held_bytes = 0  # half-received messages and payloads that wait for a tail
        self.unread_bytes = 0  # answers written that clients have not taken
        self.accepted = self.refused = 0
        self.closings = Sparing(_logger, logging.INFO, most=_MOST_CLOSINGS)  # of connections, and why
        self._started = time.monotonic()
        self._pending = 0
        self._lanes: dict[bytes, Lane] = {}
        self._drained = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._check(tails)
        self._workers = Workers(workers, decoders, max_wait, self._hand_over)
        self._open(tails)

    def _check(self, tails: Sequence[Servable]) -> None:
        for tail in tails:
            if not (hasattr(tail, "artifact_id") and hasattr(tail, "max_payload_bytes") and hasattr(tail, "answer")):
                given = type(tail).__name__
                raise LocalProtocolError(f"a {given} was given as a tail; expected what compoff.Tail.load returns")
        artifacts = {tail.artifact_id: tail.max_payload_bytes for tail in tails}
        if len(artifacts) != len(tails):
            message = "two of the tails are of the same artifact; serve each once"
            raise LocalProtocolError(message)
        check_limits(artifacts, self.token, self.limits.window)
        if max(artifacts.values()) > self.limits.max_held_bytes:
            message = f"a payload may have {max(artifacts.values())} bytes; raise max_held_bytes to at least that"
            raise LocalProtocolError(message)

    def _open(self, tails: Sequence[Servable]) -> None:
        for tail in tails:
            lane = self._lanes.get(tail.artifact_id)
            if lane is not None and lane.servable is tail:
                continue
            if lane is not None:
                self._workers.close(lane)
            counters = None if lane is None else lane.counters  # what the old lane still answers counts, too
            self._lanes[tail.artifact_id] = lane = Lane(tail, self.limits.max_batch, counters)
            self.artifacts[tail.artifact_id] = tail.max_payload_bytes
            self._workers.open(lane)

    def swap(self, tails: Sequence[Servable]) -> None:
        """Serve other tails from now on; requests that were taken are still answered by the tail they came for.

        Args:
            tails: All that is to be served. Clients of an artifact that is served no more, or again, or not in the form
                in which they take its replies, are asked to connect again.

        Raises:
            LocalProtocolError: The tails cannot be served; nothing has changed then.
        """
        self._check(tails)
        gone = self._lanes.keys() - {tail.artifact_id for tail in tails}
        self._open(tails)
        for artifact_id in gone:
            self._workers.close(self._lanes.pop(artifact_id))
            del self.artifacts[artifact_id]
        for peer in tuple(self.peers):
            if tuple(map(self._is_served, peer.offers)) != peer.granted:
                peer.drain()

    def _is_served(self, offer: Offer) -> bool:
        if offer.artifact_id not in self.artifacts:
            return False
        try:
            self.check_reply(*offer)
        except FeatureError:
            return False
        return True

    def check_reply(self, artifact_id: bytes, reply: ReplyForm) -> None:
        """Refuse a form of reply that a tail cannot give.

        Raises:
            FeatureError: It cannot.
        """
        tail = self._lanes[artifact_id].batchable
        if tail is None:
            only_full(artifact_id, reply)
        else:
            reply_specs(reply, tail.outputs)

    def expected_wait(self) -> float:
        """Seconds that a request would wait for its turn now."""
        return self._workers.shared(sum(lane.expected_wait for lane in self._lanes.values()))

    def stats(self) -> ServerStats:
        """What was counted up to now; any thread may ask."""
        lanes = tuple(self._lanes.values())
        return ServerStats(
            uptime=time.monotonic() - self._started,
            connections=len(self.peers),
            accepted=self.accepted,
            refused=self.refused,
            pending=self._pending,
            held_bytes=self.held_bytes,
            unread_bytes=self.unread_bytes,
            tails=tuple(lane.counters.snapshot(len(lane.waiting), lane.running) for lane in lanes),
        )

    def join(self, peer: Peer) -> bool:
        """Count a connection in; False where there is no room.

        Who holds a place without having said HELLO gives it up to a newcomer: a client of ours speaks at once. Where
        all places are held by those who have, one that somebody owes the newcomer will be its own when it has, too.
        """
        self.accepted += 1
        if not self._has_place(peer) and not self.put_out_silent():
            return False
        self.peers[peer] = None
        return True

    def _has_place(self, peer: Peer) -> bool:
        most = self.limits.max_connections
        if len(self.peers) >= most + GUESTS:
            return False
        if len(self.peers) - self._places.going < most:
            return True
        return self._places.taken >= most and self._places.owed(peer.who)

    def welcome(self, peer: Peer) -> None:
        """Give a connection its place, now that it has said HELLO.

        Not before: a stranger who does not know the token must not take a place from one who does.

        Raises:
            ServerBusy: There is none after all.
        """
        self._places.add(peer)
        if self._places.taken <= self.limits.max_connections:
            return
        going = self._places.give_up(peer.who)
        if going is None:
            self._places.remove(peer)
            raise ServerBusy(NO_ROOM)
        self.closings.log("%s holds the most connections, and gives up one of them to %s", going.who, peer.who)
        self.refused += 1
        going.drain()

    def put_out_silent(self) -> bool:
        """Put out whoever has been here the longest without having said HELLO; False where there is nobody."""
        silent = next((other for other in self.peers if not other.greeted), None)
        if silent is None:
            return False
        self.refused += 1
        silent.abort()
        self.leave(silent)
        return True

    def leave(self, peer: Peer) -> None:
        """Count a connection out."""
        self.peers.pop(peer, None)
        self._places.remove(peer)
        if not self.peers:
            self._drained.set()

    def take(self, request: Request, asker: Asker) -> None:
        """Have a request answered.

        Args:
            request: The request.
            asker: Takes the outcome; perhaps at once, and is not asked to ``settle`` then.
        """
        lane = self._lanes[request.artifact_id]
        deadline = time.monotonic() + request.deadline_ms / 1000 if request.deadline_ms else math.inf
        job = Job(lane, request.body, request.reply, deadline, asker, request.request_id, time.perf_counter())
        lane.counters.requests += 1
        lane.counters.bytes_in += len(request.body)
        if lane.pace.prompt and not lane.elsewhere and not lane.entrusted:
            self._answer_here(job)
        elif (refusal := self._refusal(job)) is None:
            self._pending += 1
            self.held_bytes += len(request.body)
            lane.entrusted += 1
            self._workers.submit(job)
        else:
            self._refuse(job, refusal)

    def _answer_here(self, job: Job) -> None:
        """Answer in this thread: to hand over to another and back would take longer than the answer."""
        outcome = answer_now(job)
        seconds = self._count(job, outcome)
        self._clock([job], [outcome], seconds)
        job.asker.deliver(job, outcome)

    def _refusal(self, job: Job) -> str | None:
        """Why there is no room for a job; None where there is, perhaps since another one had to give way."""
        self.relieve(len(job.payload))
        if self.held_bytes + len(job.payload) > self.limits.max_held_bytes:
            return "the server holds as many bytes of requests as it may; try again later"
        if self._pending < self.limits.max_pending:
            return None
        full = f"the server has as many requests to answer as it may ({self._pending}); try again later"
        displaced = self._workers.displace(job.asker)
        if displaced is None:
            return full
        self._let_go(displaced)
        self._refuse(displaced, full)
        displaced.asker.settle()
        return None

    def _refuse(self, job: Job, words: str) -> None:
        outcome = Outcome(b"", ErrorCode.BUSY, words)
        self._count(job, outcome)
        job.asker.deliver(job, outcome)

    def _let_go(self, job: Job) -> None:
        self._pending -= 1
        self.held_bytes -= len(job.payload)
        job.lane.entrusted -= 1

    def _hand_over(self, jobs: Sequence[Job], outcomes: Sequence[Outcome | None], seconds: float) -> None:
        """Take the outcomes of a batch from a worker's thread to the event loop's."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the server has stopped and its loop is closed
                self._loop.call_soon_threadsafe(self._finish, jobs, outcomes, seconds)

    def _finish(self, jobs: Sequence[Job], outcomes: Sequence[Outcome | None], seconds: float) -> None:
        self._clock(jobs, outcomes, seconds)
        for job, outcome in zip(jobs, outcomes, strict=True):
            self._let_go(job)
            self._count(job, outcome)
        askers: dict[Asker, None] = {}
        for job, outcome in zip(jobs, outcomes, strict=True):
            # Whatever is wrong with one connection, the others of the batch get their answers.
            try:
                job.asker.deliver(job, outcome)
            except Exception:
                _logger.exception("an answer could not be handed over")
            askers[job.asker] = None
        for asker in askers:
            asker.settle()

    def _clock(self, jobs: Sequence[Job], outcomes: Sequence[Outcome | None], seconds: float) -> None:
        """Note how long jobs took, and which of them went through the tail together."""
        lane, runs = jobs[0].lane, Counter[int]()
        for job, outcome in zip(jobs, outcomes, strict=True):
            runs[job.run] += went_through([outcome])
        sizes = [size for size in runs.values() if size]
        lane.pace.clock(seconds, through=bool(sizes))
        lane.counters.busy_seconds += seconds
        lane.counters.batch_sizes.update(sizes)

    def _count(self, job: Job, outcome: Outcome | None) -> float:
        """Count an outcome; returns the seconds since its request arrived."""
        seconds = time.perf_counter() - job.arrived
        counters = job.lane.counters
        if outcome is None:
            counters.error(ErrorCode.CANCELED)
        elif outcome.code is not None:
            counters.error(outcome.code)
        else:
            counters.reply(len(outcome.body), seconds)
        return seconds

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

    def relieve(self, num_bytes: int = 0) -> None:
        """Where too many bytes are held, put out whoever holds the most of a message half received, until it is enough.

        Args:
            num_bytes: How many are to be held besides; nobody is put out for them who holds no more than that.
        """
        while self.held_bytes + num_bytes > self.limits.max_held_bytes:
            greediest = max(self.peers, key=lambda peer: peer.held_bytes, default=None)
            if greediest is None or greediest.held_bytes <= num_bytes:
                return
            greediest.put_out()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say whose thread outcomes are delivered in."""
        self._loop = loop

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
