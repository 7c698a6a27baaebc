"""The door of a server, mostly with TLS: what it lets in, what it keeps outside, and what waiting there may cost."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from compoff.edge.connection import Connection
from compoff.edge.server import Server, serve
from compoff.operations.certificates import Authority
from compoff.wire.client import open_client
from compoff.wire.frames import FrameType
from compoff.wire.messages import Welcome
from compoff.wire.tls import TLS
from tests.edge.peers import HELLO, ID, Echo, eventually, request

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.edge.service import Service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates")
    authority = Authority(made)
    authority.issue_server("edge", ["127.0.0.1"])
    return made


def serve_tls(folder: Path, **options: float) -> Server:
    tls = TLS(certificate=folder / "edge.pem", key=folder / "edge.key")
    return serve(Echo(), tls=tls, **options)  # type: ignore[arg-type]


def dial(server: Server) -> socket.socket:
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=30)


def greeting(folder: Path) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO, bytes]:
    """A client's end of TLS and the first bytes that it says."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = TLS(ca=folder / "ca.pem").client_context()
    end = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    return end, incoming, outgoing, outgoing.read()


def still_let_in(server: Server, folder: Path) -> None:
    with open_client(server.address, [ID], tls=TLS(ca=folder / "ca.pem").client_context()) as client:
        assert client.request(b"good", timeout=30) == b"good"


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\n\r\n", HELLO, b"\x16\x02\x00\x00\x05hello", b"\x16\x03\x01\xff\xff", b"\x00"],
    ids=["http", "plain", "ssl2", "long", "zero"],
)
def test_who_speaks_something_else_is_sent_away_at_once(folder: Path, said: bytes) -> None:
    with serve_tls(folder, handshake_timeout=60) as server:
        with dial(server) as sock:
            sock.sendall(said)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""
        assert server.stats().refused == 1
        still_let_in(server, folder)


def test_a_greeting_in_pieces_is_waited_for(folder: Path) -> None:
    end, incoming, outgoing, hello = greeting(folder)
    with serve_tls(folder) as server, dial(server) as sock:
        for start, stop in ((0, 1), (1, 4), (4, 100), (100, len(hello))):
            sock.sendall(hello[start:stop])
            time.sleep(0.02)
        while True:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                break
        end.write(HELLO)
        sock.sendall(outgoing.read())
        answer = b""
        while not answer:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer = end.read(65536)
        assert answer[0] == FrameType.WELCOME
        assert Welcome.decode(answer[12:-4], 1).window == 16


