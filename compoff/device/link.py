"""One connection to the edge that is kept: opened early, watched while it is quiet, replaced when it fails.

A thread of its own does all of that; a call takes the connection that stands, and waits only where there is none.
Bytes and heads are for ``remote``.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from compoff.device.breaker import Backoff, Breaker
from compoff.device.timing import Estimate
from compoff.errors import CompoffError, ConnectionLost, ConnectTimeout, LocalProtocolError
from compoff.forks import FORKED, leave_to_parent
from compoff.wire.client_protocol import unserved_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.wire.client import Client

__all__ = [
    "FIRST_ATTEMPT",
    "LONGEST_ATTEMPT",
    "PROBE_EVERY",
    "SHORTEST_HEARTBEAT",
    "Link",
    "refuse_closed",
    "warn_of_unserved",
]

_logger = logging.getLogger("compoff.connect")
FIRST_ATTEMPT, LONGEST_ATTEMPT = 1.0, 5.0  # seconds; short first: a lost SYN is sent again only after a second
SHORTEST_HEARTBEAT = 0.001  # seconds; no sign comes back sooner, and every connection would be given up at once
PROBE_EVERY = 5.0  # seconds after which a round trip is measured anew where that is wanted
_QUIET = 0.1  # seconds without a call after which a call first reads what came; in between, the calls themselves do
_LONGEST_WAIT = threading.TIMEOUT_MAX


class Link:
    """The connection of a remote.

    Args:
        open_client: Opens a connection within so many seconds.
        address: The server's, for messages.
        heartbeat: Seconds without a message after which the server is asked for a sign; as many for that sign.
        warn: Whether the log warns of an edge that gives no answer, since no call will raise.
        probe: Whether the round trip is measured anew on each connection and every few seconds, also on a busy one.

    Source: this project.
    """

    def __init__(
        self,
        open_client: Callable[[float], Client],
        address: str,
        heartbeat: float,
        *,
        warn: bool = False,
        probe: bool = False,
    ) -> None:
        """Start to connect, in a thread of its own."""
        self.level = logging.WARNING if warn else logging.INFO  # of what the log hears of an edge without an answer
        self.address = address
        self.breaker = Breaker()
        self.round_trip = Estimate()
        self.last_round_trip: float | None = None  # the last that was measured, in seconds
        self.opened = 0  # connections, the first included
        self.closed = False
        self.forked = False  # whether this is a copy in a child of the process that connected
        self._open = open_client
        self._heartbeat = heartbeat
        self._backoff = Backoff()
        self._attempt_seconds = FIRST_ATTEMPT
        self._changed = threading.Condition()  # guards what follows
        self._client: Client | None = None
        self._retired: set[Client] = set()  # ended by the server, with calls still on them
        self._attempts = 0
        self._failure: CompoffError | None = None
        self._wanted = False  # a call waits for a connection
        self._suspected = False  # a call got no answer
        self._probe = probe
        self._probed = -math.inf  # moment of the last ping of this connection
        self._used = -math.inf  # moment of the last call
        self._thread = threading.Thread(target=self._keep, name="compoff-link", daemon=True)
        leave_to_parent(self)
        self._thread.start()

    def abandon(self) -> None:
        """Be closed, in a forked child: the thread that keeps the connection is not here."""
        self._changed = threading.Condition()  # a thread that is not here may hold the other
        self.closed = self.forked = True
        self._client = None
        self._retired = set()

    def connection(self, deadline: float, attempts: int = 1) -> Client:
        """The connection that stands; where there is none, what the next attempts bring.

        Args:
            deadline: Moment of ``time.monotonic()`` until which to wait.
            attempts: How many that fail are waited for. One more than one helps where a server has just been killed and
                what still listens there is about to go.

        Raises:
            ConnectTimeout: There is none by then.
            LocalProtocolError: Another process made the link.
            ConnectionLost: The link was closed.
            WireError: The last of the attempts failed; the class says how.
        """
        client = self._client
        if client is not None:
            now = time.monotonic()
            if now - self._used >= _QUIET:
                client.look()  # while this device slept or was quiet, the server may have said goodbye
            self._used = now
            if not client.closed and not client.stuck:
                return client
        return self._wait_for_connection(deadline, attempts)

    @property
    def current(self) -> Client | None:
        """The connection that new calls would take, if there is one."""
        return self._client

    def report(self, client: Client, error: CompoffError) -> None:
        """Say that a call found its connection broken or ending; a fresh one is opened."""
        with self._changed:
            if client is self._client:
                self._retire(client)
                self._failed(error)
            self._changed.notify_all()

    def suspect(self, error: CompoffError, *, again: bool = False) -> None:
        """Say that a call got no answer in time: the server is asked for two signs at once.

        Args:
            error: How the call ended.
            again: Whether the log has heard of it.
        """
        with self._changed:
            self._failed(error, again=again)
            self._suspected = True
            self._changed.notify_all()

    def release(self, client: Client) -> None:
        """Close a connection that the server has ended, when the last call on it is over."""
        if client is not self._client and client.idle:
            with self._changed:
                self._retired.discard(client)
            client.close()

    def close(self) -> None:
        """Close every connection; calls under way end with ConnectionLost."""
        with self._changed:
            self.closed = True
            clients = [*self._retired, *([self._client] if self._client is not None else [])]
            self._retired.clear()
            self._changed.notify_all()
        for client in clients:
            client.close()

    def check_open(self, *, under_way: bool = False) -> None:
        """Refuse what is asked of a link that was closed.

        Args:
            under_way: Whether it was asked before.

        Raises:
            LocalProtocolError: It was closed, or another process made it.
            ConnectionLost: It was closed while the call was under way.
        """
        refuse_closed("Remote", forked=self.forked, closed=self.closed, under_way=under_way)

    def check_made_here(self) -> None:
        """Refuse what is asked in a forked child, where a lock may be held by a thread that is not there.

        Raises:
            LocalProtocolError: Another process made the link.
        """
        refuse_closed("Remote", forked=self.forked, closed=False, under_way=False)

    def _wait_for_connection(self, deadline: float, attempts: int) -> Client:
        with self._changed:
            enough = self._attempts + attempts
            while True:
                self.check_open(under_way=True)
                client = self._client
                if client is not None and not client.closed and not client.stuck:
                    return client
                failure = self._failure
                if self._attempts >= enough and failure is not None and not isinstance(failure, ConnectTimeout):
                    raise type(failure)(*failure.args)
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    raise ConnectTimeout(
                        f"no connection by the deadline: {failure or f'{self.address} is being tried'}"
                    )
                self._wanted = True
                self._changed.notify_all()
                self._changed.wait(min(seconds, _LONGEST_WAIT))

    def _keep(self) -> None:
        """Have a connection, as long as the link is not closed."""
        while not self.closed:
            client = self._client
            try:
                if client is None or client.closed or client.stuck:
                    self._replace(client)
                else:
                    self._watch(client)
            except Exception:  # whatever it is, the calls still need somebody who connects
                _logger.exception("keeping the connection to %s failed", self.address)
                time.sleep(self._backoff.first)

    def _watch(self, client: Client) -> None:
        """Wait for a while; where nothing came meanwhile, or there is doubt, ask for a sign."""
        moved = client.moved
        due = self._probe and time.monotonic() - self._probed >= PROBE_EVERY
        with self._changed:
            if self.breaker.closed and not (self._suspected or self._wanted or self.closed or due):
                self._changed.wait(min(self._heartbeat, PROBE_EVERY if self._probe else _LONGEST_WAIT))
            quiet = due or self._suspected or not self.breaker.closed or not client.moved.further_than(moved)
            self._suspected = self._wanted = False
            if not quiet or self.closed or client is not self._client or client.closed:
                return
        self._ping(client)
        if client in self._retired:  # it ended meanwhile, with nothing on it but this
            self.release(client)

    def _ping(self, client: Client) -> None:
        moved = client.moved
        self._probed = time.monotonic()
        try:
            seconds = client.ping(timeout=self._heartbeat)
            self.round_trip.add(seconds)
            self.last_round_trip = seconds
        except CompoffError as error:
            if not client.closed and client.moved.further_than(moved):
                return  # the sign waits behind a long message, which is one, too
            with self._changed:
                self._failed(error)
            if not client.closed:  # no sign: whatever is on its way may come by a fresh connection, long before by this
                self._replace(client)
            return
        self._succeeded()

    def _replace(self, last: Client | None) -> None:
        """Try once to open a connection in the place of one; where that fails, pause."""
        try:
            fresh = self._open(self._attempt_seconds)
        except CompoffError as error:
            self._attempt_seconds = min(2 * self._attempt_seconds, LONGEST_ATTEMPT)
            self._pause(error)
            return
        self._attempt_seconds = FIRST_ATTEMPT
        self._backoff.reset()
        self._probed, self.last_round_trip = -math.inf, None  # it may lead over another network
        warn_of_unserved(self.address, fresh.unserved)
        with self._changed:
            if not self.closed:
                if last is not None and last is self._client:
                    self._retire(last)
                self._client, fresh = fresh, None
                self._failure, self._wanted = None, False
                self._attempts += 1
                self.opened += 1
            self._changed.notify_all()
        self._succeeded()  # before the old one is closed, which may take a while
        if fresh is not None:  # closed meanwhile, by another thread
            fresh.close()
        if last is not None and (last.idle or not last.closed):
            self._retired.discard(last)
            last.close()  # it gave no sign: its calls start again on the fresh connection

    def _pause(self, error: CompoffError) -> None:
        """Wait before the next attempt; a call that wants a connection makes the pause as short as the first."""
        now = time.monotonic()
        seconds = self._backoff.next()
        with self._changed:
            self._failure = error
            self._attempts += 1
            self._failed(error)
            self._wanted = False
            self._changed.notify_all()
            while not self.closed:
                left = now + (min(seconds, self._backoff.first) if self._wanted else seconds) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _retire(self, client: Client) -> None:
        self._client = None
        if not client.idle:
            self._retired.add(client)

    def _failed(self, error: CompoffError, *, again: bool = False) -> None:
        if self.breaker.failed(str(error)) and not self.closed:
            level, told = logging.DEBUG if again else self.level, self.breaker.reason
            _logger.log(level, "the edge gives no answer, and is asked again until it does: %s", told)

    def _succeeded(self) -> None:
        if self.breaker.succeeded():
            _logger.info("the edge at %s answers again", self.address)


def refuse_closed(what: str, *, forked: bool, closed: bool, under_way: bool) -> None:
    """Refuse what is asked of a link that is no more.

    Args:
        what: Whose link it is.
        forked: Whether another process made it.
        closed: Whether it was closed.
        under_way: Whether that came while a call was under way.

    Raises:
        LocalProtocolError: Either.
        ConnectionLost: It was closed under a call.
    """
    if forked:
        raise LocalProtocolError(f"this {what} was {FORKED}")
    if closed and under_way:
        raise ConnectionLost(f"this {what} was closed while the call was under way; connect again")
    if closed:
        raise LocalProtocolError(f"this {what} was closed; connect again")


def warn_of_unserved(address: str, artifact_ids: tuple[bytes, ...]) -> None:
    """Log that the calls of some heads will fail, while those of the others go on.

    Args:
        address: The server's.
        artifact_ids: Of the heads whose tails it does not hold; may be empty.
    """
    if artifact_ids:
        _logger.warning("%s: %s; calls of the other heads go on", address, unserved_words(*artifact_ids))
