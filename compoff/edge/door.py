"""The door of a server. With TLS, who has not shown that it speaks it costs a socket; some shake hands at a time.

asyncio sets up a quarter of a megabyte for each TLS connection before the first byte has come. Here a client waits
outside until the whole first record of its handshake is there to be looked at; then ``connection`` takes over. Where
the system has no descriptor left for another one, asyncio would log that hundreds of times a second; here whoever has
been silent the longest makes room.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
from typing import TYPE_CHECKING

from compoff.edge.connection import Connection
from compoff.edge.descriptors import MOST_WATCHED
from compoff.forks import give_up

if TYPE_CHECKING:
    import selectors
    import ssl
    from collections.abc import Sequence

    from compoff.edge.service import Service

__all__ = ["Door"]

_logger = logging.getLogger("compoff.serve")
_BACKLOG = 256
_ACCEPTS = 64  # connections taken before other events have their turn
_PAUSE = 0.5  # seconds without new connections after one could not be taken: there are no descriptors left
# Seconds until a first record that was half there is looked at again: soon, then at twice the time each.
_PATIENCE, _LEAST_OFTEN = 0.05, 1.0
_WARN_AGAIN = 10.0  # seconds
_HANDSHAKES = 64  # at a time; one more ends the oldest, which an honest client would have finished
_RECORD_HEADER_BYTES = 5
_LONGEST_RECORD = 2**14 + 256
_HANDSHAKE_RECORD = b"\x16\x03"


class Door:
    """Takes the connections of a server.

    Args:
        bound: Bound sockets; the door listens on duplicates of them.
        service: Whose connections they become, and whose limits are kept.
        context: The server's TLS context, or None for plain TCP.
        selector: What the event loop watches its sockets with.

    Source: RFC 8446, Sec. 5.1 (the form of a record).
    """

    def __init__(
        self,
        bound: Sequence[socket.socket],
        service: Service,
        context: ssl.SSLContext | None,
        selector: selectors.BaseSelector,
    ) -> None:
        self._service = service
        self._context = context
        self._selector = selector
        self._loop = asyncio.get_running_loop()
        self._listeners = [one.dup() for one in bound]
        self._outside: dict[socket.socket, asyncio.TimerHandle] = {}  # in the order they came
        self._shaking: dict[asyncio.Task[None], socket.socket] = {}  # likewise
        self._warned = -math.inf

    def open(self) -> None:
        """Listen."""
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(_BACKLOG)
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def close(self) -> None:
        """Listen no longer, and send away who is not in yet."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        for sock in tuple(self._outside):
            self._send_away(sock)
        for task in tuple(self._shaking):
            task.cancel()

    def abandon(self) -> None:
        """Leave all of it to the parent, in a forked child."""
        for sock in (*self._listeners, *self._outside, *self._shaking.values()):
            give_up(sock.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock = self._take(listener)
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                self._warn(error)
                if not self._make_room():
                    self._loop.remove_reader(listener.fileno())
                    self._loop.call_later(_PAUSE, self._listen_again, listener)
                return  # the place is free when the loop comes by again
            sock.setblocking(False)
            if self._context is None:
                self._hand_over(sock, None)
            else:
                self._receive(sock)

    def _take(self, listener: socket.socket) -> socket.socket:
        # Of those who shake hands some are watched already, others will be in a moment.
        if len(self._selector.get_map()) + len(self._shaking) >= MOST_WATCHED:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return listener.accept()[0]

    def _warn(self, error: OSError) -> None:
        if self._loop.time() - self._warned >= _WARN_AGAIN:
            self._warned = self._loop.time()
            _logger.warning("no connection can be taken, or only in the place of a silent one: %s", error.strerror)

    def _make_room(self) -> bool:
        """Put out whoever has been silent the longest; False where nobody is."""
        if self._outside:
            self._send_away(next(iter(self._outside)))
        elif self._shaking and self._context is not None:  # without TLS they are in the next moment
            self._end_oldest_handshake()
        else:
            return self._service.put_out_silent()
        return True

    def _end_oldest_handshake(self) -> None:
        oldest = next(iter(self._shaking))
        del self._shaking[oldest]
        oldest.cancel()

    def _listen_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _receive(self, sock: socket.socket) -> None:
        if len(self._outside) >= self._service.limits.max_connections:
            self._send_away(next(iter(self._outside)))
        timeout = self._service.limits.handshake_timeout
        self._outside[sock] = self._loop.call_later(timeout, self._send_away, sock)
        self._loop.add_reader(sock.fileno(), self._look, sock)

    def _look(self, sock: socket.socket, pause: float = _PATIENCE) -> None:
        """Let in whose first record is there, send away who speaks something else, let the others wait."""
        try:
            header = sock.recv(_RECORD_HEADER_BYTES, socket.MSG_PEEK)
            length = int.from_bytes(header[3:5], "big")
            if not header or not header.startswith(_HANDSHAKE_RECORD[: len(header)]) or length > _LONGEST_RECORD:
                self._send_away(sock)
                return
            whole = _RECORD_HEADER_BYTES + length
            complete = len(header) == _RECORD_HEADER_BYTES and len(sock.recv(whole, socket.MSG_PEEK)) == whole
        except BlockingIOError:
            return
        except OSError:
            self._send_away(sock)
            return
        self._loop.remove_reader(sock.fileno())
        if complete:
            self._let_in(sock)
        else:  # what is there stays there, and would call again at once
            self._loop.call_later(pause, self._watch_again, sock, min(2 * pause, _LEAST_OFTEN))

    def _watch_again(self, sock: socket.socket, pause: float) -> None:
        if sock in self._outside:
            self._loop.add_reader(sock.fileno(), self._look, sock, pause)

    def _send_away(self, sock: socket.socket) -> None:
        timer = self._outside.pop(sock, None)
        if timer is not None:
            timer.cancel()
            self._service.refused += 1
            self._loop.remove_reader(sock.fileno())
            sock.close()

    def _let_in(self, sock: socket.socket) -> None:
        timer = self._outside.pop(sock)
        timer.cancel()
        if len(self._shaking) >= _HANDSHAKES:
            self._end_oldest_handshake()
        self._hand_over(sock, max(0.001, timer.when() - self._loop.time()))

    def _hand_over(self, sock: socket.socket, rest: float | None) -> None:
        task = self._loop.create_task(self._shake_hands(sock, rest))
        self._shaking[task] = sock
        task.add_done_callback(lambda done: self._finish(done, sock))

    async def _shake_hands(self, sock: socket.socket, timeout: float | None) -> None:
        spent = 0.0 if timeout is None else max(0.0, self._service.limits.handshake_timeout - timeout)
        try:
            await self._loop.connect_accepted_socket(
                lambda: Connection(self._service, spent), sock, ssl=self._context, ssl_handshake_timeout=timeout
            )
        except OSError as error:
            self._service.refused += 1
            self._service.closings.log("a handshake failed: %s", error)

    def _finish(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._shaking.pop(task, None)
        if task.cancelled():
            self._service.refused += 1
            sock.close()