def test_a_handshake_and_the_hello_after_it_have_one_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[float] = []

    class Noted(Connection):
        def __init__(self, service: Service, spent: float) -> None:
            super().__init__(service, spent)
            gone.extend((spent, time.monotonic() - self._since))

    monkeypatch.setattr("compoff.edge.door.Connection", Noted)
    end, incoming, outgoing, hello = greeting(folder)
    with serve_tls(folder, handshake_timeout=60) as server, dial(server) as sock:
        eventually(lambda: server._door is not None and len(server._door._outside) == 1)
        time.sleep(0.02)
        sock.sendall(hello)
        while True:
            incoming.write(sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                break
        sock.sendall(outgoing.read())
        eventually(lambda: bool(server._service.peers))
        assert not any(one.greeted for one in server._service.peers)
    assert min(gone) >= 0.019, "what the door has waited is gone of the time for the hello"


def test_half_a_greeting_costs_a_socket_and_runs_out(folder: Path) -> None:
    hello = greeting(folder)[3]
    halves = (b"", hello[:3], hello[:200])
    with serve_tls(folder, handshake_timeout=60) as server, contextlib.ExitStack() as stack:
        for said in halves * 40:
            stack.enter_context(sock := dial(server))
            sock.sendall(said)
        still_let_in(server, folder)
        assert server.stats().accepted == 1, "nobody else has become a connection"
        assert server.stats().refused == 0
    with serve_tls(folder, handshake_timeout=0.1) as server, contextlib.ExitStack() as stack:
        start = time.monotonic()
        for said in halves:
            stack.enter_context(sock := dial(server))
            sock.sendall(said)
        eventually(lambda: server.stats().refused == 3)
        assert time.monotonic() - start >= 0.1


def test_handshakes_that_stop_half_way_do_not_keep_others_out(folder: Path) -> None:
    hello = greeting(folder)[3]
    with serve_tls(folder, handshake_timeout=60) as server, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(sock := dial(server))
            sock.sendall(hello)
        eventually(lambda: server.stats().refused == 36)  # all but the 64 newest
        still_let_in(server, folder)
        assert server.stats().accepted == 1


def test_no_more_wait_outside_than_there_is_room_for_inside(folder: Path) -> None:
    with serve_tls(folder, handshake_timeout=60, max_connections=5) as server, contextlib.ExitStack() as stack:
        first = [stack.enter_context(dial(server)) for _ in range(5)]
        for _ in range(5):
            stack.enter_context(dial(server))
        for sock in first:
            assert sock.recv(1) == b"", "the oldest go"
        still_let_in(server, folder)


def test_closing_sends_everybody_away(folder: Path) -> None:
    hello = greeting(folder)[3]
    with serve_tls(folder, handshake_timeout=60) as server, dial(server) as silent, dial(server) as shaking:
        shaking.sendall(hello)
        assert shaking.recv(1), "the server's part of the handshake"
        server.close()
        assert silent.recv(1) == b""
        with contextlib.suppress(ConnectionResetError):
            while shaking.recv(65536):
                pass
        with pytest.raises(ConnectionRefusedError):
            dial(server)


FEW_DESCRIPTORS = """
import resource, sys
from compoff.edge.server import serve
from compoff.wire.tls import TLS
from tests.edge.peers import Echo

tls = TLS(certificate=sys.argv[1], key=sys.argv[2]) if sys.argv[1:] else None
server = serve(Echo(), handshake_timeout=60, tls=tls)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print(server.address, flush=True)
sys.stdin.read()
server.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is that of POSIX")
@pytest.mark.parametrize("tls", [False, True])
def test_silent_ones_make_room_when_there_are_no_descriptors_left(folder: Path, tls: bool) -> None:
    files = [str(folder / "edge.pem"), str(folder / "edge.key")] if tls else []
    context = TLS(ca=folder / "ca.pem").client_context() if tls else None
    command = [sys.executable, "-c", FEW_DESCRIPTORS, *files]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        contextlib.ExitStack() as stack,
    ):
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        host, port = address.split(":")
        with open_client(address, [ID], tls=context) as standing:
            for _ in range(100):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            with open_client(address, [ID], tls=context) as client:
                assert client.request(b"good", timeout=30) == b"good"
            assert standing.request(b"good", timeout=30) == b"good"
        _, said = process.communicate("", timeout=60)
    assert process.returncode == 0
    assert said.count("Too many open files") == 1, "and no traceback for each"
    assert said.count("\n") == 1


class FewWatched(selectors.SelectSelector):
    """Takes few sockets and raises at one more, as Windows' does at more than 512."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if len(self.get_map()) > 12:
            raise ValueError("too many file descriptors in select()")
        return super().select(timeout)


@pytest.mark.parametrize("tls", [False, True])
def test_silent_ones_make_room_when_no_more_sockets_can_be_watched(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setattr(selectors, "DefaultSelector", FewWatched)
    monkeypatch.setattr("compoff.edge.door.MOST_WATCHED", 12)
    context = TLS(ca=folder / "ca.pem").client_context() if tls else None
    certificates = TLS(certificate=folder / "edge.pem", key=folder / "edge.key") if tls else None
    with serve(Echo(), tls=certificates, handshake_timeout=60) as server, contextlib.ExitStack() as stack:
        standing = stack.enter_context(open_client(server.address, [ID], tls=context))
        for _ in range(100):
            stack.enter_context(dial(server))
        with open_client(server.address, [ID], tls=context) as client:
            assert client.request(b"good", timeout=30) == b"good"
        assert standing.request(b"good", timeout=30) == b"good"


def test_the_oldest_handshake_makes_room_when_there_are_no_descriptors_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, accept = [OSError(errno.EMFILE, "Too many open files")], socket.socket.accept

    def full(listener: socket.socket) -> tuple[socket.socket, Any]:
        if refused:
            raise refused.pop()
        return accept(listener)

    hello = greeting(folder)[3]
    with serve_tls(folder, handshake_timeout=60) as server, dial(server) as oldest, dial(server) as other:
        for sock in (oldest, other):
            sock.sendall(hello)
            assert sock.recv(65536), "the server's part of the handshake"
        monkeypatch.setattr(socket.socket, "accept", full)
        still_let_in(server, folder)
        with contextlib.suppress(ConnectionResetError):
            while oldest.recv(65536):
                pass
        assert server.stats().refused == 1, "the other may go on"


def test_an_answer_that_tls_has_passed_on_and_nobody_reads_counts(folder: Path) -> None:
    class Big(Echo):
        def answer(self, payload: bytes) -> bytes:
            return super().answer(payload).ljust(2**24)

    tls = TLS(certificate=folder / "edge.pem", key=folder / "edge.key")
    with serve(Big(), tls=tls, max_held_bytes=2**25) as server, dial(server) as sock:  # type: ignore[arg-type]
        context = TLS(ca=folder / "ca.pem").client_context()
        with context.wrap_socket(sock, server_hostname="127.0.0.1") as end:
            end.sendall(HELLO)
            assert end.recv(100)
            end.sendall(request(1, b"x"))
            eventually(lambda: server._service.unread_bytes > 2**22)
        eventually(lambda: server._service.unread_bytes == 0)
