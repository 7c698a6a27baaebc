"""The metrics port: Prometheus metrics, health, readiness, and a small page with the live figures.

Plain HTTP for whoever runs the server; it shows counters and names, no payloads, and changes nothing. A thread of its
own looks at the figures once a second, so that everybody who asks sees the same last seconds.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.resources
import json
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

_LOOK_SECONDS = 1.0
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
        self._figures = figures
        self._looks: deque[tuple[float, Figures]] = deque(maxlen=_LIVE_LOOKS + 1)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        host, port = parse_address(address)
        try:
            self._server = _HTTPServer((host, port), self)
        except OSError as error:
            raise WireError(f"cannot show metrics on {address}: {error.strerror}; choose another port") from error
        self.address = format_address(host, int(self._server.server_address[1]))
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.1,), name="compoff-monitor", daemon=True),
            threading.Thread(target=self._watch, name="compoff-monitor-look", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def now(self) -> Figures:
        """The figures of now, with what happened in the last seconds."""
        figures = self._figures()
        with self._lock:
            then, before = self._looks[0] if self._looks else (time.monotonic(), None)
        return add_live(figures, before, time.monotonic() - then)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, type and body for a path."""
        if path == "/":
            page = importlib.resources.files(__package__ or "compoff.operations") / "page.html"
            return 200, _HTML, page.read_bytes()
        if path == "/figures.json":
            return 200, _JSON, json.dumps(self.now()).encode()
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, exposition(self._figures())
        if path == "/healthz":
            return 200, _TEXT, b"ok\n"
        if path == "/readyz":
            ready = self._figures()["ready"]
            missing = b"not every process answers, or not all serve the same\n"
            return (200, _TEXT, b"ready\n") if ready else (503, _TEXT, missing)
        return 404, _TEXT, b"there is /, /figures.json, /metrics, /healthz and /readyz\n"

    def close(self) -> None:
        """Stop."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        """The monitor itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _watch(self) -> None:
        while True:
            look = (time.monotonic(), self._figures())
            with self._lock:
                self._looks.append(look)
            self._server.end_late()
            if self._closed.wait(_LOOK_SECONDS):
                return


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

    def shutdown_request(self, request: Any) -> None:
        """Close what was answered, or ended."""
        with self._handled_lock:
            self._handled.pop(request, None)
        super().shutdown_request(request)

    def end_late(self) -> None:
        """End the requests whose time is over."""
        with self._handled_lock:
            for sock, since in tuple(self._handled.items()):
                if time.monotonic() - since >= _REQUEST_SECONDS:
                    self._end(sock)

    def _end(self, sock: socket.socket) -> None:
        del self._handled[sock]
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # its thread wakes up and closes it

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
        status, kind, body = cast("_HTTPServer", self.server).monitor.answer(self.path.partition("?")[0])
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
