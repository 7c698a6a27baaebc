"""The asyncio twin of ``link``: one connection that is kept by a task of its own, for the tasks of one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING

from compoff.device.breaker import Backoff, Breaker
from compoff.device.link import FIRST_ATTEMPT, LONGEST_ATTEMPT, PROBE_EVERY, refuse_closed, warn_of_unserved
from compoff.device.timing import Estimate
from compoff.errors import CompoffError, ConnectTimeout, LocalProtocolError
from compoff.forks import leave_to_parent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from compoff.wire.async_client import AsyncClient

__all__ = ["AsyncLink"]

_logger = logging.getLogger("compoff.connect")


class AsyncLink:
    """The connection of an asyncio remote; made inside a running event loop.

    Args:
        open_client: Opens a connection within so many seconds.
        address: The server's, for messages.
        heartbeat: Seconds without a message after which the server is asked for a sign; as many for that sign.
        warn: Whether the log warns of an edge that gives no answer, since no call will raise.
        probe: As for ``Link``.

    Source: this project.
    """

    def __init__(
        self,
        open_client: Callable[[float], Awaitable[AsyncClient]],
        address: str,
        heartbeat: float,
        *,
        warn: bool = False,
        probe: bool = False,
    ) -> None:
        """Start to connect, in a task of its own."""
        self.level = logging.WARNING if warn else logging.INFO  # of what the log hears of an edge without an answer
        self.address = address
        self.breaker = Breaker()
        self.round_trip = Estimate()
        self.last_round_trip: float | None = None
        self.opened = 0
        self.closed = False
        self.forked = False  # whether this is a copy in a child of the process that connected
        self.current: AsyncClient | None = None
        self._open = open_client
        self._heartbeat = heartbeat
        self._backoff = Backoff()
        self._attempt_seconds = FIRST_ATTEMPT
        self._attempts = 0
        self._failure: CompoffError | None = None
        self._suspected = False
        self._probe = probe
        self._probed = -math.inf
        self._retired: set[AsyncClient] = set()
        self._wake = asyncio.Event()
        self._attempted = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = self._start()
        leave_to_parent(self)

    def _start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._keep(), name="compoff-link")

    def abandon(self) -> None:
        """Be closed, in a forked child."""
        self.closed = self.forked = True
        self.current = None
        self._retired = set()

    def check_open(self, *, under_way: bool = False) -> None:
        """Refuse what is asked of a link that was closed.

        Args:
            under_way: Whether it was asked before.

        Raises:
            LocalProtocolError: It was closed, or another process made it.
            ConnectionLost: It was closed while the call was under way.
        """
        refuse_closed("AsyncRemote", forked=self.forked, closed=self.closed, under_way=under_way)

    def check_made_here(self) -> None:
        """Refuse what is asked in a forked child, as of ``Link``.

        Raises:
            LocalProtocolError: Another process made the link.
        """
        refuse_closed("AsyncRemote", forked=self.forked, closed=False, under_way=False)

    def check_loop(self) -> None:
        """Refuse another event loop than the one whose task reads the answers: none would arrive.

        Raises:
            LocalProtocolError: The running loop is another one.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise LocalProtocolError(
                "this AsyncRemote belongs to another event loop, such as that of an earlier asyncio.run; call "
                "connect_async in the loop that uses it"
            )

    async def connection(self, deadline: float, attempts: int = 1) -> AsyncClient:
        """The connection that stands; where there is none, what the next attempts bring.

        Args:
            deadline: Moment of ``time.monotonic()`` until which to wait.
            attempts: How many that fail are waited for, as for ``Link``.

        Raises:
            ConnectTimeout: There is none by then.
            LocalProtocolError: Another process made the link.
            ConnectionLost: The link was closed.
            WireError: The last of the attempts failed; the class says how.
        """
        enough = self._attempts + attempts
        while True:
            self.check_open(under_way=True)
            if self._task.done():  # canceled with all tasks of the loop: somebody has to connect all the same
                self._task = self._start()
            client = self.current
            if client is not None and not client.closed and not client.stuck:
                return client
            failure = self._failure
            if self._attempts >= enough and failure is not None and not isinstance(failure, ConnectTimeout):
                raise type(failure)(*failure.args)
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise ConnectTimeout(f"no connection by the deadline: {failure or f'{self.address} is being tried'}")
            self._attempted.clear()
            self._wake.set()
            await _happens(self._attempted, seconds)

    def report(self, client: AsyncClient, error: CompoffError) -> None:
        """Say that a call found its connection broken or ending; a fresh one is opened."""
        if client is self.current:
            self._retire(client)
            self._failed(error)
        self._wake.set()

    def suspect(self, error: CompoffError, *, again: bool = False) -> None:
        """Say that a call got no answer in time: the server is asked for two signs at once.

        Args:
            error: How the call ended.
            again: Whether the log has heard of it.
        """
        self._failed(error, again=again)
        self._suspected = True
        self._wake.set()

    async def release(self, client: AsyncClient) -> None:
        """Close a connection that the server has ended, when the last call on it is over."""
        if client is not self.current and client.idle:
            self._retired.discard(client)
            await client.close()

    async def close(self) -> None:
        """Close every connection; calls under way end with ConnectionLost."""
        for client in self._end():
            await client.close()
        await asyncio.wait([self._task])

    def drop(self) -> None:
        """Have every connection closed, since nobody holds the remote any more; any thread may ask."""
        if self.forked or self.closed:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
            self._loop.call_soon_threadsafe(self._drop)

    def _drop(self) -> None:
        for client in self._end():
            client.leave()

    def _end(self) -> list[AsyncClient]:
        """Keep no connection any more; returns those there are."""
        self.closed = True
        self._task.cancel()
        self._attempted.set()
        return [*self._retired, *([self.current] if self.current is not None else [])]

    async def _keep(self) -> None:
        while not self.closed:
            client = self.current
            try:
                if client is None or client.closed or client.stuck:
                    await self._replace(client)
                else:
                    await self._watch(client)
            except Exception:  # whatever it is, the calls still need somebody who connects
                _logger.exception("keeping the connection to %s failed", self.address)
                await asyncio.sleep(self._backoff.first)

    async def _watch(self, client: AsyncClient) -> None:
        """Wait for a while; where nothing came meanwhile, or there is doubt, ask for a sign."""
        moved = client.moved
        due = self._probe and time.monotonic() - self._probed >= PROBE_EVERY
        if self.breaker.closed and not self._suspected and not due:
            self._wake.clear()
            await _happens(self._wake, min(self._heartbeat, PROBE_EVERY) if self._probe else self._heartbeat)
        quiet = due or self._suspected or not self.breaker.closed or not client.moved.further_than(moved)
        self._suspected = False
        if quiet and client is self.current and not client.closed:
            await self._ping(client)
            if client in self._retired:  # it ended meanwhile, with nothing on it but this
                await self.release(client)

    async def _ping(self, client: AsyncClient) -> None:
        moved = client.moved
        self._probed = time.monotonic()
        try:
            seconds = await client.ping(timeout=self._heartbeat)
            self.round_trip.add(seconds)
            self.last_round_trip = seconds
        except CompoffError as error:
            if not client.closed and client.moved.further_than(moved):
                return  # the sign waits behind a long message, which is one, too
            self._failed(error)
            if not client.closed:  # no sign: whatever is on its way may come by a fresh connection, long before by this
                await self._replace(client)
            return
        self._succeeded()

    async def _replace(self, last: AsyncClient | None) -> None:
        """Try once to open a connection in the place of one; where that fails, pause."""
        try:
            fresh = await self._open(self._attempt_seconds)
        except CompoffError as error:
            self._attempt_seconds = min(2 * self._attempt_seconds, LONGEST_ATTEMPT)
            await self._pause(error)
            return
        self._attempt_seconds = FIRST_ATTEMPT
        self._backoff.reset()
        self._probed, self.last_round_trip = -math.inf, None  # it may lead over another network
        warn_of_unserved(self.address, fresh.unserved)
        if last is not None and last is self.current:
            self._retire(last)
        self.current, self._failure = fresh, None
        self._attempts += 1
        self.opened += 1
        self._attempted.set()
        self._succeeded()  # before the old one is closed, which may take a while
        if last is not None and (last.idle or not last.closed):
            self._retired.discard(last)
            await last.close()  # it gave no sign: its calls start again on the fresh connection

    async def _pause(self, error: CompoffError) -> None:
        """Wait before the next attempt; a call that wants a connection makes the pause as short as the first."""
        seconds = self._backoff.next()
        self._failure = error
        self._attempts += 1
        self._failed(error)
        self._wake.clear()
        self._attempted.set()
        least = min(seconds, self._backoff.first)
        await asyncio.sleep(least)
        await _happens(self._wake, seconds - least)

    def _retire(self, client: AsyncClient) -> None:
        self.current = None
        if not client.idle:
            self._retired.add(client)

    def _failed(self, error: CompoffError, *, again: bool = False) -> None:
        if self.breaker.failed(str(error)) and not self.closed:
            level, told = logging.DEBUG if again else self.level, self.breaker.reason
            _logger.log(level, "the edge gives no answer, and is asked again until it does: %s", told)

    def _succeeded(self) -> None:
        if self.breaker.succeeded():
            _logger.info("the edge at %s answers again", self.address)


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; False where it has not come in time."""
    if seconds <= 0:
        return event.is_set()
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
