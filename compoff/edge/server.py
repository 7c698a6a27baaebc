"""The server: listens, and answers any number of devices in the background until it is closed.

This file is the face: ``connection`` speaks to one client, ``service`` keeps the limits, ``workers`` run the tails.
Bytes only: it knows nothing of models.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compoff.checks import check_flag, check_number
from compoff.edge.connection import Connection
from compoff.edge.descriptors import room_for
from compoff.edge.door import Door
from compoff.edge.limits import Limits
from compoff.edge.servable import Servable
from compoff.edge.service import Service
from compoff.edge.watching import run_watching
from compoff.errors import BackendError, LocalProtocolError, WireError
from compoff.forks import give_up, leave_to_parent
from compoff.wire.address import format_address, parse_address
from compoff.wire.security import check_tokens, server_tls
from compoff.wire.tls import TLS, server_context

if TYPE_CHECKING:
    import selectors
    import ssl

    from typing_extensions import Self

    from compoff.edge.stats import ServerStats
    from compoff.wire.security import Tokens

__all__ = ["Servable", "Server", "serve"]

_logger = logging.getLogger("compoff.serve")
_SWAP_TIMEOUT = 10.0  # seconds; a loop that has stopped will never answer
_LOOK = 0.5  # seconds after which one that waits looks whether the thread was left behind
_HUNG = 2.0  # seconds beyond drain_timeout after which a loop that hangs in a tail is left behind


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

    def __init__(
        self, service: Service, address: str, tls: TLS | ssl.SSLContext | None, reuse_port: bool = False
    ) -> None:
        """Listen, in a thread of its own with an event loop of its own; return when it does."""
        self._service = service
        self._reuse_port = reuse_port
        self._host, self._port = parse_address(address)
        self._tls, self._certificates = server_context(tls)
        self._left_behind = False  # its thread hangs in a tail, and nobody waits for it any more
        self._listening: Sequence[socket.socket] = ()
        self._door: Door | None = None
        self._forked = False
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        started: concurrent.futures.Future[str] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="compoff-serve", daemon=True)
        try:
            self._thread.start()
            self.address = started.result()
            # A program that ends while a tail is at work would otherwise be aborted by the tail's runtime.
            atexit.register(self.close)
            leave_to_parent(self)
        except (OSError, UnicodeError) as error:
            self._thread.join()
            reason = getattr(error, "strerror", None) or error
            message = f"cannot listen on {address}: {reason}; choose another port, or port 0 for any"
            raise WireError(message) from error
        except BaseException:  # such as Ctrl-C, while a name is looked up: nobody has a handle to close it with
            if not started.cancel():  # it listens already
                self.close()
            raise

    def abandon(self) -> None:
        """Leave listening and all clients to the parent, in a forked child.

        Otherwise the child would keep the port open, and the clients waiting, when the parent is gone.
        """
        self._forked = True
        for sock in self._listening:
            give_up(sock.fileno())
        if self._door is not None:
            self._door.abandon()
        for peer in self._service.peers:
            peer.abandon()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the server is closed.

        Args:
            timeout: Seconds; None waits without end.

        Returns:
            Whether it is closed.

        Raises:
            LocalProtocolError: `timeout` is no number, or another process made the server.
        """
        self._check_made_here()
        check_number("timeout", timeout, LocalProtocolError, "seconds, or None to wait without end", or_none=True)
        end = math.inf if timeout is None else time.monotonic() + timeout
        # Not an event: a handler of signals that closes the server could interrupt who holds its lock.
        while self._thread.is_alive() and not self._left_behind:
            left = end - time.monotonic()
            if left <= 0:
                return False
            self._thread.join(min(left, _LOOK))
        return True

    def reload_certificates(self) -> None:
        """Read the files of ``tls`` again, for the connections to come; those that stand are not touched.

        Raises:
            LocalProtocolError: A file is missing or damaged, and what was in use stays in use; or the server was not
                given a `TLS`, or made by another process.
        """
        self._check_made_here()
        if self._certificates is None:
            raise LocalProtocolError("this server was not given tls=TLS(...), so it has no certificate files to reload")
        self._certificates.reload()

    def replace_tokens(self, token: Tokens) -> None:
        """Let in who knows another token, from now on; connections that stand are not touched.

        Args:
            token: The token, several of which each will do, or None to let everyone in.

        Raises:
            LocalProtocolError: A token has a form that cannot be sent, or another process made the server.
        """
        self._check_made_here()
        self._service.token = check_tokens(token)

    def stats(self) -> ServerStats:
        """What the server has counted up to now; costs microseconds and may be asked from any thread.

        Returns:
            Connections, bytes, and for each tail requests, errors, latencies and batch sizes.
        """
        return self._service.stats()

    def swap(self, tails: Servable | Sequence[Servable]) -> None:
        """Serve other tails from now on, without a pause.

        Requests that were taken are answered by the tail they came for. Devices whose tail is still there, or has come
        again in another form (compiled anew, say), notice nothing; calls of heads whose tail has gone raise
        `ArtifactMismatch`, until it is there again.

        Args:
            tails: All that is to be served.

        Raises:
            LocalProtocolError: The tails cannot be served, and nothing has changed; or the server is closed, or was
                made by another process.
        """
        self._check_made_here()
        every_tail = list(tails) if isinstance(tails, Sequence) else [tails]
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def swap() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(self._service.swap(every_tail))
            except BaseException as error:
                done.set_exception(error)

        if threading.current_thread() is self._thread:  # a tail asks for it, that is answered where requests come in
            swap()
            return done.result()
        try:
            self._loop.call_soon_threadsafe(swap)
        except RuntimeError:
            message = "the server is closed; serve the tails with a new one"
            raise LocalProtocolError(message) from None
        try:
            done.result(_SWAP_TIMEOUT)
        except concurrent.futures.TimeoutError:
            if not done.cancel():  # it has begun
                return done.result()
            message = "the server is stopping, or too busy, and serves what it did; try again, or serve with a new one"
            raise LocalProtocolError(message) from None

    def readmit(self) -> None:
        """Have every client connect again, under the tokens and certificates of now; answers in flight still go out.

        Raises:
            LocalProtocolError: Another process made the server.
        """
        self._check_made_here()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is connected
            self._loop.call_soon_threadsafe(self._service.dismiss_all)

    def close(self) -> None:
        """Stop: take no new requests, send the answers in flight (up to ``drain_timeout``), close. Again: no effect.

        The end of the program does it, too. In a forked child it is the parent's, and nothing happens. A tail that does
        it from where requests are received gets its answer out, and is not waited for.
        """
        atexit.unregister(self.close)
        if self._forked:  # a word to the loop would wake the parent's
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped already
            self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is self._thread:
            return
        self._thread.join(self._service.limits.drain_timeout + _HUNG)
        self._left_behind = self._thread.is_alive()

    def _check_made_here(self) -> None:
        if self._forked:
            raise LocalProtocolError("this server was made in another process; serve after the fork")

    def __enter__(self) -> Self:
        """The server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the server."""
        self.close()

    def _run(self, started: concurrent.futures.Future[str]) -> None:
        try:
            run_watching(lambda selector: self._serve(started, selector))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            elif not started.cancelled():
                _logger.exception("the server stopped")
        finally:
            self._service.stop()

    async def _serve(self, started: concurrent.futures.Future[str], selector: selectors.BaseSelector) -> None:
        self._loop = asyncio.get_running_loop()
        self._service.begin(self._loop)
        self._stop = asyncio.Event()
        listener = await self._loop.create_server(
            lambda: Connection(self._service),
            self._host,
            self._port,
            reuse_port=self._reuse_port or None,
            start_serving=False,  # that is for the door
        )
        if not started.set_running_or_notify_cancel():  # interrupted meanwhile
            listener.close()
            return
        self._listening = listener.sockets
        door = self._door = Door(listener.sockets, self._service, self._tls, selector)
        door.open()
        host, port = listener.sockets[0].getsockname()[:2]
        _logger.info("listening on %s", format_address(host, port))
        watch = asyncio.create_task(self._service.watch())
        started.set_result(format_address(host, port))
        await self._stop.wait()
        listener.close()
        door.close()
        await self._service.drain()
        watch.cancel()


