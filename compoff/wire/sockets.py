"""One connected socket, plain or TLS, whose every wait ends by a deadline.

Deadlines are moments of ``time.monotonic()``, in seconds. Knows nothing of frames; ``client`` does the talking.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from compoff.checks import is_number
from compoff.errors import (
    AuthenticationError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    RemoteProtocolError,
    WireError,
)
from compoff.wire.address import parse_address
from compoff.wire.encryption import ssl
from compoff.wire.moved import unsent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Addresses",
    "Stream",
    "check_timeout",
    "connect_error",
    "look_up",
    "open_stream",
    "parse_target",
    "tls_error",
    "unknown_host",
]

Addresses: TypeAlias = "list[tuple[int, tuple[Any, ...]]]"
"""Socket family and socket address of each address of a host."""

_LONGEST_WAIT = 3600.0  # seconds; a longer wait is more than one, because poll counts milliseconds in an int
_SOON = 1e-4  # seconds; to sleep for an answer that comes so soon, and be woken, takes a good part of it
_SEVERAL_CORES = (os.cpu_count() or 1) > 1  # on a single one, who stays awake keeps the answer from being made
# What this process or its system has run out of, whatever the server does.
_OURS = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_CHUNK_BYTES = 2**16  # small enough that malloc keeps it off mmap, whose page faults cost more than a second read


def check_timeout(timeout: float, name: str = "timeout", least: float = 0.0) -> float:
    """A timeout in seconds that can be waited for, as Python's own float: one of numpy's would round every deadline.

    Args:
        timeout: What was given.
        name: Name of the argument, for the message.
        least: The shortest that is right, in seconds.

    Raises:
        LocalProtocolError: It is not a positive number, or too short.

    Examples:
        >>> check_timeout(0.5)
        0.5

    Source: this project.
    """
    try:
        seconds = float(timeout) if is_number(timeout) else math.nan
    except OverflowError:  # a whole number that no float holds
        seconds = math.inf
    if not 0 < seconds < math.inf:
        message = (
            f"a {name} of {timeout!r:.80} seconds was given; expected a finite number above 0, since every call ends "
            "some time"
        )
        raise LocalProtocolError(message)
    if seconds < least:
        message = f"a {name} of {seconds:g} seconds was given; expected at least {least:g}: no answer comes sooner"
        raise LocalProtocolError(message)
    return seconds


def parse_target(address: str) -> tuple[str, int]:
    """Host and port to connect to.

    Raises:
        LocalProtocolError: The address has another form than ``host:port``, or port 0.
    """
    host, port = parse_address(address)
    if port == 0:
        message = f"{address!r} has port 0, where nobody listens; give the port that the server's .address shows"
        raise LocalProtocolError(message)
    return host, port


def unknown_host(error: UnicodeError) -> OSError:
    """What looking up a host should have raised where it cannot be a name: an empty label, one too long."""
    return socket.gaierror(socket.EAI_NONAME, str(error))


def connect_error(address: str, error: OSError) -> WireError:
    """The error of the tree for a connection that could not be opened.

    Args:
        address: The server's.
        error: What the operating system or TLS said.
    """
    if isinstance(error, TimeoutError):
        return ConnectTimeout(
            f"{address} did not answer within the connect timeout; is the server up and the port open?"
        )
    if isinstance(error, ssl.SSLError):
        return tls_error(address, error)
    if isinstance(error, socket.gaierror):
        return ConnectionLost(f"the host of {address} is unknown: {error.strerror}; correct the address")
    reason = os.strerror(error.errno) if error.errno else str(error) or "the server hung up"
    if reason.startswith("Unknown error"):  # as of Windows' sockets; elsewhere asyncio puts words of its own there
        reason = error.strerror or reason
    if error.errno in _OURS:
        return ConnectionLost(
            f"no connection to {address}: {reason} on this side; raise the limit (`ulimit -a` shows them), or close "
            "other connections and files"
        )
    return ConnectionLost(f"no connection to {address}: {reason}; start a server there (`compoff serve`) or correct it")


def tls_error(address: str, error: ssl.SSLError) -> WireError:
    """The error of the tree for what TLS said: who distrusts whom, or that this is no TLS.

    Args:
        address: The server's.
        error: What OpenSSL raised, in the handshake or later.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthenticationError(
            f"the certificate of {address} is not trusted: {error.verify_message}; give tls=TLS(ca=...) the authority "
            "that signed it, connect by a name that it holds, or renew it"
        )
    reason = (error.reason or "").replace("_", " ").lower()
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return ConnectionLost(f"{address} hung up on TLS: {reason or error}; is it up, and does it speak TLS 1.3?")
    if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
        return AuthenticationError(
            f"{address} refused this device's certificate ({reason}); give tls=TLS(certificate=..., key=...) one that "
            "its authority signed and that is valid now"
        )
    return RemoteProtocolError(f"TLS with {address} failed: {reason or error}; does the server speak TLS 1.3?")


