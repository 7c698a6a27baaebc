"""A call's way to the edge and back: over the connection that stands, and once more over a fresh one where it breaks.

Knows nothing of what happens where the edge cannot answer; that is for ``fallback``.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from compoff.device.breaker import Stall
from compoff.device.timing import Patience, RetryBudget
from compoff.errors import (
    ConnectionLost,
    ConnectTimeout,
    PayloadError,
    ReadTimeout,
    RemoteError,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)

if TYPE_CHECKING:
    from compoff.device.answers import CallReport
    from compoff.device.async_link import AsyncLink
    from compoff.device.calls import Call
    from compoff.device.link import Link
    from compoff.device.statistics import Tally
    from compoff.errors import CompoffError
    from compoff.wire.client import Client, PendingReply

__all__ = ["ATTEMPTS", "Asked", "Edge", "refused", "worth_repeating"]

_logger = logging.getLogger("compoff.connect")
ATTEMPTS = 2  # to connect, that a call without a connection waits for


class Edge:
    """What answers calls over a link.

    Args:
        link: The connection.
        tally: Where retries and bytes are counted.

    Source: this project.
    """

    def __init__(self, link: Link, tally: Tally) -> None:
        """Start with a full budget of retries."""
        self.link = link
        self.patience = Patience()  # for what passes from sending to the reply
        self._tally = tally
        self._budget = RetryBudget()
        self.stalls: defaultdict[int, Stall] = defaultdict(Stall)  # by route: one tail may hang, and others not

    def answer(self, call: Call, until: float) -> tuple[Any, CallReport]:
        """Have a call answered.

        Args:
            call: The call.
            until: Moment of ``time.monotonic()`` at which the edge is given up.

        Returns:
            The output and the report.

        Raises:
            WireError: The edge gave no answer; the class says why.
            PayloadError: It could not decode the payload.
            FeatureError: The head cannot take the inputs.
        """
        body = call.encode()
        client = self.link.connection(until, ATTEMPTS)
        seconds = call.left(until)  # where the head took it all, the link is not to blame
        try:
            pending = self.send(client, call, body, seconds)
            reply = pending.result()
        except (ConnectionLost, RemoteProtocolError) as error:
            pending, reply = self._once_more(call, body, client, error, until)
        except ReadTimeout as error:
            self.unanswered(call, error)
            raise
        except (RemoteError, PayloadError, ServerBusy) as error:
            self.refused(call, error)
            raise
        finally:
            if client is not self.link.current:
                self.link.release(client)
        return self.settle(call, reply, pending.server_seconds)

    def submit(self, call: Call, until: float) -> Asked:
        """Send a call's request without waiting for its answer.

        Args:
            call: The call.
            until: Moment of ``time.monotonic()`` until which a connection is waited for.

        Returns:
            What asks, until the call's own deadline.

        Raises:
            WireError: It could not be sent.
            FeatureError: The head cannot take the inputs.
        """
        asked = Asked(self, call, call.encode())
        client = self.link.connection(until, ATTEMPTS)
        seconds = call.left(call.deadline)  # where the head took it all, the link is not to blame
        try:
            asked.send(client, seconds)
        except BaseException as error:
            if not isinstance(error, (WireError, PayloadError)) or asked.failed(error):
                asked.end()
                raise
        return asked

    def send(self, client: Client, call: Call, body: bytes, seconds: float) -> PendingReply:
        """Send a payload, and count it.

        Args:
            client: The connection to send it over.
            call: The call that it is of.
            body: The payload.
            seconds: Time that the server is told it has.

        Returns:
            The answer to come.

        Raises:
            WireError: It could not be sent.
        """
        pending = client.submit(body, route=call.route, timeout=seconds)
        self._tally.sent(len(body))
        return pending

    def settle(self, call: Call, reply: bytes, server_seconds: float) -> tuple[Any, CallReport]:
        """A call's output and report, from the reply and the time it took at the server.

        Raises:
            RemoteProtocolError: The reply is not what this export's tail answers.
        """
        self.patience.add(call.since_encoded)
        self._budget.earn()
        try:
            settled = call.from_edge(reply, server_seconds)
        except RemoteProtocolError as error:
            self.refused(call, error)
            raise
        self.stalls[call.route].answered()
        return settled

    def unanswered(self, call: Call, error: ReadTimeout) -> None:
        """Note that the edge was asked and gave no answer in time; the log hears of it once until there is one."""
        first = self.stalls[call.route].unanswered(time.monotonic())
        self.link.suspect(error, again=not first)

    def refused(self, call: Call, error: CompoffError) -> None:
        """Note that the edge answered with an error or wrongly, as `refused` does."""
        refused(self.stalls[call.route], call, error, self.link.level)

    def repeats(self, call: Call, broken: Client, error: CompoffError, until: float) -> bool:
        """Whether a call is worth sending again: the tail changes nothing by answering, so it may do so twice.

        Args:
            call: The call; that it is sent again is noted in it, and counted.
            broken: The connection that broke.
            error: How.
            until: Moment of ``time.monotonic()`` at which the edge is given up.
        """
        link = self.link
        link.report(broken, error)
        if not worth_repeating(link, self._budget, until):
            return False
        call.retried, call.reason = True, str(error)
        self._tally.retried()
        return True

    def _once_more(
        self, call: Call, body: bytes, broken: Client, error: CompoffError, until: float
    ) -> tuple[PendingReply, bytes]:
        """Send again over a fresh connection, and wait for the answer."""
        if not self.repeats(call, broken, error, until):
            raise error
        link = self.link
        client = link.connection(until, ATTEMPTS)
        seconds = call.left(until)
        try:
            pending = self.send(client, call, body, seconds)
            return pending, pending.result()
        except (ConnectionLost, RemoteProtocolError) as again:
            link.report(client, again)
            raise
        except ReadTimeout as late:
            self.unanswered(call, late)
            raise
        except (RemoteError, PayloadError, ServerBusy) as refusal:
            self.refused(call, refusal)
            raise
        finally:
            if client is not link.current:
                link.release(client)


def worth_repeating(link: Link | AsyncLink, budget: RetryBudget, until: float) -> bool:
    """Whether there is time to send a request again, and a retry left, which is spent then.

    Args:
        link: The connection.
        budget: Of retries.
        until: Moment of ``time.monotonic()`` at which the edge is given up.
    """
    now, least = time.monotonic(), 2 * (link.round_trip.mean or 0.0)
    return not link.closed and until - now > least and budget.spend(now)


def refused(stall: Stall, call: Call, error: CompoffError, level: int) -> None:
    """Note that the edge answered with an error or wrongly: no answer either, though the link is not to blame.

    The log hears of it once until there is an answer, since where the device answers no call raises; of a server that
    has no room, which comes and goes, once in a minute.

    Args:
        stall: Of the call's route.
        call: The call.
        error: How it ended.
        level: Of the log.
    """
    now = time.monotonic()
    if isinstance(error, ServerBusy):
        if stall.busy(now):
            _logger.log(level, "the edge has no room for calls at '%s': %s", call.head.split, error)
        return
    if stall.unanswered(now):
        _logger.log(
            level, "the edge fails the calls at '%s', and is asked again until it answers: %s", call.head.split, error
        )


class Asked:
    """A call's request on its way, for a caller that looks after the device meanwhile; sent once more where it is lost.

    Args:
        edge: What sent it.
        call: The call.
        body: Its payload.

    Source: this project.
    """

    def __init__(self, edge: Edge, call: Call, body: bytes) -> None:
        """Start without a connection."""
        self._edge = edge
        self._call = call
        self._body = body
        self._client: Client | None = None  # that it went over; None while a connection is waited for
        self._pending: PendingReply | None = None
        self._error: CompoffError | None = None

    def send(self, client: Client, seconds: float) -> PendingReply:
        """Send it.

        Args:
            client: The connection to send it over.
            seconds: Time that the server is told it has.

        Returns:
            The answer to come.

        Raises:
            WireError: It could not be sent; ask ``failed`` whether that is the last word.
        """
        self._client = client
        self._pending = self._edge.send(client, self._call, self._body, seconds)
        return self._pending

    def wait(self, until: float) -> bool:
        """Wait, for the answer or for a fresh connection, until a moment of ``time.monotonic()`` at most.

        Returns:
            Whether ``settle`` returns or raises at once.
        """
        try:
            if self._error is None:
                pending = self._pending or self._send_again(until)
                if not pending.wait(max(0.0, until - time.monotonic())):
                    return False
                pending.result()
        except (WireError, PayloadError) as error:
            return self.failed(error)
        return True

    def settle(self) -> tuple[Any, CallReport]:
        """The call's output and report, after ``wait`` has said that they are there.

        Raises:
            WireError: The edge gave no answer; the class says why.
            PayloadError: It could not decode the payload.
        """
        if self._error is not None or self._pending is None:
            raise self._error or self._call.late()
        return self._edge.settle(self._call, self._pending.result(), self._pending.server_seconds)

    def end(self) -> None:
        """Give up what has not come, and let go of the connection."""
        if self._pending is not None:
            self._pending.cancel()
        if self._client is not None and self._client is not self._edge.link.current:
            self._edge.link.release(self._client)

    def _send_again(self, until: float) -> PendingReply:
        call = self._call
        client = self._edge.link.connection(until, ATTEMPTS)
        return self.send(client, call.left(call.deadline))

    def failed(self, error: CompoffError) -> bool:
        """Note an error; whether it is the last word.

        Args:
            error: How connecting, sending or waiting ended.
        """
        call, client, link = self._call, self._client, self._edge.link
        if client is None:
            if isinstance(error, ConnectTimeout) and time.monotonic() < call.deadline:
                return False  # no connection yet
        elif isinstance(error, ReadTimeout):
            self._edge.unanswered(call, error)
        elif isinstance(error, (RemoteError, PayloadError, ServerBusy)):
            self._edge.refused(call, error)
        elif isinstance(error, (ConnectionLost, RemoteProtocolError)):
            if call.retried:
                link.report(client, error)
            elif self._edge.repeats(call, client, error, call.deadline):
                self.end()
                self._client = self._pending = None
                return False
        self._error = error
        return True