def serve(
    tails: Servable | Sequence[Servable],
    address: str = "127.0.0.1:0",
    *,
    # who may come in
    token: Tokens = None,
    tls: TLS | ssl.SSLContext | None = None,
    insecure: bool = False,
    # where else
    reuse_port: bool = False,
    # how much
    max_connections: int = 1024,
    window: int = 16,
    workers: int = 1,
    decoders: int = 1,
    max_batch: int = 32,
    max_wait: float = 0.01,
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
        token: A shared secret that clients must know, or several of which each will do; None lets everyone in.
        tls: Certificates, or a context of your own; None for plain TCP, which only this machine can reach.
        insecure: Whether plain TCP may be reached from other machines: they can read and change what is sent.
        reuse_port: Whether other processes of this user may listen on the same port, too. Linux shares the connections
            out among them, macOS may give all of them to one, Windows refuses.
        max_connections: Clients at a time; one more is told to come later, or takes a place of whoever holds the most
            of them (by certificate, or by address) where it holds fewer by two. With TLS each takes a quarter of a
            megabyte.
            This process's soft limit of descriptors is raised for them; where the hard one is lower, they are fewer,
            and on Windows 448, since an event loop watches 512 sockets there.
        window: Unanswered requests at a time on one connection; one more is refused as busy.
        workers: Threads that run tails. A tail that answers in microseconds needs none: it is asked where its requests
            are received.
        decoders: Threads that decode payloads while the workers are busy.
        max_batch: Requests, of whichever devices and qualities, that run as one batch.
        max_wait: Seconds that a request may wait for as many others as the last batch had, but no longer than a quarter
            of what that took; who is alone never waits.
        max_pending: Requests that may wait or be under way, of all connections; beyond it the newest of whoever has the
            most of them is refused as busy.
        max_held_bytes: Payloads waiting and messages half received, of all connections, in bytes: beyond it, whoever
            has the longest message half received is put out. And as many again of answers that clients do not take:
            beyond it, whoever leaves the most of them is cut off.
        handshake_timeout: Seconds for a new client to say HELLO, those of the TLS handshake included.
        message_timeout: Seconds from a message's first byte to its last, or without any answer being read.
        idle_timeout: Seconds without any message after which a connection is closed. These three are at least a
            millisecond.
        drain_timeout: Seconds that ``close`` gives the answers in flight, and ``readmit`` a client to go.

    Returns:
        The server, listening.

    Raises:
        LocalProtocolError: An argument cannot be served.
        BackendError: The system cannot share a port, as `reuse_port` asks.
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
    how_much = (max_connections, window, max_pending, max_held_bytes, max_batch)
    how_long = (handshake_timeout, message_timeout, idle_timeout, drain_timeout)
    tls = server_tls(address, tls, insecure)
    check_flag("reuse_port", reuse_port, LocalProtocolError)
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise BackendError("this system cannot share a port among processes; leave reuse_port out")
    every_tail = list(tails) if isinstance(tails, Sequence) else [tails]
    limits = Limits(*how_much, *how_long)
    limits.check()
    limits = dataclasses.replace(limits, max_connections=room_for(max_connections))
    service = Service(every_tail, token, limits, workers=workers, decoders=decoders, max_wait=max_wait)
    try:
        return Server(service, address, tls, reuse_port)
    except BaseException:
        service.stop()
        raise