class Stream:
    """Bytes to and from one peer; reading, writing and closing may happen in different threads.

    Args:
        sock: A connected socket; it belongs to the stream from now on.

    Source: this project.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Make the socket non-blocking: waiting is done here, with deadlines."""
        sock.setblocking(False)
        self._socket = sock
        self._silent = isinstance(sock, ssl.SSLSocket)  # whether a TLS peer has not said anything yet
        # One thread reads for all, so that one poll object does for every time it waits. Windows has none.
        self._arrivals = select.poll() if hasattr(select, "poll") else None
        if self._arrivals is not None:
            self._arrivals.register(sock.fileno(), select.POLLIN)
        self._alert = False  # whether the last thing waited for came soon
        self._sent = 0  # bytes
        # OpenSSL's state for one connection is shared by reading and writing and must not be entered twice at once.
        self._tls_lock = threading.Lock() if isinstance(sock, ssl.SSLSocket) else contextlib.nullcontext()

    @property
    def taken(self) -> int:
        """Bytes handed over that the peer's system has acknowledged, as far as ours says."""
        descriptor = self._socket.fileno()
        return self._sent - (unsent(descriptor) if descriptor >= 0 else 0)

    @property
    def encrypted(self) -> bool:
        """Whether this is TLS, which may hold part of what ``send`` took 0 bytes of."""
        return isinstance(self._socket, ssl.SSLSocket)

    def receive(self) -> bytes | None:
        """What has arrived: bytes, ``b""`` at the end of the stream, or None for nothing yet.

        Raises:
            OSError: The connection broke.
            WireError: TLS failed, or the peer closed right after its handshake.
        """
        try:
            with self._tls_lock:
                data = self._socket.recv(_CHUNK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except ssl.SSLError as error:
            raise tls_error("the server", error) from error
        if self._silent:
            self._silent = False
            _check_first(data)
        return data

    def send(self, data: bytes | memoryview) -> int:
        """How many bytes of the data could be handed over now, perhaps 0.

        Raises:
            OSError: The connection broke.
        """
        try:
            with self._tls_lock:
                sent = self._socket.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        self._sent += sent
        return sent

    def wait(self, deadline: float, *, read: bool = False, write: bool = False) -> bool:
        """Wait until something can be read or written; False when nothing can be yet. One thread at a time may read.

        Raises:
            OSError: The stream is closed on this side.
        """
        if read and isinstance(self._socket, ssl.SSLSocket):
            with self._tls_lock:
                if self._socket.pending():
                    return True
        seconds = min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT)
        descriptor = self._socket.fileno()
        if descriptor < 0:
            message = "the connection was closed on this side"
            raise OSError(message)
        if self._arrivals is not None and read and not write:
            return self._await_arrival(self._arrivals, seconds)
        if self._arrivals is None:
            readers, writers = [descriptor] * read, [descriptor] * write
            return any(select.select(readers, writers, readers + writers, seconds))
        poll = select.poll()
        poll.register(descriptor, select.POLLIN * read | select.POLLOUT * write)
        return bool(poll.poll(seconds * 1000))

    def _await_arrival(self, arrivals: select.poll, seconds: float) -> bool:
        """Wait for something to read; where the last came soon, stay awake for as long before going to sleep."""
        if seconds == 0:
            return bool(arrivals.poll(0))
        start = time.perf_counter()
        while self._alert:
            if arrivals.poll(0):
                return True
            self._alert = time.perf_counter() - start < min(_SOON, seconds)
        found = bool(arrivals.poll(seconds * 1000))
        self._alert = _SEVERAL_CORES and found and time.perf_counter() - start < _SOON
        return found

    def shutdown(self) -> None:
        """End the stream, so that a thread that waits on it wakes up; ``close`` frees it."""
        with contextlib.suppress(OSError):
            # The plain method: an SSLSocket's own would drop its TLS state under the feet of the other threads.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Free this process's descriptor and leave the connection to the process that it was forked from."""
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())  # no shutdown, and no word of TLS

    def close(self) -> None:
        """Free the socket; nobody may be waiting on it."""
        self._socket.close()


