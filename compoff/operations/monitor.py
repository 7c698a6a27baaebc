"""The metrics port: Prometheus metrics, health, readiness, and a small page with the live figures.

Plain HTTP for whoever runs the server; it shows counters and names, no payloads, and changes nothing. A thread of its
own looks at the figures, once a second and when somebody asks: everybody sees the same last seconds, and however many
ask, the server is looked at once for all of them.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.resources
import json
import logging
import socket
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from compoff.errors import WireError
from compoff.operations.figures import Figures, add_live
from compoff.operations.metrics import CONTENT_TYPE_LATEST, exposition
from compoff.wire.address import format_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

__all__ = ["Monitor"]

_logger = logging.getLogger("compoff.serve")
_LOOK_SECONDS = 1.0
_TICK_SECONDS = 0.1  # after which requests are looked at whose time may be over
_HANDLERS = 32  # requests at a time; one more ends the oldest, which an honest one would have finished
_REQUEST_SECONDS = 5.0  # for the whole of a request and its answer, however slowly they come and go
_LIVE_LOOKS = 5  # how many looks back "live" reaches
_JSON, _TEXT, _HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"


class Monitor:
    """Shows a server's figures over HTTP, until it is closed; a context manager.

    ``/`` is the page, ``/figures.json`` what it shows, ``/metrics`` for Prometheus. ``/healthz`` answers 200 as long as
    this process does; ``/readyz`` 200 where every process of the server answers and all serve the same, else 503.

    Args:
        figures: Gives the figures of now.
        address: ``"host:port"`` to listen on; port 0 picks one.

    Raises:
        WireError: The address cannot be listened on.
    """

    def __init__(self, figures: Callable[[], Figures], address: str) -> None:
        """Listen, and begin to look."""
        host, port = parse_address(address)
        try:
            self._server = _HTTPServer((host, port), self)
        except OSError as error:
            raise WireError(f"cannot show metrics on {address}: {error.strerror}; choose another port") from error
        self.address = format_address(host, int(self._server.server_address[1]))
        self._looks = _Looks(figures)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_TICK_SECONDS,), name="compoff-monitor", daemon=True
        )
        self._thread.start()

    def answer(self, path: str, given_up: Callable[[], bool]) -> tuple[int, str, bytes]:
        """Status, type and body for a path.

        Args:
            path: What was asked for.
            given_up: Whether the answer is not waited for any more.

        Raises:
            ConnectionAbortedError: There are no figures, or it is not.
        """
        if path == "/":
            page = importlib.resources.files(__package__ or "compoff.operations") / "page.html"
            return 200, _HTML, page.read_bytes()
        if path == "/figures.json":
            return 200, _JSON, json.dumps(self._looks.live(given_up)).encode()
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, exposition(self._looks.now(given_up))
        if path == "/healthz":
            return 200, _TEXT, b"ok\n"
        if path == "/readyz":
            ready = self._looks.now(given_up)["ready"]
            missing = b"not every process answers, or not all serve the same\n"
            return (200, _TEXT, b"ready\n") if ready else (503, _TEXT, missing)
        return 404, _TEXT, b"there is /, /figures.json, /metrics, /healthz and /readyz\n"

    def wake(self) -> None:
        """Have those who wait for figures see whether they still do."""
        self._looks.wake()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        self._looks.close()

    def __enter__(self) -> Self:
        """The monitor itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class _Looks:
    """Looks at the figures, one look at a time; who asks while one is under way shares the next.

    Args:
        figures: Gives the figures of now; may take a while, and is asked in one thread alone.
    """

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._changed = threading.Condition()
        self._begun = self._done = self._wanted = 0  # numbers of looks
        self._latest: Figures | None = None  # None where it failed
        self._past: deque[tuple[float, Figures]] = deque(maxlen=_LIVE_LOOKS + 1)
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="compoff-monitor-look", daemon=True)
        self._thread.start()

    def now(self, given_up: Callable[[], bool]) -> Figures:
        """The figures of a look that has not begun yet: what happened before the question is in them."""
        with self._changed:
            mine = self._wanted = self._begun + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._done >= mine or self._closed or given_up())
            if self._done < mine or self._latest is None:
                raise ConnectionAbortedError("there are no figures for this request")
            return self._latest

    def live(self, given_up: Callable[[], bool]) -> Figures:
        """The figures of now, with what happened in the last seconds."""
        figures = self.now(given_up)
        with self._changed:
            then, before = self._past[0] if self._past else (time.monotonic(), None)
        return add_live(figures, before, time.monotonic() - then)

    def wake(self) -> None:
        """Have those who wait see whether they still do."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Look no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(5)

    def _work(self) -> None:
        due = time.monotonic()
        while True:
            with self._changed:
                rest = max(0.0, due - time.monotonic())
                self._changed.wait_for(lambda: self._closed or self._wanted > self._begun, rest)
                if self._closed:
                    return
                self._begun += 1
            began, figures = time.monotonic(), None
            try:
                figures = self._figures()
            except Exception:  # the next look may do better
                _logger.exception("the figures could not be read")
            with self._changed:
                self._done, self._latest = self._begun, figures
                if began >= due:  # else only somebody asked: the last seconds begin at the same moment for everybody
                    due = began + _LOOK_SECONDS
                    if figures is not None:
                        self._past.append((began, figures))
                self._changed.notify_all()


class _HTTPServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default of 5 makes the sixth who comes at once wait for a second SYN

    def __init__(self, address: tuple[str, int], monitor: Monitor) -> None:
        self.monitor = monitor
        self._handled: dict[socket.socket, float] = {}  # since when, the oldest first
        self._handled_lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give it a thread, and where there are too many the oldest its end."""
        with self._handled_lock:
            self._handled[request] = time.monotonic()
            if len(self._handled) > _HANDLERS:
                self._end(next(iter(self._handled)))
        super().process_request(request, client_address)

    def handles(self, request: Any) -> bool:
        """Whether a request was not ended; without the lock, which whoever ends it holds."""
        return request in self._handled

    def shutdown_request(self, request: Any) -> None:
        """Close what was answered, or ended."""
        with self._handled_lock:
            self._handled.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End the requests whose time is over: here, where no figures are waited for."""
        with self._handled_lock:
            for sock, since in tuple(self._handled.items()):
                if time.monotonic() - since >= _REQUEST_SECONDS:
                    self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        del self._handled[sock]
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # its thread wakes up and closes it
        self.monitor.wake()  # also where it waits for figures

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing for who has gone or was ended; a traceback for everything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        self.wfile.write(self._begin())

    def do_HEAD(self) -> None:
        self._begin()

    def _begin(self) -> bytes:
        """Send status and headers; the body that they are of."""
        server = cast("_HTTPServer", self.server)
        path = self.path.partition("?")[0]
        status, kind, body = server.monitor.answer(path, lambda: not server.handles(self.request))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        # The page needs nothing from anywhere else, so it gets nothing.
        self.send_header(
            "Content-Security-Policy", "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        )
        self.end_headers()
        return body

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a look once a second belongs in no log."""
