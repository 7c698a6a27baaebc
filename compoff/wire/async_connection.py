"""One asyncio connection of a client: bytes to the state machine, answers to the futures of those who wait.

Bytes only; the face of this is ``async_client``, the blocking twin ``exchange``.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

from compoff.errors import CompoffError, ConnectionLost, LocalProtocolError, WireError
from compoff.forks import FORKED, leave_to_parent
from compoff.wire.client_protocol import HUNG_UP
from compoff.wire.encryption import ssl
from compoff.wire.exchange import relocate
from compoff.wire.moved import Moved, unsent
from compoff.wire.protocol import Answer, Opened, Refusal
from compoff.wire.receiver import Receiver, leave_transport, new_buffer
from compoff.wire.sockets import tls_error

if TYPE_CHECKING:
    from compoff.wire.client_protocol import ClientProtocol

__all__ = ["AsyncConnection", "reject"]

_BUFFER_BYTES = 2**16


class AsyncConnection(Receiver):
    """Moves bytes between the transport and the state machine, and answers to their futures.

    Args:
        protocol: The client's state machine, with its HELLO still to send.
        address: The server's, for messages.

    Source: this project.
    """

    def __init__(self, protocol: ClientProtocol, address: str) -> None:
        super().__init__(new_buffer(_BUFFER_BYTES))
        self.protocol = protocol
        self.address = address
        self.failure: CompoffError | None = None
        self.welcome: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self.waiting: dict[int, asyncio.Future[Answer]] = {}
        self.writable = asyncio.Event()
        self.writable.set()
        self.gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._came = self._written = 0  # bytes
        leave_to_parent(self)

    def abandon(self) -> None:
        """Be over, in a forked child: both processes would take each other's answers."""
        leave_transport(self._transport)
        self._transport = None
        self.failure = LocalProtocolError(f"this connection to {self.address} was {FORKED}")
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.gone.set()
            self.fail(self.failure)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what waits to be sent."""
        self._transport = cast("asyncio.Transport", transport)
        self.flush()

    @property
    def moved(self) -> Moved:
        """How far the bytes in both directions have come."""
        transport = self._transport
        if transport is None:
            return Moved(self._came, 0)
        sock = transport.get_extra_info("socket")
        below = unsent(sock.fileno()) if sock is not None and sock.fileno() >= 0 else 0
        return Moved(self._came, self._written - transport.get_write_buffer_size() - below)

    def receive(self, data: bytes) -> None:
        """Settle the answers that came."""
        self._came += len(data)
        try:
            events = self.protocol.receive_data(data)
        except WireError as error:
            self.fail(relocate(error, self.address))
            return
        for event in events:
            if isinstance(event, Opened):
                if not self.welcome.done():
                    self.welcome.set_result(event)
            elif isinstance(event, Answer):
                _resolve(self.waiting.pop(event.request_id, None), event)
            elif isinstance(event, Refusal):
                reject(self.waiting.pop(event.request_id, None), relocate(event.error, self.address))

    def eof_received(self) -> bool:
        """The server has closed its side."""
        try:
            self.protocol.receive_eof()
        except WireError as error:
            self.fail(relocate(error, self.address))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever still waits gets the reason."""
        if isinstance(exc, ssl.SSLError):  # in TLS 1.3 a server refuses a certificate after the handshake
            self.fail(tls_error(self.address, exc))
        reason = exc or "it was closed"
        if self.protocol.opened:
            self.fail(ConnectionLost(f"the connection to {self.address} broke: {reason}; ask again"))
        else:
            self.fail(ConnectionLost(f"{self.address} {HUNG_UP} ({reason})"))
        self.gone.set()

    def pause_writing(self) -> None:
        """The server does not read: who wants to write has to wait."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """The server reads again."""
        self.writable.set()

    def flush(self) -> None:
        """Write what is to be sent."""
        data = self.protocol.data_to_send()
        if data and self._transport is not None:
            self._written += len(data)
            self._transport.write(data)

    def fail(self, error: CompoffError) -> None:
        """Give everything that waits the error; the first error is the connection's."""
        self.failure = self.failure or error
        waiting, self.waiting = self.waiting, {}
        for future in waiting.values():
            reject(future, type(error)(*error.args))
        reject(self.welcome, error)
        self.writable.set()
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """Say goodbye, as far as that goes out at once: whoever closes may fail it next."""
        self.protocol.send_goodbye()
        self.flush()
        if self._transport is not None:
            self._transport.close()


def _resolve(future: asyncio.Future[Answer] | None, answer: Answer) -> None:
    if future is not None and not future.done():
        future.set_result(answer)


def reject(future: asyncio.Future[Any] | None, error: CompoffError) -> None:
    """Give a future an error, unless it is settled.

    Args:
        future: The future, if there is one.
        error: The error.
    """
    if future is not None and not future.done():
        future.set_exception(error)
        future.exception()  # seen: where nobody awaits it any more, asyncio has nothing to log