def _check_first(data: bytes) -> None:
    """In TLS 1.3 a server judges the device's certificate when the device's own handshake is over already."""
    if not data:
        raise ConnectionLost(
            "the server hung up right after the TLS handshake; does it ask for a certificate that this device lacks, "
            "or is the device's expired or revoked?"
        )


def open_stream(address: str, *, tls: ssl.SSLContext | None, deadline: float) -> Stream:
    """Connect to ``host:port``.

    Args:
        address: ``"host:port"`` or ``"[host]:port"``.
        tls: Context of a TLS client, or None for plain TCP.
        deadline: Moment of ``time.monotonic()`` by which the connection must stand.

    Returns:
        The connection, with Nagle's algorithm off.

    Raises:
        LocalProtocolError: The address has another form, or port 0.
        ConnectTimeout: The deadline came first.
        ConnectionLost: Nobody listens there, or the host is unknown or cannot be reached.
        RemoteProtocolError: The TLS handshake failed.

    Source: this project.
    """
    host, port = parse_target(address)
    candidates = _wait_for_addresses(host, port, deadline, address)
    failure = OSError("no addresses")
    for index, (family, target) in enumerate(candidates):
        # Each address gets its share of what is left: one that swallows packets must not use up the others' time.
        seconds = (deadline - time.monotonic()) / (len(candidates) - index)
        try:
            sock = _connect(family, target, seconds)
        except OSError as error:
            failure = error
            continue
        return Stream(sock if tls is None else _start_tls(sock, tls, host, address, deadline))
    raise connect_error(address, failure) from failure


def look_up(host: str, port: int, done: Callable[[Addresses | OSError], None]) -> None:
    """Find the addresses of a host; returns at once.

    A name server may take longer than any deadline and cannot be interrupted; a daemon thread of its own can be left.

    Args:
        host: Name or number.
        port: Goes into the addresses.
        done: Called with what was found, or with why there is nothing, in that thread (in this one where there can be
            no other).
    """

    def work() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found: Addresses | OSError = [(family, target) for family, _, _, _, target in infos]
        except OSError as error:
            found = error
        except UnicodeError as error:
            found = unknown_host(error)
        done(found)

    try:
        threading.Thread(target=work, name="compoff-resolve", daemon=True).start()
    except RuntimeError as error:  # no more threads
        done(OSError(errno.EAGAIN, str(error)))


def _wait_for_addresses(host: str, port: int, deadline: float, address: str) -> Addresses:
    answers: queue.SimpleQueue[Addresses | OSError] = queue.SimpleQueue()
    look_up(host, port, answers.put)
    try:
        found = answers.get(timeout=min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT))
    except queue.Empty:
        message = f"the host of {address} was not found within the connect timeout; is there a name server?"
        raise ConnectTimeout(message) from None
    if isinstance(found, OSError):
        raise connect_error(address, found) from found
    return found


def _connect(family: int, target: tuple[Any, ...], seconds: float) -> socket.socket:
    if seconds <= 0:
        raise TimeoutError
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(min(seconds, _LONGEST_WAIT))
        sock.connect(target)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _start_tls(sock: socket.socket, tls: ssl.SSLContext, host: str, address: str, deadline: float) -> ssl.SSLSocket:
    try:
        sock.settimeout(min(max(0.001, deadline - time.monotonic()), _LONGEST_WAIT))
        return tls.wrap_socket(sock, server_hostname=host)
    except OSError as error:
        sock.close()
        raise connect_error(address, error) from error
