"""The server: listens, and answers any number of devices in the background until it is closed.

This file is the face: ``connection`` speaks to one client, ``service`` keeps the limits, ``workers`` run the tails.
Bytes only: it knows nothing of models.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compoff.edge.connection import Connection
from compoff.edge.service import Limits, Service
from compoff.edge.workers import Servable
from compoff.errors import WireError
from compoff.wire.address import format_address, parse_address

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self

__all__ = ["Servable", "Server", "serve"]

_logger = logging.getLogger("compoff.serve")


class Server:
    """A running server; a context manager. ``serve`` makes it.

    Examples:
        >>> class Echo:
        ...     artifact_id = bytes(32)
        ...     max_payload_bytes = 100
        ...     def answer(self, payload):
        ...         return payload
        >>> server = serve(Echo())
        >>> server.wait(timeout=0.0)
        False
        >>> server.close()
        >>> server.wait()
        True

    Source: this project.
    """

    def __init__(self, service: Service, address: str, tls: ssl.SSLContext | None) -> None:
        """Listen, in a thread of its own with an event loop of its own; return when it does."""
        self._service = service
        self._host, self._port = parse_address(address)
        self._tls = tls
        self._stopped = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        started: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="compoff-serve", daemon=True)
        self._thread.start()
        try:
            self.address = started.result()
        except (OSError, UnicodeError) as error:
            self._thread.join()
            reason = getattr(error, "strerror", None) or error
            message = f"cannot listen on {address}: {reason}; choose another port, or port 0 for any"
            raise WireError(message) from error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server is closed.

        Args:
            timeout: Seconds; None waits without end.

        Returns:
            Whether it is closed.
        """
        return self._stopped.wait(timeout)

    def close(self) -> None:
        """Stop: take no new requests, send the answers in flight (up to ``drain_timeout``), close. Again: no effect."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def __enter__(self) -> Self:
        """The server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the server."""
        self.close()

    def _run(self, started: concurrent.futures.Future[str]) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            if started.done():
                _logger.exception("the server stopped")
            else:
                started.set_exception(error)
        finally:
            self._service.stop()
            self._stopped.set()

    async def _serve(self, started: concurrent.futures.Future[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        handshake = self._service.limits.handshake_timeout if self._tls is not None else None
        listener = await self._loop.create_server(
            lambda: Connection(self._service),
            self._host,
            self._port,
            ssl=self._tls,
            ssl_handshake_timeout=handshake,
            backlog=256,
        )
        host, port = listener.sockets[0].getsockname()[:2]
        _logger.info("listening on %s", format_address(host, port))
        watch = asyncio.create_task(self._service.watch())
        started.set_result(format_address(host, port))
        await self._stop.wait()
        listener.close()
        await self._service.drain()
        watch.cancel()


def serve(
    tails: Servable | Sequence[Servable],
    address: str = "127.0.0.1:0",
    *,
    # who may come in
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    # how much
    max_connections: int = 1024,
    window: int = 16,
    workers: int = 1,
    max_pending: int = 256,
    max_held_bytes: int = 2**28,
    # how long
    handshake_timeout: float = 3.0,
    message_timeout: float = 5.0,
    idle_timeout: float = 300.0,
    drain_timeout: float = 5.0,
) -> Server:
    """Answer devices in the background.

    Args:
        tails: One tail or several of different exports.
        address: ``"host:port"`` to listen on; port 0 picks a free one.
        token: A shared secret that clients must know; None lets everyone in.
        tls: Context of a TLS server; None for plain TCP.
        max_connections: Clients at a time; one more is told to come later.
        window: Unanswered requests at a time on one connection; one more is refused as busy.
        workers: Threads that run tails.
        max_pending: Requests that may wait for the workers, of all connections; one more is refused as busy.
        max_held_bytes: Payloads waiting and messages half received, of all connections, in bytes; and as many again of
            answers that clients do not take: beyond it, whoever leaves the most of them is cut off.
        handshake_timeout: Seconds for a new client to say HELLO.
        message_timeout: Seconds from a message's first byte to its last, or without any answer being read.
        idle_timeout: Seconds without any message after which a connection is closed.
        drain_timeout: Seconds that ``close`` gives the answers in flight.

    Returns:
        The server, listening.

    Raises:
        LocalProtocolError: An argument cannot be served.
        WireError: The address cannot be listened on.

    Examples:
        >>> class Reverse:
        ...     artifact_id = bytes(32)
        ...     max_payload_bytes = 100
        ...     def answer(self, payload):
        ...         return payload[::-1]
        >>> with serve(Reverse()) as server:
        ...     server.address.startswith("127.0.0.1:")
        True

    Source: this project.
    """
    how_much = (max_connections, window, max_pending, max_held_bytes)
    how_long = (handshake_timeout, message_timeout, idle_timeout, drain_timeout)
    parse_address(address)
    every_tail = list(tails) if isinstance(tails, Sequence) else [tails]
    return Server(Service(every_tail, token, Limits(*how_much, *how_long), workers), address, tls)
