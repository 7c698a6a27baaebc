"""The blocking client: one persistent connection, for any number of threads, with many requests in flight.

Bytes only: what they mean is for ``compoff.device``. ``exchange`` does the work; ``async_client`` is the asyncio twin.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from compoff.errors import ReadTimeout
from compoff.wire.client_protocol import MAX_REPLY_BYTES, ClientProtocol
from compoff.wire.exchange import Exchange, deadline_field
from compoff.wire.sockets import check_timeout, open_stream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from typing_extensions import Self

    from compoff.wire.messages import Offer
    from compoff.wire.moved import Moved
    from compoff.wire.slot import Slot

__all__ = ["Client", "PendingReply", "open_client"]


class PendingReply:
    """An answer on its way; ``Client.submit`` makes it.

    Source: this project.
    """

    __slots__ = ("_exchange", "_slot")

    def __init__(self, exchange: Exchange, slot: Slot) -> None:
        """Start unanswered."""
        self._exchange = exchange
        self._slot = slot

    def done(self) -> bool:
        """Whether ``result`` would return or raise at once. Reads what has arrived; does not wait."""
        return self.wait(0.0)

    def wait(self, timeout: float) -> bool:
        """Wait for the answer, but give nothing up.

        Args:
            timeout: Seconds; the request's own deadline ends the wait, too.

        Returns:
            Whether ``result`` would return or raise at once.
        """
        slot = self._slot
        if not slot.done:
            self._exchange.wait(slot, min(time.monotonic() + timeout, slot.deadline))
        return slot.done or time.monotonic() >= slot.deadline

    def result(self) -> bytes:
        """Wait for the answer, until the deadline given to ``submit``.

        Returns:
            The reply's body.

        Raises:
            ReadTimeout: No answer came in time; a late one is dropped.
            PayloadError: The server could not decode the payload.
            RemoteError: The tail raised.
            ServerBusy: The server has no room for the request now.
            ConnectionLost: The connection broke, was closed, or the server is stopping.
            RemoteProtocolError: The server broke the protocol.
        """
        slot = self._slot
        if not slot.done:
            self._exchange.wait(slot, slot.deadline)
        if not slot.done:
            message = f"{self._exchange.address} gave no answer within {slot.timeout:g} s; a late one will be dropped"
            self._exchange.drop(slot, ReadTimeout(message))
        if slot.error is not None:
            raise slot.error
        return slot.body

    @property
    def server_seconds(self) -> float:
        """Seconds from the request's arrival at the server to its answer, as the server says; 0 before there is one."""
        return self._slot.server_seconds

    def cancel(self) -> None:
        """Give the answer up: ``result`` raises ReadTimeout unless it is there, and the server need not make it."""
        message = f"the request to {self._exchange.address} was cancelled on this side"
        self._exchange.drop(self._slot, ReadTimeout(message), cancel=True)


