"""A call's way to the edge and back: over the connection that stands, and once more over a fresh one where it breaks.

Knows nothing of what happens where the edge cannot answer; that is for ``fallback``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from compoff.device.timing import Estimate, RetryBudget
from compoff.errors import ConnectionLost, ReadTimeout, RemoteProtocolError

if TYPE_CHECKING:
    from compoff.device.answers import CallReport
    from compoff.device.calls import Call
    from compoff.device.link import Link
    from compoff.device.statistics import Tally
    from compoff.errors import CompoffError
    from compoff.wire.client import Client, PendingReply

__all__ = ["ATTEMPTS", "Edge"]

ATTEMPTS = 2  # to connect, that a call without a connection waits for


class Edge:
    """What answers calls over a link.

    Args:
        link: The connection.
        tally: Where retries are counted.

    Source: this project.
    """

    def __init__(self, link: Link, tally: Tally) -> None:
        """Start with a full budget of retries."""
        self.link = link
        self.seconds = Estimate()  # from sending to the reply
        self._tally = tally
        self._budget = RetryBudget()

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
            pending = client.submit(body, route=call.route, timeout=seconds)
            reply = pending.result()
        except (ConnectionLost, RemoteProtocolError) as error:
            pending, reply = self._once_more(call, body, client, error, until)
        except ReadTimeout as error:
            self.link.suspect(error)
            raise
        finally:
            if client is not self.link.current:
                self.link.release(client)
        return self.settle(call, reply, pending.server_seconds)

    def submit(self, call: Call, until: float) -> tuple[Client, PendingReply]:
        """Send a call's request without waiting for its answer.

        Args:
            call: The call.
            until: Moment of ``time.monotonic()`` until which a connection is waited for.

        Returns:
            The connection it went over, and the answer to come, until the call's own deadline.

        Raises:
            WireError: It could not be sent.
        """
        body = call.encode()
        client = self.link.connection(until, ATTEMPTS)
        return client, client.submit(body, route=call.route, timeout=call.left(call.deadline))

    def settle(self, call: Call, reply: bytes, server_seconds: float) -> tuple[Any, CallReport]:
        """A call's output and report, from the reply and the time it took at the server.

        Raises:
            RemoteProtocolError: The reply is not what this export's tail answers.
        """
        self.seconds.add(time.monotonic() - call.encoded)
        self._budget.earn()
        return call.from_edge(reply, server_seconds)

    def _once_more(
        self, call: Call, body: bytes, broken: Client, error: CompoffError, until: float
    ) -> tuple[PendingReply, bytes]:
        """Send again over a fresh connection: the tail changes nothing by answering, so it may do so twice."""
        link = self.link
        link.report(broken, error)
        least = 2 * (link.round_trip.mean or 0.0)
        if link.closed or until - time.monotonic() <= least or not self._budget.spend():
            raise error
        call.retried, call.reason = True, str(error)
        self._tally.retried()
        client = link.connection(until, ATTEMPTS)
        seconds = call.left(until)
        try:
            pending = client.submit(body, route=call.route, timeout=seconds)
            return pending, pending.result()
        except (ConnectionLost, RemoteProtocolError) as again:
            link.report(client, again)
            raise
        except ReadTimeout as late:
            link.suspect(late)
            raise
        finally:
            if client is not link.current:
                link.release(client)
