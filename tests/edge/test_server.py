"""The server over real sockets: what strangers do to it, its limits and clocks, and how it stops."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from compoff.edge.server import Server, serve
from compoff.errors import ConnectionLost, LocalProtocolError, PayloadError, ReadTimeout, ServerBusy, WireError
from compoff.wire.client import open_client
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import ErrorCode, Hello, Welcome, decode_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ID = bytes(range(32))
HELLO = serialize(Frame(FrameType.HELLO, Hello((ID,)).encode()))


class Echo:
    """Answers with the payload; counts; a payload of digits says how many milliseconds to sleep first."""

    artifact_id = ID

    def __init__(self, max_payload_bytes: int = 2**16) -> None:
        self.max_payload_bytes = max_payload_bytes
        self.answered = 0

    def answer(self, payload: bytes) -> bytes:
        self.answered += 1
        if payload == b"broken":
            raise PayloadError("the payload is broken")
        if payload.isdigit():
            time.sleep(int(payload) / 1000)
        return payload


class Peer:
    """A raw connection to a server."""

    def __init__(self, server: Server, first: bytes = HELLO, receive_buffer: int = 0) -> None:
        host, port = server.address.rsplit(":", 1)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(5)
        self.socket.connect((host, int(port)))
        self.parser = FrameParser(lambda frame_type, route, length: None)
        self.send(first)

    def send(self, data: bytes) -> None:
        if data:
            self.socket.sendall(data)

    def read(self) -> Frame | None:
        """The next frame, or None where the server has closed."""
        while (frame := self.parser.next_frame()) is None:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.parser.feed(data)
        return frame

    def refused(self) -> ErrorCode:
        """The code of the farewell, after which the server has closed."""
        frame = self.read()
        assert frame is not None
        assert (frame.type, frame.request_id) == (FrameType.ERROR, 0)
        assert self.read() is None
        return decode_error(frame.body)[0]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def request(request_id: int, body: bytes, deadline_ms: int = 0) -> bytes:
    return serialize(Frame(FrameType.REQUEST, body, request_id, 0, deadline_ms))


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Echo()) as server:
        yield server


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something holds, but not for ever."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def still_right(server: Server, **options: Any) -> None:
    """A good client is served, and quickly."""
    with open_client(server.address, [ID], **options) as client:
        assert client.request(b"good", timeout=2) == b"good"


def test_it_speaks_first_to_nobody_and_welcomes(server: Server) -> None:
    with Peer(server) as peer:
        welcome = peer.read()
        assert welcome is not None
        assert Welcome.decode(welcome.body, 1).window == 16
        peer.send(request(7, b"x"))
        assert peer.read() == Frame(FrameType.REPLY, b"x", 7)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\x00" * 4096,
        b"\x01" + bytes(7) + b"\xff\xff\xff\xff",
        HELLO[:-1] + b"\x00",
        request(1, b"x"),
    ],
    ids=["http", "tls", "zeros", "4GiB", "damaged", "no-hello"],
)
def test_strangers_are_told_and_closed(server: Server, garbage: bytes) -> None:
    with Peer(server, garbage) as peer:
        assert peer.refused() is ErrorCode.PROTOCOL
    still_right(server)


def test_400_hostile_connections_leave_a_good_client_alone(server: Server) -> None:
    rng = random.Random(0)
    stop = threading.Event()
    replies = 0

    def good() -> int:
        count = 0
        with open_client(server.address, [ID]) as client:
            while not stop.is_set():
                body = rng.randbytes(20)
                assert client.request(body, timeout=2) == body
                count += 1
        return count

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(good)
        for _ in range(400):
            stream = bytearray(HELLO + request(1, b"genuine") + request(2, b"genuine"))
            start = rng.choice((0, 0, len(HELLO)))
            for _ in range(rng.choice((0, 1, 4))):
                stream[rng.randrange(start, len(stream))] = rng.randrange(256)
            if rng.random() < 0.3:
                stream[start + 8 : start + 12] = rng.randbytes(4)
            if rng.random() < 0.3:
                del stream[rng.randrange(start, len(stream)) :]
            with Peer(server, bytes(stream)) as peer, contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_WR)
                while (frame := peer.read()) is not None:
                    if frame.type is FrameType.REPLY:
                        replies += 1
                        assert frame.body == b"genuine"
        stop.set()
        assert served.result(5) > 100
    assert replies > 0


def test_handshake_half_message_and_idle_run_out() -> None:
    with serve(Echo(), handshake_timeout=0.2, message_timeout=0.3, idle_timeout=0.5) as server:
        start = time.monotonic()
        with Peer(server, b"") as silent, Peer(server, HELLO[:20]) as slow, Peer(server) as half, Peer(server) as idle:
            assert half.read() is not None
            half.send(request(1, bytes(1000))[:-1])
            assert silent.refused() is ErrorCode.PROTOCOL
            assert slow.refused() is ErrorCode.PROTOCOL
            assert 0.15 < time.monotonic() - start < 1.5
            assert half.refused() is ErrorCode.PROTOCOL
            assert 0.25 < time.monotonic() - start < 1.5
            assert idle.read() is not None
            assert idle.read() == Frame(FrameType.GOODBYE)
            assert idle.read() is None
            assert 0.45 < time.monotonic() - start < 2


def test_dripping_does_not_stretch_the_timeouts() -> None:
    with serve(Echo(), handshake_timeout=0.2, message_timeout=0.2) as server:
        for first, drip in ((b"", HELLO), (HELLO, request(1, bytes(1000)))):
            with Peer(server, first) as peer:
                start = time.monotonic()
                with contextlib.suppress(OSError):
                    for index in range(200):
                        peer.send(drip[index : index + 1])
                        time.sleep(0.01)
                assert time.monotonic() - start < 1.5, "200 drips take 2 s"


def test_a_busy_connection_is_not_idle() -> None:
    with serve(Echo(), idle_timeout=0.2) as server, open_client(server.address, [ID]) as client:
        assert client.request(b"0500", timeout=2) == b"0500"
        for _ in range(6):
            time.sleep(0.05)
            client.ping(timeout=1)
        assert client.request(b"x", timeout=2) == b"x"


def test_one_connection_too_many_is_busy() -> None:
    with serve(Echo(), max_connections=2) as server:
        with open_client(server.address, [ID]) as one, open_client(server.address, [ID]):
            with pytest.raises(ServerBusy, match="no room for another connection"):
                open_client(server.address, [ID])
            assert one.request(b"x", timeout=2) == b"x"
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            with contextlib.suppress(ServerBusy):
                still_right(server)
                return
        pytest.fail("a place that is free again was not given away")


def test_one_request_too_many_is_busy(server: Server) -> None:
    with Peer(server) as peer:
        peer.read()
        peer.send(b"".join(request(number, b"0020") for number in range(1, 21)))
        frames = [peer.read() for _ in range(20)]
        busy = [frame for frame in frames if frame is not None and frame.type is FrameType.ERROR]
        assert [frame.request_id for frame in busy] == [17, 18, 19, 20]
        assert {decode_error(frame.body)[0] for frame in busy} == {ErrorCode.BUSY}
        assert sum(frame is not None and frame.type is FrameType.REPLY for frame in frames) == 16


def test_all_connections_share_one_queue() -> None:
    with serve(Echo(), max_pending=3) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_client(server.address, [ID])) for _ in range(5)]
        pending = [client.submit(b"0100", timeout=3) for client in clients]
        outcomes: list[object] = []
        for one in pending:
            try:
                outcomes.append(one.result())
            except ServerBusy:
                outcomes.append("busy")
        assert sorted(map(str, outcomes)) == ["b'0100'"] * 3 + ["busy"] * 2
        still_right(server)


def test_half_messages_cannot_fill_the_server() -> None:
    half = request(1, bytes(2**16))[:-1]
    options = {"max_held_bytes": 4 * len(half) + 1000, "message_timeout": 30}
    with serve(Echo(2**16), **options) as server, contextlib.ExitStack() as stack:
        for number in range(4):
            peer = stack.enter_context(Peer(server))
            peer.send(half)
            eventually(lambda count=number + 1: server._service.held_bytes == count * len(half))
        for _ in range(4):
            with Peer(server) as peer, contextlib.suppress(OSError):
                assert peer.read() is not None
                peer.send(half)
                frame = peer.read()
                assert frame is None or decode_error(frame.body)[0] is ErrorCode.BUSY
        assert server._service.held_bytes <= options["max_held_bytes"]
        stack.close()
        eventually(lambda: server._service.held_bytes == 0)
        still_right(server)


def test_expired_requests_never_reach_the_tail() -> None:
    echo = Echo()
    with serve(echo) as server, open_client(server.address, [ID]) as client:
        first = client.submit(b"0150", timeout=2)
        late = [client.submit(b"late", timeout=0.05) for _ in range(5)]
        assert first.result() == b"0150"
        for one in late:
            with pytest.raises(ReadTimeout):
                one.result()
        assert client.request(b"next", timeout=2) == b"next"
        assert echo.answered == 2


def test_the_deadline_of_the_server_is_told(server: Server) -> None:
    with Peer(server) as peer:
        peer.read()
        peer.send(request(1, b"0100") + request(2, b"x", deadline_ms=20))
        one, two = peer.read(), peer.read()
        assert one == Frame(FrameType.REPLY, b"0100", 1)
        assert two is not None
        assert (two.request_id, decode_error(two.body)[0]) == (2, ErrorCode.DEADLINE)


def test_requests_of_a_client_that_has_gone_never_reach_the_tail() -> None:
    echo = Echo()
    with serve(echo) as server:
        with Peer(server) as peer:
            peer.read()
            peer.send(b"".join(request(number, b"0100") for number in range(1, 6)))
            time.sleep(0.05)
        still_right(server)
        assert echo.answered <= 3


def test_a_client_that_does_not_read_is_not_read_from_and_then_closed() -> None:
    class Big(Echo):
        def answer(self, payload: bytes) -> bytes:
            return super().answer(payload).ljust(2**20)

    big = Big()
    with serve(big, window=8, message_timeout=0.5) as server, Peer(server, receive_buffer=4096) as peer:
        peer.read()
        peer.send(b"".join(request(number, b"x") for number in range(1, 9)))
        [connection] = server._service.peers
        eventually(lambda: connection._paused and big.answered == 8)
        for number in range(9, 100):
            peer.send(request(number, b"x"))
        time.sleep(0.1)
        assert big.answered == 8, "the server stopped reading"
        assert connection._transport.get_write_buffer_size() <= 8 * (2**20 + 16)
        eventually(lambda: not server._service.peers)
        assert server._service.held_bytes == 0
        with open_client(server.address, [ID]) as client:
            assert client.request(b"good", timeout=5).strip() == b"good"


def test_a_slow_reader_is_not_cut_off() -> None:
    with serve(Echo(2**20), message_timeout=0.3) as server, Peer(server, receive_buffer=4096) as peer:
        body = random.Random(0).randbytes(2**20)
        peer.read()
        for number in range(1, 5):
            peer.send(request(number, body))
        time.sleep(0.1)
        for number in range(1, 5):
            assert peer.read() == Frame(FrameType.REPLY, body, number)
            time.sleep(0.15)


def test_stopping_lets_answers_out_and_nothing_in() -> None:
    server = serve(Echo())
    with Peer(server) as peer, Peer(server, b"") as silent:
        peer.read()
        peer.send(request(1, b"0150"))
        time.sleep(0.05)
        stopping = threading.Thread(target=server.close)
        stopping.start()
        assert peer.read() == Frame(FrameType.GOODBYE)
        peer.send(request(2, b"x"))
        refused = peer.read()
        assert refused is not None
        assert (refused.request_id, decode_error(refused.body)[0]) == (2, ErrorCode.CLOSING)
        assert peer.read() == Frame(FrameType.REPLY, b"0150", 1)
        assert peer.read() is None
        assert silent.refused() is ErrorCode.CLOSING
        stopping.join(5)
    assert server.wait(0)
    with pytest.raises(ConnectionLost, match="refused"):
        open_client(server.address, [ID])
    server.close()


def test_stopping_does_not_wait_for_ever() -> None:
    start = time.monotonic()
    with serve(Echo(), drain_timeout=0.2) as server, open_client(server.address, [ID]) as client:
        pending = client.submit(b"1500", timeout=5)
        time.sleep(0.05)
        server.close()
        with pytest.raises(ConnectionLost):
            pending.result()
    assert time.monotonic() - start < 1.4, "the tail sleeps 1.5 s"


def test_it_leaves_no_thread_and_no_port_behind() -> None:
    before = set(threading.enumerate())
    for _ in range(5):
        with serve(Echo(), workers=3) as server:
            still_right(server)
            address = server.address
            assert not server.wait(0.01)
    assert set(threading.enumerate()) <= before
    with serve(Echo(), address) as server:
        assert server.address == address
        still_right(server)


def test_a_port_that_is_taken() -> None:
    before = set(threading.enumerate())
    with serve(Echo()) as server, pytest.raises(WireError, match=r"cannot listen on .* choose another port"):
        serve(Echo(), server.address)
    with pytest.raises(WireError, match=r"cannot listen on a\.\.b:0"):
        serve(Echo(), "a..b:0")
    assert set(threading.enumerate()) <= before


def test_ipv6() -> None:
    with contextlib.suppress(WireError), serve(Echo(), "[::1]:0") as server:
        assert server.address.startswith("[::1]:")
        still_right(server)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tails": []}, "nothing to serve"),
        ({"tails": [Echo(), Echo()]}, "two of the tails are of the same artifact"),
        ({"tails": Echo(0)}, "longest payload of 0 bytes"),
        ({"tails": Echo(), "address": "edge"}, "not an address"),
        ({"tails": Echo(), "token": ""}, "token of 0 bytes"),
        ({"tails": Echo(), "window": 0}, "window=0"),
        ({"tails": Echo(), "workers": 0}, "workers=0"),
        ({"tails": Echo(), "max_connections": 0}, "max_connections=0"),
        ({"tails": Echo(), "idle_timeout": float("nan")}, "idle_timeout=nan"),
        ({"tails": Echo(), "max_held_bytes": 100}, "raise max_held_bytes"),
    ],
)
def test_arguments_that_cannot_be_served(arguments: dict[str, Any], words: str) -> None:
    before = set(threading.enumerate())
    with pytest.raises(LocalProtocolError, match=words):
        serve(**arguments)
    assert set(threading.enumerate()) <= before


def test_several_tails_in_several_threads() -> None:
    class Second(Echo):
        artifact_id = bytes(32)

        def answer(self, payload: bytes) -> bytes:
            return b"second " + payload

    with serve([Echo(), Second()], workers=2) as server, open_client(server.address, [bytes(32), ID]) as client:
        start = time.monotonic()
        pending = [client.submit(b"0500", route=1, timeout=5) for _ in range(2)]
        assert client.request(b"x", timeout=5) == b"second x"
        assert [one.result() for one in pending] == [b"0500"] * 2
        assert time.monotonic() - start < 0.95, "both at a time"


def test_neither_tokens_nor_payloads_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serve(Echo(), token="hunter2") as server:
        with pytest.raises(WireError):
            open_client(server.address, [ID], token="hunter3")
        with open_client(server.address, [ID], token="hunter2") as client:
            client.request(b"personal data", timeout=2)
            with pytest.raises(PayloadError):
                client.request(b"broken", timeout=2)
        with Peer(server, b"personal data") as peer:
            peer.refused()
    assert "the token is wrong" in caplog.text
    assert "hunter" not in caplog.text
    assert "personal" not in caplog.text


def test_sixteen_clients_at_once(server: Server) -> None:
    def work(number: int) -> None:
        rng = random.Random(number)
        with open_client(server.address, [ID]) as client:
            for _ in range(50):
                body = rng.randbytes(rng.choice((1, 100, 60_000))) + b"."
                assert client.request(body, timeout=10) == body

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