class Client:
    """One connection to a server; safe to use from many threads, and a context manager. ``open_client`` makes it.

    Source: this project.
    """

    def __init__(self, exchange: Exchange) -> None:
        """Take over an exchange after its handshake."""
        self._exchange = exchange
        self._protocol = exchange.protocol

    @property
    def address(self) -> str:
        """The server's address, as it was given."""
        return self._exchange.address

    @property
    def window(self) -> int:
        """Requests that may be unanswered at a time; one more raises ServerBusy."""
        return self._protocol.window

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be over; open another one then."""
        return self._exchange.closed

    @property
    def stuck(self) -> bool:
        """Whether requests past their deadline hold the whole window; open another connection then."""
        return self._protocol.stuck

    @property
    def idle(self) -> bool:
        """Whether nobody awaits an answer on this connection."""
        return self._exchange.idle

    @property
    def idle_timeout(self) -> float:
        """Seconds without any message after which the server closes the connection; 0 for never."""
        return self._protocol.idle_timeout

    @property
    def queue_seconds(self) -> float:
        """Seconds that a request would have waited in the server's queue at the time of the last ping."""
        return self._protocol.queue_seconds

    @property
    def moved(self) -> Moved:
        """How far the bytes in both directions have come: whether a long message is on its way."""
        return self._exchange.moved

    def look(self) -> None:
        """Read what has arrived, without waiting, so that ``closed`` knows of a goodbye that came meanwhile."""
        self._exchange.look()

    @property
    def unserved(self) -> tuple[bytes, ...]:
        """Ids of the artifacts offered that the server does not hold, while it holds others."""
        return self._protocol.unserved

    def max_payload_bytes(self, route: int = 0) -> int:
        """Longest request body of an artifact, in bytes."""
        return self._protocol.routes[route].max_payload_bytes

    def submit(self, body: bytes, *, route: int = 0, timeout: float = 30.0) -> PendingReply:
        """Send a request; its answer is read by whoever waits for any answer on this connection.

        Args:
            body: Payload bytes.
            route: Index into the offers given to ``open_client``.
            timeout: Seconds from now until nobody waits for the answer any more; the server is told.

        Returns:
            The answer to come. A connection that breaks while sending shows there, too.

        Raises:
            LocalProtocolError: An unknown route, a body longer than the artifact allows, or a timeout not above 0.
            ArtifactMismatch: The server does not hold the artifact of this route.
            ServerBusy: ``window`` requests are unanswered.
            ConnectionLost: The connection is over, or the server is stopping.
        """
        seconds = check_timeout(timeout)
        if self._protocol.unserved:
            self.look()  # a server that serves it now has said goodbye, so that its clients ask anew

        def queue() -> int:
            return self._protocol.send_request(body, route=route, deadline_ms=deadline_field(seconds))

        return PendingReply(self._exchange, self._exchange.start(queue, seconds))

    def request(self, body: bytes, *, route: int = 0, timeout: float = 30.0) -> bytes:
        """Send a request and wait for its answer.

        Args:
            body: Payload bytes.
            route: Index into the offers given to ``open_client``.
            timeout: Seconds.

        Returns:
            The reply's body.

        Raises:
            WireError: What ``submit`` and ``PendingReply.result`` raise.
            PayloadError: The server could not decode the payload.
        """
        return self.submit(body, route=route, timeout=timeout).result()

    def ping(self, *, timeout: float = 5.0) -> float:
        """Seconds from here to the server and back, without any work there.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            WireError: What ``request`` raises.
        """
        start = time.perf_counter()
        PendingReply(self._exchange, self._exchange.start(self._protocol.send_ping, timeout)).result()
        return time.perf_counter() - start

    def close(self) -> None:
        """Say goodbye and close the connection; unanswered requests get ConnectionLost."""
        self._exchange.close()

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


def open_client(
    address: str,
    offers: Sequence[bytes | Offer],
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    connect_timeout: float = 5.0,
    max_reply_bytes: int = MAX_REPLY_BYTES,
) -> Client:
    """Connect to a server that holds the tails of some artifacts.

    Args:
        address: ``"host:port"``, or ``"[host]:port"`` for an IPv6 host.
        offers: The exports to use: their ids, 32 bytes each, or `Offer`, which has the form of the replies, too; a
            request names one by its index, its route.
        token: The server's shared secret, or None.
        tls: Context of a TLS client; None for plain TCP.
        connect_timeout: Seconds for everything up to the server's welcome.
        max_reply_bytes: Longest reply taken, in bytes.

    Returns:
        The client, ready for requests.

    Raises:
        ConnectTimeout: The server was not found or gave no welcome in time.
        ConnectionLost: Nobody listens there, or who does hung up before it answered.
        AuthenticationError: The server refused the token.
        ArtifactMismatch: The server holds the tail of none of the artifacts; ``unserved`` names single ones.
        ServerBusy: The server has no room for another connection.
        RemoteProtocolError: Something else than a compoff server of this version listens there.
        LocalProtocolError: An argument has a form that cannot be sent, or the server has no such form of reply.

    Examples:
        >>> from compoff.edge.server import serve
        >>> class Upper:
        ...     artifact_id = bytes(32)
        ...     max_payload_bytes = 100
        ...     def answer(self, payload):
        ...         return payload.upper()
        >>> with serve(Upper()) as server, open_client(server.address, [bytes(32)]) as client:
        ...     client.request(b"payload", timeout=5.0)
        b'PAYLOAD'

    Source: this project.
    """
    connect_timeout = check_timeout(connect_timeout)
    deadline = time.monotonic() + connect_timeout
    protocol = ClientProtocol(offers, token=token, max_reply_bytes=max_reply_bytes)
    exchange = Exchange(open_stream(address, tls=tls, deadline=deadline), protocol, address)
    exchange.handshake(connect_timeout, deadline)
    return Client(exchange)
