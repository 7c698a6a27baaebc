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
    WireError,
)
from compoff.forks import FORKED, leave_to_parent
from compoff.wire.client_protocol import HUNG_UP
from compoff.wire.frames import MAX_DEADLINE_MS
from compoff.wire.moved import Moved
from compoff.wire.protocol import Answer, ClientEvent, Refusal
from compoff.wire.slot import Slot
from compoff.wire.sockets import check_timeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.wire.client_protocol import ClientProtocol
    from compoff.wire.sockets import Stream

__all__ = ["Exchange", "deadline_field", "relocate"]

_PATIENCE = 0.05  # seconds a blocked writer waits before it looks again whether somebody has to read
_FAREWELL = 0.2  # seconds given to the last message of a connection
_LOOK = 0.5  # seconds that a waiting thread sleeps at most: an interrupt may have taken away who would have woken it


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


class _Lead:
    """One thread's turn to read for all. It ends with a single store, which no interrupt can come between."""

    __slots__ = ("over",)

    def __init__(self, *, over: bool = False) -> None:
        self.over = over


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
        self._lead = _Lead(over=True)  # the last that was taken
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
        lead = _Lead()
        try:
            if self._take(lead):
                self._read(0.0)
        finally:
            lead.over = True
        self._pass_on()

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
        if not self._alone(lambda: self._write(data, deadline), timeout):
            with self._lock:
                self.protocol.withdraw(slot.request_id)
        return slot

    def wait(self, slot: Slot, until: float) -> None:
        """Wait until a slot is settled or a moment of ``time.monotonic()`` has come; read at least what is there."""
        tried = False
        while True:
            lead, event = _Lead(), None
            try:
                with self._lock:
                    if slot.done or (tried and time.monotonic() >= until):
                        slot.wake()  # another thread may wait for the same slot
                        self._wake_one()
                        return
                    if self._lead.over:
                        self._lead = lead
                    else:
                        event = slot.event = slot.event or threading.Event()
                tried = True
                if event is not None:
                    event.wait(min(max(0.0, until - time.monotonic()), _LOOK))
                    continue
                while self._read(until) and not slot.done and time.monotonic() < until:
                    pass
            finally:
                lead.over = True
            self._pass_on()
            if slot.done:
                return

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
        if cancel:
            self._alone(lambda: self._write_cancel(slot.request_id), 0.0)

    def close(self) -> None:
        """Say GOODBYE and close; every unanswered request gets ConnectionLost. Again: nothing happens."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.protocol.send_goodbye()
            data = self.protocol.data_to_send()
        if data and self._failure is None:
            self._alone(lambda: self._write(data, time.monotonic() + _FAREWELL), _FAREWELL)
        self._fail(ConnectionLost(f"the connection to {self.address} was closed on this side; open a new one"))
        self._free()

    def _take(self, lead: _Lead) -> bool:
        """Whether a thread leads from now on: none did."""
        with self._lock:
            if self._lead.over:
                self._lead = lead
            return self._lead is lead

    def _pass_on(self) -> None:
        """Leave the reading to another thread; after the end, to none."""
        with self._lock:
            self._wake_one()
            ended = self._closed and self._failure is not None
        if ended:
            self._free()

    def _wake_one(self) -> None:
        """Wake one waiting thread where nobody reads; whoever leaves does this, so that somebody always reads."""
        if self._slots and self._lead.over:
            any(slot.wake() for slot in self._slots.values())

    def _free(self) -> None:
        """Free the descriptor, unless a thread still waits on it, which then does so: its number may be used again."""
        if self._take(_Lead()) and self._send_lock.acquire(timeout=_FAREWELL):  # else the garbage collector frees it
            try:
                self._stream.close()
            finally:
                self._send_lock.release()

    def _alone(self, write: Callable[[], bool], patience: float) -> bool:
        """Write while no other thread does, as soon as none does; False where nothing was written.

        Args:
            write: Writes.
            patience: Seconds that another thread may take.
        """
        held = False
        try:
            held = self._send_lock.acquire(blocking=False)  # mostly it is free, and a wait with an end costs more
            if not held and patience:
                held = self._send_lock.acquire(timeout=min(patience, threading.TIMEOUT_MAX))
            return held and write()
        except BaseException as error:  # half a frame may be out, or the lock taken: nothing can follow it
            self._fail(self._lost(error))
            if not isinstance(error, OSError):
                raise
            return False
        finally:
            if held:
                self._send_lock.release()

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
        if not isinstance(event, (Answer, Refusal)):
            return
        slot = self._slots.get(event.request_id)
        if slot is None:
            return
        if isinstance(event, Answer):
            slot.settle(event.body, server_seconds=event.server_seconds)
        else:
            slot.settle(error=relocate(event.error, self.address))
        del self._slots[event.request_id]  # only now: an interrupt before it must leave nobody without an outcome

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
        lead = _Lead()
        # A server whose answers nobody reads stops reading, too: without this, both ends could wait for ever.
        try:
            leads = self._take(lead)
            self._stream.wait(until, read=leads, write=True)
            if leads:
                self._read(0.0)
        finally:
            lead.over = True
        self._pass_on()

    def _write_cancel(self, request_id: int) -> bool:
        if self.closed or not self._stream.wait(0.0, write=True):  # there is room for 16 bytes, or nothing is sent
            return False
        with self._lock:
            self.protocol.send_cancel(request_id)
            data = self.protocol.data_to_send()
        return self._write(data, time.monotonic() + _FAREWELL)

    def _lost(self, error: BaseException) -> WireError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        if not self.protocol.opened:
            return ConnectionLost(f"{self.address} {HUNG_UP} ({reason})")
        return ConnectionLost(f"the connection to {self.address} broke before the answer came: {reason}; ask again")

    def _fail(self, error: CompoffError) -> None:
        """Give every unanswered request the error; the first error is the connection's."""
        with self._lock:
            self._failure = self._failure or error
            for slot in self._slots.values():
                if not slot.done:
                    slot.settle(error=type(error)(*error.args))
            self._slots = {}  # only now, too
        self._stream.shutdown()
