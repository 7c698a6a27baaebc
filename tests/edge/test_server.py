"""The server over real sockets: what strangers do to it, its limits and clocks, and how it stops."""

from __future__ import annotations

import contextlib
import gc
import logging
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from compoff.edge import connection
from compoff.edge.server import Server, serve
from compoff.errors import BackendError, ConnectionLost, LocalProtocolError, PayloadError, WireError
from compoff.wire.client import open_client
from compoff.wire.frames import Frame, FrameType, serialize
from compoff.wire.messages import ErrorCode, Welcome, decode_error

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.edge.peers import HELLO, ID, Clock, Echo, Peer, content, eventually, request, still_right


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(Echo()) as server:
        yield server


def test_it_speaks_first_to_nobody_and_welcomes(server: Server) -> None:
    with Peer(server) as peer:
        welcome = peer.read()
        assert welcome is not None
        assert Welcome.decode(welcome.body, 1).window == 16
        peer.send(request(7, b"x"))
        assert content(peer.read()) == (FrameType.REPLY, b"x", 7)


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
    replies = served = 0

    def good() -> None:
        nonlocal served
        with open_client(server.address, [ID]) as client:
            while not stop.is_set():
                body = rng.randbytes(20)
                assert client.request(body, timeout=30) == body
                served += 1

    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as at_last:
        at_last.callback(stop.set)
        done = pool.submit(good)
        strangers = 0
        while strangers < 400 or served <= 100:
            strangers += 1
            assert strangers < 4000
            assert not done.done(), done.result()
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
        done.result(30)
    assert replies > 0


def test_stopping_lets_answers_out_and_nothing_in() -> None:
    tail = Echo()
    server = serve(tail)
    with Peer(server) as peer, Peer(server, b"") as silent:
        peer.read()
        peer.send(request(1, b"held"))
        eventually(lambda: server.stats().connections == 2 and server.stats().pending == 1)
        stopping = threading.Thread(target=server.close)
        stopping.start()
        assert peer.read() == Frame(FrameType.GOODBYE)
        peer.send(request(2, b"x"))
        refused = peer.read()
        assert refused is not None
        assert (refused.request_id, decode_error(refused.body)[0]) == (2, ErrorCode.CLOSING)
        tail.gate.set()
        assert content(peer.read()) == (FrameType.REPLY, b"held", 1)
        assert peer.read() is None
        assert silent.refused() is ErrorCode.CLOSING
        stopping.join(30)
    assert server.wait(0)
    with pytest.raises(ConnectionLost, match="refused"):
        open_client(server.address, [ID])
    server.close()


def test_who_is_asked_to_go_cannot_stay_by_pinging() -> None:
    ping = serialize(Frame(FrameType.PING, request_id=1))
    with serve(Echo(), drain_timeout=300) as server, Peer(server) as peer:
        peer.read()
        server.readmit()
        assert peer.read() == Frame(FrameType.GOODBYE)
        before = len(server._loop._scheduled)  # type: ignore[attr-defined]
        deadline = time.monotonic() + 30
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                peer.send(ping)
                if peer.read() is None:
                    break
                assert len(server._loop._scheduled) <= before + 3  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        still_right(server)


def test_who_is_asked_to_go_and_asks_on_has_until_the_drain_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(connection, "_LINGER", 0.02)
    with serve(Echo(), drain_timeout=0.1) as server, Peer(server) as peer:
        peer.read()
        server.readmit()
        assert peer.read() == Frame(FrameType.GOODBYE)
        for number in range(1, 7):
            clock.advance(server, 0.015)
            peer.send(request(number, b"x"))
            refused = peer.read()
            assert refused is not None
            assert decode_error(refused.body)[0] is ErrorCode.CLOSING
            time.sleep(0.03)  # for the server to see whether it has lingered long enough
        clock.advance(server, 0.015)
        assert peer.read() is None


