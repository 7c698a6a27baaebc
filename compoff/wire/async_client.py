"""The asyncio client: one persistent connection with many requests in flight, inside one event loop.

Bytes only: what they mean is for ``compoff.device``. The blocking twin is ``client``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

from compoff.errors import ConnectionLost, ConnectTimeout, ReadTimeout, WireError
from compoff.wire.async_connection import AsyncConnection, reject
from compoff.wire.client_protocol import MAX_REPLY_BYTES, ClientProtocol
from compoff.wire.exchange import deadline_field
from compoff.wire.sockets import check_timeout, connect_error, look_up, parse_target

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from typing_extensions import Self

    from compoff.wire.messages import Offer
    from compoff.wire.moved import Moved
    from compoff.wire.protocol import Answer
    from compoff.wire.sockets import Addresses

__all__ = ["AsyncClient", "open_async_client"]


class AsyncClient:
    """One connection to a server, for the tasks of one event loop; an async context manager.

    ``open_async_client`` makes it.

    Source: this project.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        """Take over a connection after its handshake."""
        self._connection = connection
        self._protocol = connection.protocol

    @property
    def address(self) -> str:
        """The server's address, as it was given."""
        return self._connection.address

    @property
    def window(self) -> int:
        """Requests that may be unanswered at a time; one more raises ServerBusy."""
        return self._protocol.window

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be over; open another one then."""
        return self._connection.failure is not None or self._protocol.closing

    @property
    def idle_timeout(self) -> float:
        """Seconds without any message after which the server closes the connection; 0 for never."""
        return self._protocol.idle_timeout

    @property
    def queue_seconds(self) -> float:
        """Seconds that a request would have waited in the server's queue at the time of the last ping."""
        return self._protocol.queue_seconds

    @property
    def stuck(self) -> bool:
        """Whether requests past their deadline hold the whole window; open another connection then."""
        return self._protocol.stuck

    @property
    def idle(self) -> bool:
        """Whether nobody awaits an answer on this connection."""
        return not self._connection.waiting

    @property
    def moved(self) -> Moved:
        """How far the bytes in both directions have come: whether a long message is on its way."""
        return self._connection.moved

    @property
    def unserved(self) -> tuple[bytes, ...]:
        """Ids of the artifacts offered that the server does not hold, while it holds others."""
        return self._protocol.unserved

    def max_payload_bytes(self, route: int = 0) -> int:
        """Longest request body of an artifact, in bytes."""
        return self._protocol.routes[route].max_payload_bytes

    async def request(self, body: bytes, *, route: int = 0, timeout: float = 30.0) -> bytes:
        """Send a request and wait for its answer; a cancelled task gives the answer up.

        Args:
            body: Payload bytes.
            route: Index into the offers given to ``open_async_client``.
            timeout: Seconds until nobody waits for the answer any more; the server is told.

        Returns:
            The reply's body.

        Raises:
            LocalProtocolError: An unknown route, a body longer than the artifact allows, or a timeout not above 0.
            ReadTimeout: No answer came in time; a late one is dropped.
            PayloadError: The server could not decode the payload.
            RemoteError: The tail raised.
            ServerBusy: ``window`` requests are unanswered, or the server has no room for the request now.
            ConnectionLost: The connection broke, was closed, or the server is stopping.
            RemoteProtocolError: The server broke the protocol.
        """
        return (await self.ask(body, route=route, timeout=timeout)).body

    async def ask(
        self, body: bytes, *, route: int = 0, timeout: float = 30.0, sent: Callable[[int], None] | None = None
    ) -> Answer:
        """Send a request and wait for its answer, as ``request`` does, and hear how long it took at the server, too.

        Args:
            body: As for ``request``.
            route: As for ``request``.
            timeout: As for ``request``.
            sent: Called with the bytes of the body where nothing keeps the request from being sent.

        Returns:
            The answer, with ``body`` and ``server_seconds``.

        Raises:
            CompoffError: What ``request`` raises.
        """
        seconds = check_timeout(timeout)

        def queue() -> int:
            request_id = self._protocol.send_request(body, route=route, deadline_ms=deadline_field(seconds))
            if sent is not None:
                sent(len(body))
            return request_id

        return await self._ask(queue, seconds)

    async def ping(self, *, timeout: float = 5.0) -> float:
        """Seconds from here to the server and back, without any work there.

        Args:
            timeout: Seconds to wait for it.

        Raises:
            WireError: What ``request`` raises.
        """
        start = time.perf_counter()
        await self._ask(self._protocol.send_ping, timeout)
        return time.perf_counter() - start

    async def close(self) -> None:
        """Say goodbye and close the connection; unanswered requests get ConnectionLost."""
        self.leave()
        await self._connection.gone.wait()

    def leave(self) -> None:
        """Do as ``close``, but wait for nothing; in the event loop's thread."""
        message = f"the connection to {self.address} was closed on this side; open a new one"
        self._connection.finish()
        self._connection.fail(ConnectionLost(message))

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self.close()

    async def _ask(self, queue: Callable[[], int], timeout: float) -> Answer:
        timeout = check_timeout(timeout)
        connection = self._connection
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        if not connection.writable.is_set():
            await self._writable(timeout)
        if connection.failure is not None:
            raise type(connection.failure)(*connection.failure.args)
        request_id = queue()
        future: asyncio.Future[Answer] = loop.create_future()
        connection.waiting[request_id] = future
        timer = loop.call_at(deadline, self._expire, future, timeout)
        try:
            connection.flush()
            return await future
        finally:
            timer.cancel()
            if connection.waiting.pop(request_id, None) is not None:
                self._give_up(request_id, future)

    def _give_up(self, request_id: int, future: asyncio.Future[Answer]) -> None:
        if not future.cancelled():  # its deadline is over, which the server knows itself
            self._protocol.abandon(request_id)
            return
        self._protocol.send_cancel(request_id)
        self._connection.flush()

    async def _writable(self, timeout: float) -> None:
        try:
            await asyncio.wait_for(self._connection.writable.wait(), timeout)
        except asyncio.TimeoutError:
            raise self._late(timeout) from None

    def _expire(self, future: asyncio.Future[Answer], timeout: float) -> None:
        reject(future, self._late(timeout))

    def _late(self, timeout: float) -> ReadTimeout:
        return ReadTimeout(f"{self.address} gave no answer within {timeout:g} s; a late one will be dropped")


