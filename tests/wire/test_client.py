"""The blocking client over real sockets: threads, order, deadlines, and every kind of wrong server."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
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
    PayloadError,
    ReadTimeout,
    RemoteError,
    RemoteProtocolError,
    ServerBusy,
    WireError,
)
from compoff.wire.client import Client, open_client
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import Route, Welcome

ID, OTHER_ID = bytes(range(32)), bytes(range(1, 33))
WELCOME = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 1000),)).encode()))


class Reverse:
    """Answers with the payload reversed; sleeps as many milliseconds as a payload of digits says."""

    artifact_id = ID
    max_payload_bytes = 2**20

    def answer(self, payload: bytes) -> bytes:
        if payload == b"broken":
            raise PayloadError("the payload is broken")
        if payload == b"raise":
            raise ValueError("cannot read '/srv/secret/tail.pt2'\nsecond line")
        if payload.isdigit():
            time.sleep(int(payload) / 1000)
        return payload[::-1]


class Other(Reverse):
    artifact_id = OTHER_ID
    max_payload_bytes = 10

    def answer(self, payload: bytes) -> bytes:
        return b"other " + payload


Script = Callable[[socket.socket, FrameParser], None]


@contextlib.contextmanager
def scripted_server(script: Script) -> Iterator[str]:
    """A server that does what a script says with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                script(connection, FrameParser(lambda frame_type, route, length: None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(6)


def read_frame(connection: socket.socket, parser: FrameParser) -> Frame:
    while (frame := parser.next_frame()) is None:
        data = connection.recv(65536)
        if not data:
            raise OSError("the client has gone")
        parser.feed(data)
    return frame


def reply(connection: socket.socket, request_id: int, body: bytes) -> None:
    connection.sendall(serialize(Frame(FrameType.REPLY, body, request_id)))


@pytest.fixture
def client() -> Iterator[Client]:
    with serve([Reverse(), Other()], workers=4) as server, open_client(server.address, [ID, OTHER_ID]) as client:
        yield client


def test_a_request_is_answered_on_its_route(client: Client) -> None:
    assert client.request(b"payload", timeout=5) == b"daolyap"
    assert client.request(b"payload", route=1, timeout=5) == b"other payload"
    assert client.request(b"", timeout=5) == b""
    big = random.Random(0).randbytes(2**20)
    assert client.request(big, timeout=5) == big[::-1]
    assert (client.window, client.max_payload_bytes(), client.max_payload_bytes(1)) == (16, 2**20, 10)


def test_16_threads_each_get_their_own_answers(client: Client) -> None:
    def work(number: int) -> int:
        rng = random.Random(number)
        for index in range(150):
            body = f"{number} {index} ".encode() + rng.randbytes(rng.choice((0, 10, 3000)))
            assert client.request(body, timeout=20) == body[::-1]
        return number

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == list(range(16))


def test_answers_may_come_out_of_order(client: Client) -> None:
    slow, fast = client.submit(b"0500", timeout=5), client.submit(b"fast", timeout=5)
    start = time.monotonic()
    assert fast.result() == b"tsaf"
    assert time.monotonic() - start < 0.4
    assert not slow.done()
    assert slow.result() == b"0050"
    assert slow.done()
    assert slow.result() == b"0050", "again: the same"


def test_a_thread_that_leaves_hands_the_reading_over(client: Client) -> None:
    # The leader's answer comes first, or its deadline passes: the followers must still get theirs.
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            waits = [
                (f"{ms:04}".encode(), timeout) for ms, timeout in ((10, 5), (40, 5), (300, 0.02), (60, 5), (20, 5))
            ]
            results = [pool.submit(client.request, body, timeout=timeout) for body, timeout in waits]
            for (body, _), result in zip(waits, results, strict=True):
                if body == b"0300":
                    with pytest.raises(ReadTimeout):
                        result.result(2)
                else:
                    assert result.result(2) == body[::-1]
            time.sleep(0.3)  # the window is free again once the late answer has come


def test_two_threads_may_wait_for_one_answer(client: Client) -> None:
    pending = client.submit(b"0050", timeout=5)
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(pending.result) for _ in range(3)]
        assert [result.result(2) for result in results] == [b"0500"] * 3


def test_a_deadline_ends_the_wait_and_the_late_answer_is_dropped(client: Client) -> None:
    start = time.monotonic()
    with pytest.raises(ReadTimeout, match=r"no answer within 0\.05 s"):
        client.request(b"0600", timeout=0.05)
    assert time.monotonic() - start < 0.5
    assert [client.request(b"%04d" % number, timeout=5) for number in range(5)] == [
        b"0000",
        b"1000",
        b"2000",
        b"3000",
        b"4000",
    ]
    time.sleep(0.6)
    assert client.request(b"right", timeout=5) == b"thgir"


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
        for timeout in (0.5, 1.0004, 65.535, 65.536, 1e9):
            client.request(b"x", timeout=timeout)
    assert seen == [500, 1001, 65535, 0, 0]


def test_waiting_a_little_gives_nothing_up(client: Client) -> None:
    pending = client.submit(b"0100", timeout=5)
    assert not pending.wait(0.01)
    assert pending.wait(5)
    assert pending.result() == b"0010"


def test_a_cancelled_request(client: Client) -> None:
    pending = client.submit(b"0050", timeout=5)
    pending.cancel()
    with pytest.raises(ReadTimeout, match="cancelled"):
        pending.result()
    assert client.request(b"next", timeout=5) == b"txen"
    answered = client.submit(b"x", timeout=5)
    assert answered.result() == b"x"
    answered.cancel()
    assert answered.result() == b"x", "an answer that is there stays"


def test_errors_of_the_tail_come_back_without_paths(client: Client) -> None:
    with pytest.raises(PayloadError, match="the payload is broken"):
        client.request(b"broken", timeout=5)
    with pytest.raises(RemoteError) as caught:
        client.request(b"raise", timeout=5)
    assert "ValueError: cannot read '<path>'" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "second line" not in str(caught.value)
    assert client.address in str(caught.value)
    assert client.request(b"on", timeout=5) == b"no", "the connection goes on"


def test_misuse_changes_nothing(client: Client) -> None:
    with pytest.raises(LocalProtocolError, match="route 2"):
        client.request(b"x", route=2, timeout=5)
    with pytest.raises(LocalProtocolError, match="11 bytes was given"):
        client.request(bytes(11), route=1, timeout=5)
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(LocalProtocolError, match="positive"):
            client.request(b"x", timeout=timeout)
    assert client.request(b"on", timeout=5) == b"no"


def test_beyond_the_window_is_busy_at_once(client: Client) -> None:
    pending = [client.submit(b"0030", timeout=5) for _ in range(16)]
    with pytest.raises(ServerBusy, match="16 requests are unanswered"):
        client.submit(b"x", timeout=5)
    assert [one.result() for one in pending] == [b"0300"] * 16
    assert client.request(b"on", timeout=5) == b"no"


def test_ping(client: Client) -> None:
    slow = client.submit(b"0500", timeout=5)
    assert 0 < client.ping(timeout=5) < 0.4, "a ping passes the tail by"
    assert slow.result() == b"0050"


def test_submitting_without_reading_does_not_block_both_ends() -> None:
    # The answers fill the buffers of both ends unless the sender reads while it cannot write.
    body = bytes(2**20)
    with serve(Reverse(), window=64) as server, open_client(server.address, [ID]) as client:
        pending = [client.submit(body, timeout=20) for _ in range(40)]
        assert all(one.result() == body for one in pending)


def test_close_ends_what_waits(client: Client) -> None:
    pending = client.submit(b"0500", timeout=5)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(pending.result)
        time.sleep(0.05)
        client.close()
        with pytest.raises(ConnectionLost, match="closed on this side"):
            result.result(1)
    assert client.closed
    with pytest.raises(ConnectionLost, match="closed on this side"):
        client.request(b"x", timeout=5)
    client.close()


def test_server_gone_mid_call() -> None:
    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(WELCOME)
        for _ in range(3):
            read_frame(connection, parser)
        connection.sendall(serialize(Frame(FrameType.REPLY, b"half", 1))[:-3])

    with scripted_server(script) as address, open_client(address, [ID]) as client:
        pending = [client.submit(b"x", timeout=5) for _ in range(3)]
        start = time.monotonic()
        for one in pending:
            with pytest.raises(ConnectionLost, match="in the middle of a message"):
                one.result()
        assert time.monotonic() - start < 1
        assert client.closed
        with pytest.raises(ConnectionLost):
            client.request(b"x", timeout=5)


def test_server_stops_gracefully() -> None:
    with serve(Reverse()) as server, open_client(server.address, [ID]) as client:
        pending = client.submit(b"0150", timeout=5)
        time.sleep(0.05)
        stopping = threading.Thread(target=server.close)
        stopping.start()
        assert pending.result() == b"0510", "an answer in flight still comes"
        with pytest.raises(ConnectionLost):
            client.request(b"x", timeout=5)
        stopping.join(5)
        assert not stopping.is_alive()
        with pytest.raises(ConnectionLost, match=r"no connection to 127.*Connection refused.*compoff serve"):
            open_client(server.address, [ID])


@pytest.mark.parametrize(
    ("ids", "token", "expected", "words"),
    [
        ([ID], "wrong", AuthenticationError, "token is wrong"),
        ([ID], None, AuthenticationError, "token is needed"),
        ([bytes(32)], "secret", ArtifactMismatch, "no tail here belongs to the head 00000000"),
        ([ID, bytes(32)], "secret", ArtifactMismatch, "head 00000000"),
        ([], "secret", LocalProtocolError, "0 artifacts"),
        ([ID], "", LocalProtocolError, "token of 0 bytes"),
    ],
)
def test_a_refused_handshake(ids: list[bytes], token: str | None, expected: type[CompoffError], words: str) -> None:
    with serve(Reverse(), token="secret") as server:
        with pytest.raises(expected, match=words):
            open_client(server.address, ids, token=token)
        with open_client(server.address, [ID], token="secret") as client:
            assert client.request(b"in", timeout=5) == b"ni"


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
        assert 0.2 < time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("greeting", "hold", "expected"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False, RemoteProtocolError),
        (b"\x15\x03\x03\x00\x02\x02\x0a", False, RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", True, RemoteProtocolError),
        (b"\x02", True, ConnectTimeout),
        (b"", True, ConnectTimeout),
        (b"", False, RemoteProtocolError),
        (WELCOME[:-1] + b"\x00", True, RemoteProtocolError),
        (serialize(Frame(FrameType.REPLY, b"x", 1)), True, RemoteProtocolError),
        (
            serialize(Frame(FrameType.WELCOME, Welcome(1, (Route(0, 1),), version=2).encode())),
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
            open_client(address, [ID], connect_timeout=0.4)
        assert time.monotonic() - start < 3


def test_a_server_that_drips_cannot_stretch_a_deadline() -> None:
    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(WELCOME)
        answer = serialize(Frame(FrameType.REPLY, bytes(900), read_frame(connection, parser).request_id))
        for index in range(len(answer)):
            connection.sendall(answer[index : index + 1])
            time.sleep(0.002)

    with scripted_server(script) as address, open_client(address, [ID]) as client:
        start = time.monotonic()
        with pytest.raises(ReadTimeout):
            client.request(b"x", timeout=0.1)
        assert time.monotonic() - start < 1


def test_a_peer_that_does_not_read_cannot_stretch_a_deadline() -> None:
    release = threading.Event()
    big = serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 2**26),)).encode()))

    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(big)
        release.wait(5)

    with scripted_server(script) as address, open_client(address, [ID]) as client:
        start = time.monotonic()
        with pytest.raises(ConnectionLost, match="only half a message"):
            client.request(bytes(2**26), timeout=0.3)
        assert time.monotonic() - start < 1
        assert client.closed
        release.set()


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
                with open_client(address, [ID], connect_timeout=1) as client:
                    outcomes.add(client.request(b"x", timeout=1))
            except WireError as error:
                outcomes.add(type(error))
            assert time.monotonic() - start < 3
    assert {outcome for outcome in outcomes if isinstance(outcome, bytes)} == {b"the answer"}
    assert {RemoteProtocolError, ConnectionLost} <= outcomes


def test_it_leaves_no_thread_behind(client: Client) -> None:
    before = set(threading.enumerate())
    client.request(b"x", timeout=5)
    assert set(threading.enumerate()) <= before