def test_answers_in_flight_have_until_the_drain_timeout_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LAST_WORDS", 0.01)
    body = random.Random(0).randbytes(2**22)
    with serve(Echo(2**22), drain_timeout=20) as server, Peer(server, receive_buffer=4096) as peer:
        peer.read()
        peer.send(request(1, body))
        eventually(lambda: server.stats().tails[0].replies == 1)
        server.readmit()
        time.sleep(0.4)  # longer than the server lingers
        assert content(peer.read()) == (FrameType.REPLY, body, 1)
        assert peer.read() == Frame(FrameType.GOODBYE)
        assert peer.read() is None


def test_stopping_does_not_wait_for_ever() -> None:
    tail = Echo()
    with serve(tail, drain_timeout=0.05) as server, open_client(server.address, [ID]) as client:
        pending = client.submit(b"held", timeout=30)
        eventually(lambda: tail.answered == 1)
        start = time.monotonic()
        server.close()
        with pytest.raises(ConnectionLost):
            pending.result()
        assert time.monotonic() - start < 20, "the tail would wait for 30 s"
        tail.gate.set()


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


def test_an_address_that_is_none_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with pytest.raises(LocalProtocolError, match="'nonsense' is not an address"):
        serve(Echo(), "nonsense", insecure=True)
    assert set(threading.enumerate()) <= before


def test_a_port_that_is_taken() -> None:
    before = set(threading.enumerate())
    with serve(Echo()) as server, pytest.raises(WireError, match=r"cannot listen on .* choose another port"):
        serve(Echo(), server.address)
    with pytest.raises(WireError, match=r"cannot listen on a\.\.b:0"):
        serve(Echo(), "a..b:0", insecure=True)
    assert set(threading.enumerate()) <= before


def test_the_door_is_there_whichever_event_loop_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> None:
        raise AssertionError("a loop that may watch no sockets")

    monkeypatch.setattr("asyncio.events.new_event_loop", other)
    with serve(Echo()) as server:
        still_right(server)


def test_a_system_that_cannot_share_a_port_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(BackendError, match="cannot share a port among processes; leave reuse_port out"):
        serve(Echo(), reuse_port=True)
    with serve(Echo()) as server:
        still_right(server)


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
        ({"tails": Echo(), "token": ["good", None]}, "None was given as one of several tokens"),
        ({"tails": Echo(), "insecure": "false"}, "insecure is 'false'; expected True or False"),
        ({"tails": Echo(), "address": "0.0.0.0:0", "insecure": "no"}, "insecure is 'no'; expected True or False"),
        ({"tails": Echo(), "reuse_port": "no"}, "reuse_port is 'no'; expected True or False"),
        ({"tails": Echo(), "window": 0}, "window=0"),
        ({"tails": Echo(), "workers": 0}, "workers is 0; expected a whole number of at least 1"),
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


def test_tokens_are_kept_as_they_were_given() -> None:
    with serve(Echo(), token=(token for token in ("old", "new"))) as server:  # pyright: ignore[reportArgumentType]
        for token in ("new", "old", "new"):
            open_client(server.address, [ID], token=token).close()
        with pytest.raises(LocalProtocolError, match="None was given as one of several tokens"):
            server.replace_tokens([None])  # pyright: ignore[reportArgumentType]
        open_client(server.address, [ID], token="old").close()


def test_several_tails_in_several_threads() -> None:
    class Second(Echo):
        artifact_id = bytes(32)

        def answer(self, payload: bytes) -> bytes:
            return b"second " + payload

    tail = Echo()
    with serve([tail, Second()], workers=2) as server, open_client(server.address, [bytes(32), ID]) as client:
        pending = [client.submit(b"held", route=1, timeout=30) for _ in range(2)]
        other = client.submit(b"x", timeout=30)
        eventually(lambda: tail.answered == 2)  # both at a time
        tail.gate.set()
        assert other.result() == b"second x"
        assert [one.result() for one in pending] == [b"held"] * 2


def test_neither_tokens_nor_payloads_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serve(Echo(), token="hunter2") as server:
        with pytest.raises(WireError):
            open_client(server.address, [ID], token="hunter3")
        with open_client(server.address, [ID], token="hunter2") as client:
            client.request(b"personal data", timeout=30)
            with pytest.raises(PayloadError):
                client.request(b"broken", timeout=30)
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


