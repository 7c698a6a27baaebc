"""The metrics port: what each path answers; and the page, in a real browser where one is installed."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from compoff.edge.server import serve
from compoff.errors import LocalProtocolError, WireError
from compoff.operations.figures import Figures, figures_of, merge
from compoff.operations.monitor import Monitor
from compoff.operations.top import fetch, show_top, table_of
from compoff.wire.client import open_client
from tests.edge.peers import ID, Echo, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAME = {ID: {"model": "<b>Net</b>", "split": "layer2"}}


@contextmanager
def monitored(requests: int = 0) -> Iterator[Monitor]:
    with serve(Echo()) as server:

        def figures() -> Figures:
            return merge([figures_of(server.stats(), NAME)], processes=1)  # type: ignore[arg-type]

        with Monitor(figures, "127.0.0.1:0") as monitor, open_client(server.address, [ID]) as client:
            for _ in range(requests):
                client.request(b"payload", timeout=30)
            yield monitor


def get(monitor: Monitor, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    host, port = monitor.address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.getheader("Content-Type") or "", body


def test_what_each_path_answers() -> None:
    with monitored(requests=3) as monitor:
        assert get(monitor, "/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")
        assert get(monitor, "/readyz")[0] == 200
        status, kind, body = get(monitor, "/metrics")
        assert (status, kind.startswith("text/plain"), b"compoff_requests_total" in body) == (200, True, True)
        figures = json.loads(get(monitor, "/figures.json?x=1")[2])
        assert figures["tails"][0]["requests"] == 3
        assert get(monitor, "/")[:2] == (200, "text/html; charset=utf-8")
        assert get(monitor, "/etc/passwd")[0] == 404
        assert get(monitor, "/../settings.py")[0] == 404


def test_who_asks_for_the_head_gets_the_same_without_the_body() -> None:
    with monitored() as monitor:
        for path in ("/", "/healthz", "/readyz", "/metrics", "/nowhere"):
            assert get(monitor, path, "HEAD") == (*get(monitor, path)[:2], b"")
        host, port = monitor.address.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            sock.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n"), "no byte of the body"
    with Monitor(lambda: merge([], processes=2), "127.0.0.1:0") as monitor:
        assert get(monitor, "/readyz", "HEAD")[0] == 503


def test_a_server_that_is_not_whole_is_not_ready() -> None:
    with Monitor(lambda: merge([], processes=2), "127.0.0.1:0") as monitor:
        assert get(monitor, "/readyz")[0] == 503
        assert get(monitor, "/healthz")[0] == 200


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(WireError, match="cannot show metrics on"):
        Monitor(lambda: merge([], processes=1), f"127.0.0.1:{sock.getsockname()[1]}")


def test_who_connects_and_says_nothing_stops_nobody() -> None:
    with monitored() as monitor:
        host, port = monitor.address.split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        assert get(monitor, "/healthz")[0] == 200
        for sock in silent:
            sock.close()


def test_no_more_than_32_are_answered_at_a_time_and_the_oldest_goes() -> None:
    with monitored() as monitor, ExitStack() as stack:
        host, port = monitor.address.split(":")
        before = threading.active_count()
        silent = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(60)]
        assert get(monitor, "/healthz")[0] == 200
        assert [sock.recv(1) for sock in silent[:20]] == [b""] * 20
        eventually(lambda: threading.active_count() <= before + 32)


def test_who_waits_for_figures_is_ended_like_everybody_and_shares_the_look(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("compoff.operations.monitor._REQUEST_SECONDS", 1.0)
    go, looks = threading.Event(), 0

    def figures() -> Figures:
        nonlocal looks
        looks += 1
        go.wait(30)
        return merge([], processes=1)

    before = threading.active_count()
    with Monitor(figures, "127.0.0.1:0") as monitor, ExitStack() as stack:
        host, port = monitor.address.split(":")
        asking = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(100)]
        for sock in asking:
            sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        began = time.monotonic()
        assert [sock.recv(1) for sock in asking[:50]] == [b""] * 50
        eventually(lambda: threading.active_count() <= before + 2 + 32)
        assert [sock.recv(1) for sock in asking] == [b""] * 100, "their time is over, though the look is not"
        assert time.monotonic() - began < 20
        eventually(lambda: threading.active_count() <= before + 2)
        monkeypatch.setattr("compoff.operations.monitor._REQUEST_SECONDS", 60.0)
        late = [stack.enter_context(socket.create_connection((host, int(port)), timeout=30)) for _ in range(20)]
        for sock in late:
            sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        time.sleep(0.3)
        go.set()
        assert [sock.recv(12) for sock in late] == [b"HTTP/1.0 503"] * 20
        assert looks <= 3, "one look for all of them"
    assert "Traceback" not in capfd.readouterr().err


def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    fail = True

    def figures() -> Figures:
        if fail:
            raise ValueError("not now")
        return merge([], processes=1)

    with Monitor(figures, "127.0.0.1:0") as monitor:
        with pytest.raises(http.client.HTTPException):
            get(monitor, "/readyz")
        assert "the figures could not be read" in caplog.text
        fail = False
        assert get(monitor, "/readyz")[0] == 503


def test_a_request_in_drips_ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("compoff.operations.monitor._REQUEST_SECONDS", 0.2)
    monkeypatch.setattr("compoff.operations.monitor._LOOK_SECONDS", 0.05)
    with monitored() as monitor:
        host, port = monitor.address.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            deadline = time.monotonic() + 30
            with suppress(OSError):
                while time.monotonic() < deadline:
                    sock.sendall(b"G")
                    time.sleep(0.02)
            assert time.monotonic() < deadline
        assert get(monitor, "/healthz")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_top_shows_a_row_for_each_tail() -> None:
    with monitored(requests=3) as monitor:
        console = Console(width=200, record=True, force_terminal=False)
        show_top(monitor.address, console, interval=0.1, looks=2)
        shown = console.export_text()
    assert "<b>Net</b> at layer2" in shown
    assert "p99" in shown
    assert "ready" in shown


def test_without_a_terminal_every_look_is_shown_as_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    before: list[int] = []
    monkeypatch.setattr("compoff.operations.top.time.sleep", lambda _: before.append(shown.getvalue().count("edge:1")))
    monkeypatch.setattr("compoff.operations.top.fetch", lambda _: WHOLE)
    show_top("edge:1", Console(file=shown, width=80), looks=3)
    assert (before, shown.getvalue().count("edge:1")) == ([1, 2], 3)


def test_in_a_terminal_a_look_takes_the_place_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.operations.top.fetch", lambda _: WHOLE)
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    show_top("edge:1", console, interval=0.01, looks=3)
    assert "\x1b[2K" in shown.getvalue(), "the lines are written anew"


@pytest.mark.parametrize("interval", [0, -1.0, float("nan"), float("inf"), 1e300, 86_401, "1"], ids=str)
def test_an_interval_that_cannot_be_waited_for_is_refused_before_a_look(interval: float) -> None:
    with pytest.raises(LocalProtocolError, match=r"an interval of .* seconds was given; expected a positive number up"):
        show_top("127.0.0.1:9", Console(), interval=interval, looks=2)


def test_top_says_what_is_wrong_with_an_address() -> None:
    what = r"shows no figures \(it does not speak HTTP\); give the address of the server's metrics, not the devices'"
    with serve(Echo()) as server, pytest.raises(WireError, match=what):
        fetch(server.address)
    with pytest.raises(WireError, match=r"nobody shows figures at 127.0.0.1:9: .*; start the server with --metrics"):
        fetch("127.0.0.1:9")


@contextmanager
def answering(*parts: bytes, pause: float = 0.0) -> Iterator[str]:
    """A server that says these to whoever comes, whatever is asked."""

    def answer() -> None:
        with suppress(OSError):
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                sock.recv(4096)
                for part in parts:
                    sock.sendall(part)
                    time.sleep(pause)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(60)


OK = b"HTTP/1.1 200 OK\r\n\r\n"
WHOLE: Figures = merge([], processes=1)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "no figures"),
        (b'{"tails": []}', "no figures"),
        (json.dumps({**WHOLE, "uptime": "x"}).encode(), "no figures"),
        (json.dumps({**WHOLE, "tails": 5}).encode(), "no figures"),
        (json.dumps({**WHOLE, "tails": [{"live": {}}]}).encode(), "no figures"),
        (b"[" * 200_000, "no figures"),
        (b" " * (2**20 + 1), "more than 1048576 bytes"),
    ],
    ids=["list", "keys", "kind", "tails", "tail", "deep", "long"],
)
def test_top_refuses_what_is_no_figures(body: bytes, words: str) -> None:
    with answering(OK + body) as address, pytest.raises(WireError, match=words):
        fetch(address)


@pytest.mark.parametrize("start", [b"", OK], ids=["head", "body"])
def test_top_waits_for_no_drip(monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr("compoff.operations.top._SECONDS", 0.2)
    begin = time.monotonic()
    drip = answering(start, *[b" "] * 200, pause=0.1)
    with drip as address, pytest.raises(WireError, match="no whole answer within"):
        fetch(address)
    assert time.monotonic() - begin < 15, "200 drips take 20 s"


def test_a_server_that_is_not_ready_stands_out() -> None:
    assert "NOT READY" in str(table_of(merge([], processes=1), "edge:1").title)


def test_top_shows_every_figure_in_80_columns_and_names_as_they_are() -> None:
    with monitored(requests=3) as monitor:
        figures = fetch(monitor.address)
    (tail,) = figures["tails"]
    tail["model"], tail["replies"] = "[/red]\x1b[2JNet", 1_234_567
    tail["live"] = {
        "requests": 12_345.6, "replies": 1.0, "errors": 0.0, "bytes_in": 123.46e6, "bytes_out": 123.46e6, "busy": 1.0,
        "mean_batch": 123.4, "p50": 0.1234, "p90": 0.2345, "p99": 0.9876,
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=80)
    console.print(table_of(figures, "127.0.0.1:9464"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    names, now = (" ".join(line.split()) for line in shown.splitlines()[-2:])
    assert names == "requests/s in out waiting p50 p90 p99 batch busy"
    assert now == "12345.6 123.5 MB/s 123.5 MB/s 0 123.4 ms 234.5 ms 987.6 ms 123.4 100 %"
    assert "[/red]?[2JNet at layer2 · " in shown
    assert "answered 1234567 · errors 0" in shown


@pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is not installed here")
def test_the_page_shows_the_figures_in_a_browser(tmp_path: Path) -> None:
    with monitored(requests=7) as monitor:
        time.sleep(0.2)
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}", "--virtual-time-budget=3000", "--dump-dom", f"http://{monitor.address}/",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    page = done.stdout
    assert done.returncode == 0, done.stderr
    assert "ready · up" in page
    assert "connections 1" in page
    assert "&lt;b&gt;Net&lt;/b&gt; at layer2" in page, "a name is text, never markup"
    assert "<td>7</td>" in page, "seven requests were answered"
    assert "<polyline" in page
