"""The blocking client and every kind of server that is gone, wrong, slow or hostile: an error within the deadline."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from compoff.edge.server import serve
from compoff.errors import (
    ArtifactMismatch,
    AuthenticationError,
    CompoffError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    ReadTimeout,
    RemoteProtocolError,
    WireError,
)
from compoff.wire.client import open_client
from compoff.wire.client_protocol import ClientProtocol
from compoff.wire.exchange import Exchange
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import Route, Welcome
from tests.edge.peers import eventually
from tests.wire.scripted import read_frame, reply, scripted_server

ID = bytes(range(32))
WELCOME = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 1000),)).encode()))


class Reverse:
    """Answers with the payload reversed."""

    artifact_id = ID
    max_payload_bytes = 1000

    def answer(self, payload: bytes) -> bytes:
        return payload[::-1]


def test_the_server_is_told_the_deadline() -> None:
    seen: list[int] = []

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(WELCOME)
        while True:
            frame = read_frame(connection, parser)
            if frame.type is FrameType.REQUEST:
                seen.append(frame.deadline_ms)
            reply(connection, frame.request_id, b"")

    with scripted_server(script) as address, open_client(address, [ID]) as client:
        for timeout in (20.5, 21.0004, 65.535, 65.536, 1e9):
            client.request(b"x", timeout=timeout)
    assert seen == [20500, 21001, 65535, 0, 0]


def test_server_gone_mid_call() -> None:
    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(WELCOME)
        for _ in range(3):
            read_frame(connection, parser)
        connection.sendall(serialize(Frame(FrameType.REPLY, b"half", 1))[:-3])

    with scripted_server(script) as address, open_client(address, [ID]) as client:
        pending = [client.submit(b"x", timeout=30) for _ in range(3)]
        start = time.monotonic()
        for one in pending:
            with pytest.raises(ConnectionLost, match="in the middle of a message"):
                one.result()
        assert time.monotonic() - start < 10
        assert client.closed
        with pytest.raises(ConnectionLost):
            client.request(b"x", timeout=30)


@pytest.mark.parametrize(
    ("ids", "token", "expected", "words"),
    [
        ([ID], "wrong", AuthenticationError, "token is wrong"),
        ([ID], None, AuthenticationError, "token is needed"),
        ([bytes(32)], "secret", ArtifactMismatch, "no tail here belongs to the head 00000000"),
        ([bytes(32), bytes([1] * 32)], "secret", ArtifactMismatch, "head 00000000, 01010101"),
        ([], "secret", LocalProtocolError, "0 artifacts"),
        ([ID], "", LocalProtocolError, "token of 0 bytes"),
    ],
)
def test_a_refused_handshake(ids: list[bytes], token: str | None, expected: type[CompoffError], words: str) -> None:
    with serve(Reverse(), token="secret") as server:
        with pytest.raises(expected, match=words):
            open_client(server.address, ids, token=token)
        with open_client(server.address, [ID], token="secret") as client:
            assert client.request(b"in", timeout=30) == b"ni"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionLost, match=f"no connection to 127.0.0.1:{port}: Connection refused; start a server"):
        open_client(f"127.0.0.1:{port}", [ID])


def test_addresses_that_lead_nowhere() -> None:
    with pytest.raises(LocalProtocolError, match="port 0"):
        open_client("127.0.0.1:0", [ID])
    with pytest.raises(LocalProtocolError, match="not an address"):
        open_client("127.0.0.1", [ID])
    with pytest.raises(WireError, match=r"host of .* (is unknown|was not found)"):
        open_client("host.invalid:7878", [ID], connect_timeout=1)
    with pytest.raises(ConnectionLost, match="is unknown"):
        open_client("a..b:7878", [ID])


def test_a_full_backlog_is_a_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for _ in range(4):  # until the kernel drops what comes
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        start = time.monotonic()
        with pytest.raises(ConnectTimeout, match=address):
            open_client(address, [ID], connect_timeout=0.3)
        assert 0.2 < time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("greeting", "hold", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, RemoteProtocolError),
        (b"\x15\x03\x03\x00\x02\x02\x0a", False, RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, RemoteProtocolError),
        (b"\x02", True, ConnectTimeout),
        (b"", True, ConnectTimeout),
        (b"", False, ConnectionLost),
        (WELCOME[:-1] + b"\x00", True, RemoteProtocolError),
        (serialize(Frame(FrameType.REPLY, b"x", 1)), True, RemoteProtocolError),
        (
            serialize(Frame(FrameType.WELCOME, Welcome(1, (Route(0, 1),), version=1).encode())),
            True,
            RemoteProtocolError,
        ),
        (bytes([2, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]), True, RemoteProtocolError),
    ],
    ids=["http", "tls", "ssh", "half", "silence", "hang-up", "damaged", "reply", "version", "huge"],
)
def test_another_service_on_the_port(greeting: bytes, hold: bool, expected: type[CompoffError]) -> None:
    def script(connection: socket.socket, parser: FrameParser) -> None:
        connection.sendall(greeting)
        while hold and connection.recv(65536):
            pass

    with scripted_server(script) as address:
        start = time.monotonic()
        with pytest.raises(expected, match=address):
            open_client(address, [ID], connect_timeout=0.4 if expected is ConnectTimeout else 60)
        assert time.monotonic() - start < 20


def test_a_server_that_drips_cannot_stretch_a_deadline() -> None:
    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(WELCOME)
        answer = serialize(Frame(FrameType.REPLY, bytes(900), read_frame(connection, parser).request_id))
        for index in range(len(answer)):
            connection.sendall(answer[index : index + 1])
            time.sleep(0.02)

    with scripted_server(script) as address, open_client(address, [ID]) as client:
        start = time.monotonic()
        with pytest.raises(ReadTimeout):
            client.request(b"x", timeout=0.1)
        assert time.monotonic() - start < 10, "all of it would take 18 s"


def test_a_peer_that_does_not_read_cannot_stretch_a_deadline() -> None:
    release = threading.Event()
    big = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 2**26),)).encode()))

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(big)
        release.wait(60)
        release.clear()

    with scripted_server(script) as address:
        for timeout in (0.2, 1.0, 5.0):
            with open_client(address, [ID]) as client:
                start = time.monotonic()
                with pytest.raises(
                    (ConnectionLost, ReadTimeout), match=r"only half a message|gave no answer"
                ) as caught:
                    client.request(bytes(2**26), timeout=timeout)
                assert time.monotonic() - start < 20
                assert client.closed is (caught.type is ConnectionLost)
            release.set()
            if client.closed:
                break


def test_a_deadline_before_the_first_byte_leaves_the_connection_to_the_others() -> None:
    release = threading.Event()
    big = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 2**26),)).encode()))

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(big)
        release.wait(30)
        parser = FrameParser(lambda frame_type, route, length: None)
        for _ in range(2):
            reply(connection, read_frame(connection, parser).request_id, b"right")

    with scripted_server(script) as address, open_client(address, [ID]) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.request, bytes(2**25), timeout=60)
        exchange = client._exchange
        eventually(exchange._send_lock.locked)
        time.sleep(0.1)
        with pytest.raises(ReadTimeout):  # it waits for the other's frame to be written
            client.request(b"second", timeout=0.05)
        with exchange._lock:  # and here for a server that takes nothing, with no frame begun
            assert not exchange.closed
        assert not client.stuck
        release.set()
        assert first.result(60) == b"right"
        assert client.request(b"third", timeout=30) == b"right"


def test_nothing_taken_by_the_deadline_is_nothing_sent() -> None:
    class Full:
        encrypted = False

        def send(self, data: memoryview) -> int:
            return 0

        def wait(self, deadline: float, *, read: bool = False, write: bool = False) -> bool:
            return False

    protocol = ClientProtocol([ID])
    protocol.receive_data(WELCOME)
    exchange = Exchange(Full(), protocol, "edge:1")  # type: ignore[arg-type]
    slots = [exchange.start(lambda: protocol.send_request(b"x"), 0.01) for _ in range(6)]
    assert not exchange.closed, "the window, 4, was never used up, and no half frame ended the connection"
    Full.encrypted = True
    Full.shutdown = lambda self: None  # type: ignore[attr-defined]
    assert exchange.start(lambda: protocol.send_request(b"x"), 0.01).error is not None
    assert exchange.closed, "TLS may have kept part of the frame"
    assert all(slot.done for slot in slots)


def test_hostile_answers_end_in_an_error_or_the_right_answer() -> None:
    rng = random.Random(0)

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        stream = bytearray(WELCOME) if rng.random() < 0.3 else bytearray()
        if not stream:
            connection.sendall(WELCOME)
            frame = read_frame(connection, parser)
            stream = bytearray(serialize(Frame(FrameType.REPLY, b"the answer", frame.request_id)))
        for _ in range(rng.choice((0, 1, 1, 3))):
            stream[rng.randrange(len(stream))] ^= 1 << rng.randrange(8)
        del stream[rng.choice((len(stream), len(stream), rng.randrange(len(stream)))) :]
        connection.sendall(stream)

    outcomes: set[object] = set()
    with scripted_server(script) as address:
        for _ in range(150):
            start = time.monotonic()
            try:
                with open_client(address, [ID], connect_timeout=60) as client:
                    outcomes.add(client.request(b"x", timeout=60))
            except WireError as error:
                outcomes.add(type(error))
            assert time.monotonic() - start < 20
    assert {outcome for outcome in outcomes if isinstance(outcome, bytes)} == {b"the answer"}
    assert {RemoteProtocolError, ConnectionLost} <= outcomes
