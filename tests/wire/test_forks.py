"""Connections in a forked child: refused there, and undisturbed in the parent."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
import time
import warnings
from typing import TYPE_CHECKING

import pytest

from compoff.edge.server import serve
from compoff.operations.certificates import Authority
from compoff.wire.async_client import open_async_client
from compoff.wire.client import open_client
from compoff.wire.tls import TLS, client_context
from tests.edge.peers import eventually
from tests.wire.forking import in_child
from tests.wire.test_client import ID, Reverse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compoff.edge.server import Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def tail() -> Reverse:
    return Reverse()


@pytest.fixture(params=["plain", "tls"])
def edge(
    request: pytest.FixtureRequest, tail: Reverse, tmp_path: Path
) -> Iterator[tuple[Server, ssl.SSLContext | None]]:
    tls = None
    if request.param == "tls":
        Authority(tmp_path).issue_server("edge", ["127.0.0.1"])
        tls = TLS(certificate=tmp_path / "edge.pem", key=tmp_path / "edge.key")
    # A client that nobody reads for says no goodbye.
    with serve(tail, tls=tls, drain_timeout=0.5) as server:
        yield server, None if tls is None else client_context(TLS(ca=tmp_path / "ca.pem"))


def test_a_client_is_its_process_s_own(edge: tuple[Server, ssl.SSLContext | None], tail: Reverse) -> None:
    server, tls = edge
    client = open_client(server.address, [ID], tls=tls)
    pending = client.submit(b"held", timeout=30)
    told = f"LocalProtocolError: this connection to {server.address} was made in another process; connect again after"

    assert in_child(lambda: client.request(b"child", timeout=30)).startswith(told)
    assert in_child(pending.result).startswith(told)
    assert in_child(lambda: client.ping(timeout=30)).startswith(told)
    assert in_child(lambda: (pending.cancel(), client.look(), client.close(), client.closed)).endswith("True)")

    def forget() -> None:
        nonlocal client, pending
        del client, pending
        gc.collect()

    assert in_child(forget) == "None"
    tail.gate.set()
    assert pending.result() == b"dleh"
    assert client.request(b"parent", timeout=30) == b"tnerap"
    client.close()


def test_the_child_says_it_whatever_lock_was_held(edge: tuple[Server, ssl.SSLContext | None]) -> None:
    with open_client(edge[0].address, [ID], tls=edge[1]) as client:
        exchange = client._exchange
        with exchange._lock, exchange._send_lock:
            assert "another process" in in_child(lambda: client.request(b"child", timeout=30))
            assert in_child(client.close) == "None"
        assert client.request(b"parent", timeout=30) == b"tnerap"


def test_the_child_connects_anew(edge: tuple[Server, ssl.SSLContext | None]) -> None:
    server, tls = edge

    def again() -> bytes:
        with open_client(server.address, [ID], tls=tls) as mine:
            return mine.request(b"child", timeout=30)

    with open_client(server.address, [ID], tls=tls) as client:
        assert in_child(again) == "b'dlihc'"
        assert client.request(b"parent", timeout=30) == b"tnerap"


@contextlib.contextmanager
def child_that_stays() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which is what is tested
        child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_server_is_its_process_s_own(edge: tuple[Server, ssl.SSLContext | None]) -> None:
    server, tls = edge
    host, port = server.address.split(":")
    with (
        open_client(server.address, [ID], tls=tls) as client,
        socket.create_connection((host, int(port))) as silent,
        contextlib.ExitStack() as at_last,
    ):
        eventually(lambda: server._door is not None and len(server._service.peers) + len(server._door._outside) == 2)
        at_last.enter_context(child_that_stays())
        assert client.request(b"parent", timeout=30) == b"tnerap"
        for asked in (
            server.wait,
            server.readmit,
            lambda: server.swap(Reverse()),
            lambda: server.replace_tokens("abc"),
        ):
            assert "this server was made in another process; serve after the fork" in in_child(asked)
        assert in_child(server.close) == "None"
        assert client.request(b"parent", timeout=30) == b"tnerap"
        server.close()
        silent.settimeout(30)
        while silent.recv(100):  # a word of farewell, and then the end: nobody else holds it
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=30)
        with serve(Reverse(), server.address) as again:
            assert again.address == server.address


def test_a_handshake_under_way_at_a_fork_ends_with_the_server(tmp_path: Path) -> None:
    Authority(tmp_path).issue_server("edge", ["127.0.0.1"])
    tls = TLS(certificate=tmp_path / "edge.pem", key=tmp_path / "edge.key")
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client_context(TLS(ca=tmp_path / "ca.pem")).wrap_bio(
            ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1"
        ).do_handshake()
    with serve(Reverse(), tls=tls) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as shaking:
            shaking.sendall(outgoing.read())
            assert shaking.recv(1), "the server's part of the handshake"
            with child_that_stays():
                server.close()
                with contextlib.suppress(ConnectionResetError):
                    while shaking.recv(65536):
                        pass


def test_an_async_client_is_its_process_s_own(edge: tuple[Server, ssl.SSLContext | None], tail: Reverse) -> None:
    server, tls = edge
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(open_async_client(server.address, [ID], tls=tls))
    told = "LocalProtocolError: this connection"
    for _ in range(2):
        assert in_child(lambda: loop.run_until_complete(client.request(b"child", timeout=30))).startswith(told)
        assert in_child(lambda: loop.run_until_complete(client.close())) == "None"
        assert loop.run_until_complete(client.request(b"parent", timeout=30)) == b"tnerap"

    async def forks_with_a_request_under_way() -> bytes:
        asked = asyncio.ensure_future(client.request(b"held", timeout=30))
        await asyncio.sleep(0.01)
        answer = next(iter(client._connection.waiting.values()))
        assert "another process" in in_child(lambda: str(answer.exception()))
        tail.gate.set()
        return await asked

    assert loop.run_until_complete(forks_with_a_request_under_way()) == b"dleh"
    loop.run_until_complete(client.close())
    loop.close()
