"""One client's connection: bytes between its socket and the server's state machine, and its clocks.

What a stranger sends is judged in ``compoff.wire.server_protocol``; here it is only limited in time and in bytes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, cast

from compoff.edge.places import NO_ROOM, holder_name
from compoff.errors import WireError
from compoff.wire.frames import MAX_BODY_BYTES
from compoff.wire.messages import ErrorCode
from compoff.wire.moved import unsent
from compoff.wire.protocol import Canceled, Request
from compoff.wire.receiver import Receiver, leave_transport
from compoff.wire.server_protocol import ServerProtocol
from compoff.wire.tls import common_name

if TYPE_CHECKING:
    from compoff.edge.batching import Job, Outcome
    from compoff.edge.service import Service
    from compoff.wire.messages import Offer

__all__ = ["Connection"]

_logger = logging.getLogger("compoff.serve")
_WRITE_BUFFER_BYTES = 2**18  # beyond this a client that does not read its answers is not read from, either
_LAST_WORDS = 1.0  # seconds for a closing connection to take what is still written
_LINGER = 0.2  # seconds without a request before a stopping server closes: under a request it could destroy a reply


class _Untaken(NamedTuple):
    """Bytes of answers that a client has not taken: in the transport, and in the system below it.

    The system asks for more only when about a third of what it holds is gone, which takes a slow link many seconds: the
    transport alone does not show that a client reads.
    """

    here: int
    below: int

    def less_than(self, before: _Untaken) -> bool:
        """Whether the client took some since an earlier look.

        Some runtimes do not show what TLS has on its way to the system: it may fill up ``below``, but never lessens it.
        """
        return self.below < before.below or sum(self) < sum(before)


def _untaken(transport: asyncio.Transport) -> _Untaken:
    sock = transport.get_extra_info("socket")
    below = unsent(sock.fileno()) if sock is not None and sock.fileno() >= 0 else 0
    return _Untaken(_unwritten(transport), below)


def _unwritten(transport: asyncio.Transport) -> int:
    """Bytes that the system has not taken. From Python 3.11 on a transport of TLS leaves out what it has passed on."""
    size = transport.get_write_buffer_size()
    if sys.version_info >= (3, 11):
        carrier: asyncio.Transport | None = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        size += carrier.get_write_buffer_size() if carrier is not None else 0
    return size


class Connection(Receiver):
    """One client.

    Args:
        service: What the server's connections share.
        spent: Seconds of its handshake that are over already.

    Source: this project.
    """

    def __init__(self, service: Service, spent: float = 0.0) -> None:
        """Start without a socket."""
        super().__init__(service.buffer)
        self._service = service
        self._protocol = ServerProtocol(
            service.artifacts,
            token=service.token,
            window=service.limits.window,
            idle_timeout=service.limits.idle_timeout,
            check_reply=service.check_reply,
            expected_wait=service.expected_wait,
            admit=lambda: service.welcome(self),
        )
        self._transport: asyncio.Transport | None = None
        self.who = ""  # whose this is
        self._gone = False
        self._left = False  # the client's side is closed, and ours may not be yet
        self._drain_end: float | None = None  # when a connection that was asked to go has to be gone
        self.asked = time.monotonic()  # when the last request came, or the last answer went
        self._paused = False
        # When the handshake, that of TLS included, or the half message or the quiet began.
        self._since = time.monotonic() - spent
        self._messages = self._requests = 0
        self.held_bytes = 0
        self._untaken = _Untaken(0, 0)  # at the last look while writing is paused
        self.unread_bytes = 0
        self._abort_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._canceled: set[int] = set()

    @property
    def greeted(self) -> bool:
        """Whether the client has said HELLO and was welcomed."""
        return self._protocol.opened

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return self._protocol.in_flight > 0

    @property
    def offers(self) -> tuple[Offer, ...]:
        """The artifacts that the client has asked for, each with the form of its replies."""
        return self._protocol.offers

    @property
    def granted(self) -> tuple[bool, ...]:
        """For each of them whether it was served when the client asked."""
        return self._protocol.granted

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or refuse where there is no room."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.who = holder_name(self._transport.get_extra_info("peername"), self._transport.get_extra_info("peercert"))
        if not self._service.join(self):
            self._dismiss(ErrorCode.BUSY, NO_ROOM)

    def receive(self, data: bytes) -> None:
        """Take what came; a client that breaks the rules hears why and is closed."""
        try:
            events = self._protocol.receive_data(data)
        except WireError as error:
            self._service.closings.log("closed %s: %s", self._name(), error)
            self._service.refused += 1
            self._close()
            return
        self._account()
        for event in events:
            if isinstance(event, Request):
                self._service.take(event, self)
            elif isinstance(event, Canceled) and self._protocol.awaits(event.request_id):  # not answered meanwhile
                self._canceled.add(event.request_id)
        self._service.relieve()
        self._flush()
        if self._protocol.closing:
            self._finish_if_drained()

    def eof_received(self) -> bool:
        """The client has gone: nobody waits for its answers, and what it does not take at once it will not take."""
        self._left = True
        try:
            self._protocol.receive_eof()
        except WireError as error:
            _logger.debug("%s: %s", self._name(), error)
        self._abort_later()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what this connection held."""
        self._gone = True
        self._hold(0)
        self._protocol.discard()
        self.count_unread()
        for timer in (self._abort_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()
        if self._transport is not None:
            self._transport.close()  # no effect, but without it Python 3.10 complains of a TLS transport left open
        self._service.leave(self)

    def pause_writing(self) -> None:
        """The client does not read: stop reading from it, so that no more answers pile up."""
        self._paused = True
        self._since = time.monotonic()
        if self._transport is not None:
            self._untaken = _untaken(self._transport)
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._paused = False
        self._since = time.monotonic()
        if self._transport is not None:
            self._transport.resume_reading()

    def check_clock(self, now: float) -> None:
        """Close where a timeout is over."""
        self.count_unread()
        if self._transport is None or self._transport.is_closing():
            return
        limits = self._service.limits
        quiet = now - self._since
        if self._paused:
            self._check_progress(now, self._transport)
        elif not self._protocol.opened:
            if quiet >= limits.handshake_timeout:
                self._dismiss(ErrorCode.PROTOCOL, f"no HELLO came within {limits.handshake_timeout:g} s")
        elif self._protocol.buffered:
            if quiet >= limits.message_timeout:
                self._dismiss(ErrorCode.PROTOCOL, f"a message was not complete within {limits.message_timeout:g} s")
        elif not self._protocol.in_flight and quiet >= limits.idle_timeout:
            self._protocol.send_goodbye()
            self._close()

    def drain(self) -> None:
        """Say goodbye; close when the answers in flight are sent, whatever else the client still says."""
        if not self._protocol.opened:
            self._dismiss(ErrorCode.CLOSING, "this connection is being closed; connect again")
            return
        if self._drain_end is None:
            self.asked = time.monotonic()
            self._drain_end = self.asked + self._service.limits.drain_timeout
        self._protocol.send_goodbye()
        self._flush()
        self._finish_if_drained()

    def put_out(self) -> None:
        """Close, since the bytes held here are wanted."""
        self._dismiss(ErrorCode.BUSY, "the server holds as many bytes as it may; try again later")

    def abort(self) -> None:
        """Close at once."""
        self._gone = True
        self.count_unread()
        if self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        """Leave the client to the parent, in a forked child."""
        leave_transport(self._transport)

    def count_unread(self) -> None:
        """Tell the service how many bytes of answers wait for the client to take them."""
        unread = 0 if self._gone or self._transport is None else _unwritten(self._transport)
        self._service.unread_bytes += unread - self.unread_bytes
        self.unread_bytes = unread

    def wants(self, request_id: int) -> bool:
        """Whether the client is there and still waits; any thread may ask."""
        return not (self._gone or self._left) and request_id not in self._canceled

    def deliver(self, job: Job, outcome: Outcome | None) -> None:
        """Queue the answer to a request; ``settle`` sends it."""
        request_id = job.request_id
        self._canceled.discard(request_id)
        if self._gone or self._left or self._transport is None or self._transport.is_closing():
            return
        if outcome is None:
            self._protocol.send_error(request_id, ErrorCode.CANCELED, "nobody waited for the answer any more")
        elif outcome.code is not None:
            self._protocol.send_error(request_id, outcome.code, outcome.text)
        else:
            self._reply(request_id, outcome.body, time.perf_counter() - job.arrived)

    def settle(self) -> None:
        """Send what was delivered."""
        self.asked = time.monotonic()
        if not self._protocol.buffered:
            self._since = self.asked
        self._flush()
        if self._protocol.closing:
            self._finish_if_drained()

    def _reply(self, request_id: int, body: bytes, seconds: float) -> None:
        if len(body) < self._service.limits.max_held_bytes and len(body) <= MAX_BODY_BYTES:
            self._protocol.send_reply(request_id, body, seconds)
            return
        text = f"an answer of {len(body)} bytes is too long to send; the server's max_held_bytes is one limit"
        self._protocol.send_error(request_id, ErrorCode.TAIL, text)

    def _account(self) -> None:
        """Restart the clock unless the same message is still half received; keep the count of bytes held."""
        buffered = self._protocol.buffered
        if self._protocol.opened and (self._protocol.received != self._messages or not (buffered and self.held_bytes)):
            self._since = time.monotonic()
        self._messages = self._protocol.received
        if self._protocol.requests != self._requests:
            self._requests, self.asked = self._protocol.requests, time.monotonic()
        self._hold(buffered)

    def _hold(self, num_bytes: int) -> None:
        self._service.held_bytes += num_bytes - self.held_bytes
        self.held_bytes = num_bytes

    def _check_progress(self, now: float, transport: asyncio.Transport) -> None:
        untaken = _untaken(transport)
        if untaken.less_than(self._untaken):
            self._since = now
        elif now - self._since >= self._service.limits.message_timeout:
            self._service.closings.log("closed %s: it reads none of its answers", self._name())
            transport.abort()
        self._untaken = untaken

    def _finish_if_drained(self) -> None:
        if self._protocol.in_flight or self._gone or self._linger_timer is not None:
            return
        rest = 0.0
        if self._drain_end is not None:
            rest = min(self.asked + _LINGER, self._drain_end) - time.monotonic()
        if rest > 0:
            self._linger_timer = asyncio.get_running_loop().call_later(rest, self._linger_is_over)
        else:
            self._close()

    def _linger_is_over(self) -> None:
        self._linger_timer = None
        self._finish_if_drained()

    def _dismiss(self, code: ErrorCode, text: str) -> None:
        """Tell the client why, and close."""
        self._service.closings.log("closed %s: %s", self._name(), text)
        self._service.refused += 1
        self._protocol.send_farewell(code, text)
        self._close()

    def _close(self) -> None:
        """Close when everything is written, or a moment later where the client does not take it."""
        self._hold(0)
        self._flush()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        """Give a closing connection a moment for what is still written; one that was asked to go has till its end."""
        if self._transport is not None and self._abort_timer is None:
            seconds = _LAST_WORDS
            if self._drain_end is not None and not self._left:
                seconds = max(seconds, self._drain_end - time.monotonic())
            self._abort_timer = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _flush(self) -> None:
        data = self._protocol.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            if self._paused:
                self._untaken = self._untaken._replace(here=self._untaken.here + len(data))
            self._transport.write(data)
            if self.unread_bytes or _unwritten(self._transport):  # mostly the socket has taken everything
                self.count_unread()
                self._service.shed()

    def _name(self) -> str:
        """Who this is, for the log: the name in the device's certificate, if it showed one, and its address."""
        if self._transport is None:
            return "a client"
        address = str(self._transport.get_extra_info("peername"))
        device = common_name(self._transport.get_extra_info("peercert"))
        return address if device is None else f"{device} {address}"
