"""One blocking connection shared by many threads: whoever waits for an answer reads for all.

One waiting thread leads: it reads the socket and settles every answer that comes, until its own is there; then another
takes over. So a caller alone pays for no thread but its own. Bytes only; the face of this is ``client``.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING

from compoff.errors import (
    CompoffError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    RemoteProtocolError,
    WireError,
)
from compoff.wire.forks import FORKED, leave_to_parent
from compoff.wire.frames import MAX_DEADLINE_MS
from compoff.wire.moved import Moved
from compoff.wire.protocol import Answer, ClientEvent, Refusal
from compoff.wire.sockets import check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.wire.client_protocol import ClientProtocol
    from compoff.wire.sockets import Stream

__all__ = ["Exchange", "Slot", "deadline_field", "relocate"]

_PATIENCE = 0.05  # seconds a blocked writer waits before it looks again whether somebody has to read
_FAREWELL = 0.2  # seconds given to the last message of a connection
_LAST_READER = 5.0  # seconds given to the thread that reads to notice the end; an interrupt may have taken it away


def deadline_field(timeout: float) -> int:
    """The deadline_ms that tells the server of a timeout; 0, none given, where it is longer than the field can say.

    Examples:
        >>> deadline_field(0.0501), deadline_field(3600.0)
        (51, 0)

    Source: this project.
    """
    return math.ceil(timeout * 1000) if timeout * 1000 <= MAX_DEADLINE_MS else 0


def relocate(error: CompoffError, address: str) -> CompoffError:
    """A new error of the same class and words with the address in front: each waiting thread needs one of its own."""
    return type(error)(f"{address}: {error}")


class Slot:
    """Where one answer will be; guarded by the lock of its exchange.

    Args:
        request_id: The request that it answers.
        timeout: Seconds the caller gave it.
        deadline: Moment of ``time.monotonic()`` at which nobody waits any more.

    Source: this project.
    """

    __slots__ = ("body", "deadline", "done", "error", "event", "request_id", "server_seconds", "timeout")

    def __init__(self, request_id: int, timeout: float, deadline: float) -> None:
        """Start unanswered."""
        self.request_id = request_id
        self.timeout = timeout
        self.deadline = deadline
        self.done = False
        self.body = b""
        self.server_seconds = 0.0
        self.error: CompoffError | None = None
        self.event: threading.Event | None = None  # there only while a thread waits and another one reads

    def settle(self, body: bytes = b"", error: CompoffError | None = None, server_seconds: float = 0.0) -> None:
        """Set the outcome and wake who waits for it."""
        self.body, self.error, self.server_seconds, self.done = body, error, server_seconds, True
        self.wake()

    def wake(self) -> bool:
        """Wake who waits, if anyone does."""
        event, self.event = self.event, None
        if event is not None:
            event.set()
        return event is not None


class Exchange:
    """Requests and answers of many threads over one stream.

    Args:
        stream: The connection; it belongs to the exchange from now on.
        protocol: The client's state machine, with its HELLO still to send.
        address: The server's, for messages.

    Source: this project.
    """

    def __init__(self, stream: Stream, protocol: ClientProtocol, address: str) -> None:
        """Start before the handshake."""
        self.protocol = protocol
        self.address = address
        self._stream = stream
        self._lock = threading.Lock()  # guards everything but the stream
        self._send_lock = threading.Lock()  # a frame is written whole before the next
        self._slots: dict[int, Slot] = {}
        self._reading = False  # whether a thread leads
        self._closed = False
        self._failure: CompoffError | None = None
        self._came = 0  # bytes
        leave_to_parent(self)

    def abandon(self) -> None:
        """Be over, in a forked child: both processes would take each other's answers."""
        self._stream.abandon()
        self._lock = threading.Lock()  # a thread that is not here may hold the other
        self._send_lock = threading.Lock()  # and this one, too
        self._closed = True
        self._failure = LocalProtocolError(f"this connection to {self.address} was {FORKED}")
        slots, self._slots = self._slots, {}
        for slot in slots.values():
            slot.event = None  # the thread that waited is not here
            slot.settle(error=LocalProtocolError(*self._failure.args))

    @property
    def closed(self) -> bool:
        """Whether a new request would be refused because the connection is over."""
        return self._failure is not None or self.protocol.closing

    @property
    def moved(self) -> Moved:
        """How far the bytes in both directions have come."""
        return Moved(self._came, self._stream.taken)

    @property
    def idle(self) -> bool:
        """Whether nobody awaits an answer."""
        return not self._slots

    def look(self) -> None:
        """Read what has arrived, without waiting: only so is a goodbye known that came while nobody asked anything."""
        if self._take_lead():
            try:
                self._read(0.0)
            finally:
                self._step_down()

    def handshake(self, timeout: float, deadline: float) -> None:
        """Say HELLO and wait for WELCOME; everything is closed where that fails.

        Args:
            timeout: Seconds the caller gave it, for the message.
            deadline: Moment of ``time.monotonic()`` at which they are over.

        Raises:
            ConnectTimeout: No answer by the deadline.
            WireError: Any other that ``ClientProtocol.receive_data`` raises, or a broken connection.
        """
        with contextlib.suppress(OSError):  # where the peer has hung up, what it said before tells more
            self._write(self.protocol.data_to_send(), deadline)
        while not self.protocol.opened and self._failure is None:
            if time.monotonic() >= deadline:
                message = f"{self.address} did not answer HELLO within {timeout:g} s; is it a compoff server?"
                self._fail(ConnectTimeout(message))
            self._read(deadline)
        if self._failure is not None:
            self.close()
            raise self._failure

    def start(self, queue: Callable[[], int], timeout: float) -> Slot:
        """Send what ``queue`` puts into the protocol.

        Args:
            queue: Queues one request or ping and returns its id.
            timeout: Seconds until nobody waits any more.

        Returns:
            Where the answer will be, or why there will be none: a connection that breaks meanwhile shows there.

        Raises:
            LocalProtocolError: The timeout is not positive, or ``queue`` raised it.
            ServerBusy: The window is full.
            ConnectionLost: The connection is over.
        """
        timeout = check_timeout(timeout)
        deadline = time.monotonic() + timeout
        with self._lock:
            if self._failure is not None:
                raise type(self._failure)(*self._failure.args)
            slot = Slot(queue(), timeout, deadline)
            self._slots[slot.request_id] = slot
            data = self.protocol.data_to_send()
        # Mostly it is free, and a wait with an end costs more.
        free = self._send_lock.acquire(blocking=False)
        if not free and not self._send_lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            self._withdraw(slot)
            return slot
        try:
            if not self._write(data, deadline):
                self._withdraw(slot)
        except BaseException as error:  # half a frame may be out: nothing can follow it
            self._fail(self._lost(error))
            if not isinstance(error, OSError):
                raise
        finally:
            self._send_lock.release()
        return slot

    def wait(self, slot: Slot, until: float) -> None:
        """Wait until a slot is settled or a moment of ``time.monotonic()`` has come; read at least what is there."""
        tried = False
        while True:
            with self._lock:
                if slot.done or (tried and time.monotonic() >= until):
                    slot.wake()  # another thread may wait for the same slot
                    self._pass_on()
                    return
                event = None
                if self._reading:
                    event = slot.event = slot.event or threading.Event()
                self._reading = True
            tried = True
            if event is None:
                if self._lead(slot, until):
                    return
            else:
                event.wait(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX))

    def drop(self, slot: Slot, error: CompoffError, *, cancel: bool = False) -> None:
        """Settle a slot with an error unless its answer is there; a late answer will be dropped.

        Args:
            slot: The slot.
            error: What ``result`` shall raise.
            cancel: Whether the server is told, where that is possible at once.
        """
        with self._lock:
            if slot.done:
                return
            self._slots.pop(slot.request_id, None)
            self.protocol.abandon(slot.request_id)
            slot.settle(error=error)
        if cancel and self._send_lock.acquire(blocking=False):
            try:
                self._write_cancel(slot.request_id)
            finally:
                self._send_lock.release()

    def _write_cancel(self, request_id: int) -> None:
        try:
            if not self.closed and self._stream.wait(0.0, write=True):  # there is room for 16 bytes, or nothing is sent
                with self._lock:
                    self.protocol.send_cancel(request_id)
                    data = self.protocol.data_to_send()
                self._write(data, time.monotonic() + _FAREWELL)
        except OSError as error:
            self._fail(self._lost(error))

    def close(self) -> None:
        """Say GOODBYE and close; every unanswered request gets ConnectionLost. Again: nothing happens."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.protocol.send_goodbye()
            data = self.protocol.data_to_send()
        if data and self._failure is None and self._send_lock.acquire(timeout=_FAREWELL):
            try:
                with contextlib.suppress(OSError):
                    self._write(data, time.monotonic() + _FAREWELL)
            finally:
                self._send_lock.release()
        self._fail(ConnectionLost(f"the connection to {self.address} was closed on this side; open a new one"))
        # The descriptor may be freed, and its number used again, only when no thread waits on it any more.
        deadline = time.monotonic() + _LAST_READER
        while not self._take_lead():
            if time.monotonic() >= deadline:
                return  # the garbage collector frees it
            time.sleep(0.001)
        with self._send_lock:
            self._stream.close()

    def _lead(self, slot: Slot, until: float) -> bool:
        """Read for all until a slot is settled; whether it is."""
        try:
            while self._read(until) and not slot.done and time.monotonic() < until:
                pass
        finally:
            with self._lock:
                self._reading = False
                if slot.done:
                    slot.wake()
                    self._pass_on()
        return slot.done

    def _withdraw(self, slot: Slot) -> None:
        with self._lock:
            self.protocol.withdraw(slot.request_id)

    def _step_down(self) -> None:
        with self._lock:
            self._reading = False
            self._pass_on()

    def _take_lead(self) -> bool:
        with self._lock:
            lead = not self._reading
            self._reading = True
        return lead

    def _pass_on(self) -> None:
        """Wake one waiting thread where nobody reads; whoever leaves does this, so that somebody always reads."""
        if self._slots and not self._reading:
            any(slot.wake() for slot in self._slots.values())

    def _read(self, until: float) -> bool:
        """Read once and settle what came; False when the moment came first."""
        try:
            if not self._stream.wait(until, read=True):
                return False
            data = self._stream.receive()
            if data is not None:
                self._receive(data)
        except WireError as error:
            self._fail(relocate(error, self.address))
        except BaseException as error:  # bytes may be lost: the rest of the stream means nothing
            self._fail(self._lost(error))
            if not isinstance(error, OSError):
                raise
        return True

    def _receive(self, data: bytes) -> None:
        with self._lock:
            self._came += len(data)
            if not data:
                self.protocol.receive_eof()
            for event in self.protocol.receive_data(data):
                self._settle(event)

    def _settle(self, event: ClientEvent) -> None:
        if isinstance(event, Answer):
            slot = self._slots.pop(event.request_id, None)
            if slot is not None:
                slot.settle(event.body, server_seconds=event.server_seconds)
        elif isinstance(event, Refusal):
            slot = self._slots.pop(event.request_id, None)
            if slot is not None:
                slot.settle(error=relocate(event.error, self.address))

    def _write(self, data: bytes, deadline: float) -> bool:
        """Hand data over; False where the deadline came before its first byte, so that the stream is as it was."""
        rest = memoryview(data)
        while rest := rest[self._stream.send(rest) :]:
            if time.monotonic() >= deadline:
                if len(rest) == len(data) and not self._stream.encrypted:
                    return False
                message = "the server took only half a message before the deadline"
                raise TimeoutError(message)
            self._wait_writable(min(deadline, time.monotonic() + _PATIENCE))
        return True

    def _wait_writable(self, until: float) -> None:
        if not self._take_lead():
            self._stream.wait(until, write=True)
            return
        # A server whose answers nobody reads stops reading, too: without this, both ends could wait for ever.
        try:
            self._stream.wait(until, read=True, write=True)
            self._read(0.0)
        finally:
            self._step_down()

    def _lost(self, error: BaseException) -> WireError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        if not self.protocol.opened:
            how = "" if self._stream.encrypted else ", and in plain TCP"
            message = f"{self.address} hung up before it answered HELLO: {reason}; is a compoff server there{how}?"
            return RemoteProtocolError(message)
        return ConnectionLost(f"the connection to {self.address} broke before the answer came: {reason}; ask again")

    def _fail(self, error: CompoffError) -> None:
        """Give every unanswered request the error; the first error is the connection's."""
        with self._lock:
            self._failure = self._failure or error
            slots, self._slots = self._slots, {}
            for slot in slots.values():
                slot.settle(error=type(error)(*error.args))
        self._stream.shutdown()