async def open_async_client(
    address: str,
    offers: Sequence[bytes | Offer],
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    connect_timeout: float = 5.0,
    max_reply_bytes: int = MAX_REPLY_BYTES,
) -> AsyncClient:
    """Connect to a server that holds the tails of some artifacts, as ``open_client`` does.

    Args:
        address: ``"host:port"``, or ``"[host]:port"`` for an IPv6 host.
        offers: As for ``open_client``.
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
        >>> async def main(address):
        ...     async with await open_async_client(address, [bytes(32)]) as client:
        ...         return await asyncio.gather(*(client.request(word) for word in (b"head", b"tail")))
        >>> with serve(Upper()) as server:
        ...     asyncio.run(main(server.address))
        [b'HEAD', b'TAIL']

    Source: this project.
    """
    connect_timeout = check_timeout(connect_timeout)
    parse_target(address)
    connection = AsyncConnection(ClientProtocol(offers, token=token, max_reply_bytes=max_reply_bytes), address)
    await _connect(connection, tls, connect_timeout)
    return AsyncClient(connection)


async def _connect(connection: AsyncConnection, tls: ssl.SSLContext | None, timeout: float) -> None:
    address = connection.address
    host, port = parse_target(address)

    async def connect() -> None:
        sock = await _dial(await _addresses(host, port), time.monotonic() + timeout)
        await asyncio.get_running_loop().create_connection(
            lambda: connection, sock=sock, ssl=tls, server_hostname=host if tls is not None else None
        )
        await connection.welcome

    attempt = asyncio.ensure_future(connect())
    attempt.add_done_callback(_seen)
    try:
        await asyncio.wait_for(attempt, timeout)
    except WireError:
        raise
    except asyncio.TimeoutError as error:
        message = f"{address} gave no welcome within {timeout:g} s; is it a compoff server, and up?"
        connection.fail(ConnectTimeout(message))
        raise ConnectTimeout(message) from error
    except OSError as error:
        raise connect_error(address, error) from error
    except BaseException:
        connection.fail(ConnectionLost("connecting was cancelled"))
        raise


def _seen(attempt: asyncio.Future[None]) -> None:
    """Look at how an attempt ended that was given up in that moment, or asyncio logs a traceback."""
    if not attempt.cancelled():
        attempt.exception()


async def _addresses(host: str, port: int) -> Addresses:
    """Addresses of a host. Not the loop's own way: its threads are waited for when the loop ends."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Addresses | OSError] = loop.create_future()

    def settle(found: Addresses | OSError) -> None:
        if not answer.done():
            answer.set_result(found)

    def done(found: Addresses | OSError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found)

    look_up(host, port, done)
    found = await answer
    if isinstance(found, OSError):
        raise found
    return found


async def _dial(addresses: Addresses, deadline: float) -> socket.socket:
    """A socket connected to the first address that answers within its share of the time."""
    failure: OSError = OSError("no addresses")
    for index, (family, target) in enumerate(addresses):
        sock: socket.socket | None = None
        seconds = (deadline - time.monotonic()) / (len(addresses) - index)
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            await _connect_socket(sock, target, seconds)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if not isinstance(error, (OSError, asyncio.TimeoutError)):
                raise
            failure = error if isinstance(error, OSError) else TimeoutError()
        else:
            return sock
    raise failure


async def _connect_socket(sock: socket.socket, target: Any, seconds: float) -> None:
    """Connect. Unlike ``asyncio.wait_for`` before Python 3.12, this loses no cancellation that comes as it succeeds."""
    connecting = asyncio.ensure_future(asyncio.get_running_loop().sock_connect(sock, target))
    connecting.add_done_callback(_seen)
    try:
        await asyncio.wait([connecting], timeout=max(0.0, seconds))
    finally:
        if not connecting.done():
            connecting.cancel()
            await asyncio.wait([connecting])  # or the loop would still look for a socket that is closed
    if connecting.cancelled():
        raise asyncio.TimeoutError
    connecting.result()