def test_who_has_to_connect_anew_is_not_told_that_the_server_stops() -> None:
    tail = Echo()
    with serve(tail) as server, Peer(server, first=b"") as silent, Peer(server) as peer:
        peer.read()
        eventually(lambda: server.stats().connections == 2)
        peer.send(request(1, b"held"))
        eventually(lambda: server.stats().pending == 1)
        server.readmit()
        frame = silent.read()
        assert frame is not None
        assert decode_error(frame.body) == (ErrorCode.CLOSING, "this connection is being closed; connect again")
        assert content(peer.read())[0] == FrameType.GOODBYE
        peer.send(request(2, b"x"))
        frame = peer.read()
        assert frame is not None
        assert decode_error(frame.body) == (ErrorCode.CLOSING, "this connection is being closed; connect again")
        tail.gate.set()
        assert content(peer.read()) == (FrameType.REPLY, b"held", 1)
        still_right(server)


def test_a_prompt_tail_may_swap_the_tails_of_its_server_and_close_it() -> None:
    class Prompt(Echo):
        def answer(self, payload: bytes) -> bytes:
            if payload == b"swap":
                server.swap(Prompt())
            elif payload == b"close":
                server.close()
            return super().answer(payload)

    server = serve(Prompt())
    with open_client(server.address, [ID]) as client:
        for word in (b"swap", b"close"):
            eventually(lambda: client.request(b"x", timeout=30) and server._service._lanes[ID].pace.prompt)
            assert client.request(word, timeout=30) == word
    assert server.wait(30)


def test_who_is_accepted_in_the_moment_it_stops_is_closed_too() -> None:
    def connect(address: tuple[str, int], stop: threading.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                socket.create_connection(address, timeout=0.2).close()

    for _ in range(10):
        server = serve(Echo())
        host, port = server.address.split(":")
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(connect, (host, int(port)), stop)
            time.sleep(0.01)
            server.close()
            stop.set()
    gc.collect()  # a socket that was forgotten warns now, and a warning is an error


@pytest.mark.parametrize("slow", [True, False], ids=["while a name is looked up", "when it listens"])
def test_a_start_that_is_interrupted_leaves_nobody_listening(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    real, looked_up = socket.getaddrinfo, threading.Event()

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        if slow:
            looked_up.wait(10)
        return real(*args, **kwargs)

    def interrupted(future: Future[str], timeout: float | None = None) -> str:
        here = threading.current_thread() is threading.main_thread()
        found = whole(future, timeout) if not (slow and here) else ""
        if here:
            raise KeyboardInterrupt
        return found

    whole = Future[str].result
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(Future, "result", interrupted)
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        serve(Echo(), f"localhost:{port}")
    monkeypatch.undo()
    looked_up.set()
    eventually(lambda: not [one for one in threading.enumerate() if one not in before and one.is_alive()])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port), timeout=30)
    serve(Echo(), f"localhost:{port}").close()


ENDS = """
import threading, time
from compoff.edge.server import serve
from compoff.wire.client import open_client

class Slow:
    artifact_id = bytes(32)
    max_payload_bytes = 100

    def answer(self, payload):
        begun.set()
        time.sleep(0.2)
        print("answered", flush=True)
        return payload

begun = threading.Event()
server = serve(Slow(), drain_timeout=60)
client = open_client(server.address, [Slow.artifact_id])
client.submit(b"x", timeout=30)
begun.wait(30)
"""


def test_a_program_that_ends_while_a_tail_is_at_work_lets_it_end_first() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=90, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "answered\n", "")
    assert time.monotonic() - began < 30, "an idle connection holds nobody up"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that send signals")
def test_a_handler_of_signals_closes_a_server_that_is_waited_for() -> None:
    for _ in range(20):
        server = serve(Echo())
        before = signal.signal(signal.SIGALRM, lambda *_, server=server: server.close())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.005)
            while not server.wait(0.0005):
                pass
        finally:
            signal.signal(signal.SIGALRM, before)
        assert not server._thread.is_alive()
