"""The server's limits in number, bytes and time: what one client may take from the others."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time

import pytest

from compoff.edge.batching import Job, Lane, Outcome, Pace
from compoff.edge.server import serve
from compoff.errors import LocalProtocolError, ReadTimeout, RemoteError, ServerBusy
from compoff.wire.client import open_client
from compoff.wire.frames import Frame, FrameType, serialize
from compoff.wire.messages import ErrorCode, decode_error
from compoff.wire.moved import unsent
from compoff.wire.replies import FULL
from tests.edge.peers import HELLO, ID, Clock, Echo, Peer, content, eventually, request, still_right


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_handshake_half_message_and_idle_run_out(clock: Clock) -> None:
    half_hello, half_request = HELLO[:20], request(1, bytes(1000))[:-1]
    with (
        serve(Echo(), handshake_timeout=10, message_timeout=20, idle_timeout=30) as server,
        Peer(server, b"") as silent,
        Peer(server, half_hello) as slow,
        Peer(server) as half,
        Peer(server) as idle,
    ):
        for peer in (half, idle):
            assert peer.read() is not None
        half.send(half_request)
        eventually(lambda: server.stats().connections == 4)
        eventually(lambda: server._service.held_bytes == len(half_hello) + len(half_request))
        for seconds, refused in ((9.9, 0), (0.2, 2), (9.8, 2), (0.2, 3), (9.8, 3)):
            clock.advance(server, seconds)
            assert server.stats().refused == refused
        assert [peer.refused() for peer in (silent, slow, half)] == [ErrorCode.PROTOCOL] * 3
        clock.advance(server, 0.2)
        assert idle.read() == Frame(FrameType.GOODBYE)
        assert idle.read() is None


def test_a_server_looks_at_its_clocks_by_itself() -> None:
    start = time.monotonic()
    with serve(Echo(), handshake_timeout=0.1) as server, Peer(server, b"") as silent:
        assert silent.refused() is ErrorCode.PROTOCOL
        assert time.monotonic() - start >= 0.1


@pytest.mark.parametrize("name", ["handshake_timeout", "message_timeout", "idle_timeout"])
def test_a_time_that_no_client_keeps_to_is_refused(name: str) -> None:
    with pytest.raises(LocalProtocolError, match=f"{name}=1e-09 was given; expected seconds, at least 0.001"):
        serve(Echo(), **{name: 1e-9})  # type: ignore[arg-type]


def test_dripping_does_not_stretch_the_timeouts(clock: Clock) -> None:
    with serve(Echo(), handshake_timeout=10, message_timeout=10) as server:
        for count, (first, drip) in enumerate(((b"", HELLO), (HELLO, request(1, bytes(1000))))):
            with Peer(server, first) as peer:
                if first:
                    assert peer.read() is not None
                for index in range(10):
                    peer.send(drip[index : index + 1])
                    eventually(lambda held=index + 1: server._service.held_bytes == held)
                    assert server.stats().refused == count
                    clock.advance(server, 1.0)
                assert peer.refused() is ErrorCode.PROTOCOL


def test_answers_that_go_out_give_half_a_message_no_more_time() -> None:
    tail = Echo()
    with serve(tail) as server, Peer(server) as peer:
        peer.read()
        [connection] = server._service.peers
        peer.send(request(1, b"held") + request(2, b"half")[:-1])
        eventually(lambda: connection.held_bytes > 0)
        began = connection._since
        tail.gate.set()
        assert content(peer.read()) == (FrameType.REPLY, b"held", 1)
        assert connection._since == began


def test_a_busy_connection_is_not_idle(clock: Clock) -> None:
    tail = Echo()
    with serve(tail, idle_timeout=10) as server, open_client(server.address, [ID]) as client:
        pending = client.submit(b"held", timeout=30)
        eventually(lambda: server.stats().pending == 1)
        clock.advance(server, 25)
        tail.gate.set()
        assert pending.result() == b"held"
        for _ in range(3):
            clock.advance(server, 6)
            client.ping(timeout=30)
        clock.advance(server, 6)
        assert client.request(b"x", timeout=30) == b"x"


def test_one_connection_too_many_is_busy() -> None:
    with serve(Echo(), max_connections=2) as server:
        with open_client(server.address, [ID]) as one, open_client(server.address, [ID]):
            with pytest.raises(ServerBusy, match="no room for another connection"):
                open_client(server.address, [ID])
            assert one.request(b"x", timeout=30) == b"x"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(ServerBusy):
                still_right(server)
                return
        pytest.fail("a place that is free again was not given away")


def test_one_request_too_many_is_busy() -> None:
    tail = Echo()
    with serve(tail) as server, Peer(server) as peer:
        peer.read()
        peer.send(b"".join(request(number, b"held") for number in range(1, 21)))
        busy = [frame for frame in (peer.read() for _ in range(4)) if frame is not None]
        assert [frame.request_id for frame in busy] == [17, 18, 19, 20]
        assert {decode_error(frame.body)[0] for frame in busy} == {ErrorCode.BUSY}
        tail.gate.set()
        assert [content(peer.read()) for _ in range(16)] == [
            (FrameType.REPLY, b"held", number) for number in range(1, 17)
        ]


def test_all_connections_share_one_queue() -> None:
    tail = Echo()
    with serve(tail, max_pending=3) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(open_client(server.address, [ID])) for _ in range(5)]
        pending = [client.submit(b"held", timeout=30) for client in clients]
        eventually(lambda: server.stats().tails[0].errors == {"busy": 2})
        tail.gate.set()
        outcomes: list[object] = []
        for one in pending:
            try:
                outcomes.append(one.result())
            except ServerBusy:
                outcomes.append("busy")
        assert sorted(map(str, outcomes)) == ["b'held'"] * 3 + ["busy"] * 2
        still_right(server)


def test_a_refusal_names_what_there_is_no_room_for() -> None:
    long = b"held".ljust(4000)
    for limit, words in (
        ({"max_pending": 1}, r"has as many requests to answer as it may \(1\); try again later"),
        ({"max_held_bytes": 6000}, "holds as many bytes of requests as it may; try again later"),
    ):
        tail = Echo(5000)
        with serve(tail, **limit) as server, open_client(server.address, [ID]) as client:
            first, second = client.submit(long, timeout=30), client.submit(long, timeout=30)
            with pytest.raises(ServerBusy, match=words):
                second.result()
            tail.gate.set()
            assert first.result() == long


def test_a_request_that_would_begin_at_once_waits_in_no_queue() -> None:
    tail = Echo()
    with serve(tail, workers=3) as server, open_client(server.address, [ID]) as client:
        [lane] = server._service._lanes.values()
        lane.seconds_per_job = 0.3
        pending = [client.submit(b"held", timeout=30) for _ in range(2)]
        eventually(lambda: tail.answered == 2)
        client.ping(timeout=30)
        assert client.queue_seconds == 0.0, "a worker has nothing to do"
        pending += [client.submit(b"held", timeout=30) for _ in range(2)]
        eventually(lambda: sum(tail.running + tail.waiting for tail in server.stats().tails) == 4)
        client.ping(timeout=30)
        assert client.queue_seconds == pytest.approx(0.4, rel=0.01), "four of 0.3 s among three"
        tail.gate.set()
        assert [one.result() for one in pending] == [b"held"] * 4


def test_half_messages_cannot_fill_the_server() -> None:
    half = request(1, bytes(2**16))[:-1]
    options = {"max_held_bytes": 4 * len(half) + 1000, "message_timeout": 30}
    with serve(Echo(2**16), **options) as server, contextlib.ExitStack() as stack:
        for number in range(4):
            peer = stack.enter_context(Peer(server))
            peer.send(half)
            eventually(lambda count=number + 1: server._service.held_bytes == count * len(half))
        held = tuple(server._service.peers)
        for _ in range(4):
            with Peer(server) as peer, contextlib.suppress(OSError):
                assert peer.read() is not None
                peer.send(half)
                peer.socket.settimeout(0.5)  # it may be another that is put out
                frame = peer.read()
                assert frame is None or decode_error(frame.body)[0] is ErrorCode.BUSY
        assert server._service.held_bytes <= options["max_held_bytes"]
        stack.close()
        eventually(lambda: server._service.held_bytes == 0)
        assert not any(connection._protocol.buffered for connection in held), (
            "not even until the next garbage collection"
        )
        still_right(server)


def test_who_holds_the_most_of_a_half_message_makes_room_for_the_others() -> None:
    big, small = request(1, bytes(2**16))[:-1], request(1, bytes(2**12))
    with serve(Echo(2**16), max_held_bytes=2**17 + 100, message_timeout=30) as server, contextlib.ExitStack() as stack:
        greedy, modest, newcomer = (stack.enter_context(Peer(server)) for _ in range(3))
        for peer, held in ((greedy, big), (modest, big[:-3000])):
            peer.read()
            total = server._service.held_bytes + len(held)
            peer.send(held)
            eventually(lambda total=total: server._service.held_bytes == total)
        newcomer.read()
        newcomer.send(small[:3500])  # half a message first, and then a whole one
        assert greedy.refused() is ErrorCode.BUSY
        newcomer.send(small[3500:])
        assert content(newcomer.read()) == (FrameType.REPLY, bytes(2**12), 1)
        modest.send(request(1, bytes(2**16))[-3001:])
        assert content(modest.read()) == (FrameType.REPLY, bytes(2**16), 1)


def test_a_request_has_room_in_the_place_of_a_longer_half_message() -> None:
    with serve(Echo(2**16), max_held_bytes=2**16 + 100, message_timeout=30) as server, Peer(server) as greedy:
        greedy.read()
        greedy.send(request(1, bytes(2**16))[:-1])
        eventually(lambda: server._service.held_bytes > 2**16)
        still_right(server)
        with open_client(server.address, [ID]) as client:
            assert client.request(bytes(2**12), timeout=30) == bytes(2**12)
        assert greedy.refused() is ErrorCode.BUSY


def test_expired_requests_never_reach_the_tail() -> None:
    tail = Echo()
    with serve(tail) as server, open_client(server.address, [ID]) as client:
        first = client.submit(b"held", timeout=30)
        late = [client.submit(b"late", timeout=0.03) for _ in range(5)]
        client.ping(timeout=30)  # behind the others: the server has them
        time.sleep(0.03)
        tail.gate.set()
        assert first.result() == b"held"
        for one in late:
            with pytest.raises(ReadTimeout):
                one.result()
        assert client.request(b"next", timeout=30) == b"next"
        assert tail.answered == 2


def test_the_deadline_of_the_server_is_told() -> None:
    tail = Echo()
    with serve(tail) as server, Peer(server) as peer:
        peer.read()
        peer.send(request(1, b"held") + request(2, b"x", deadline_ms=20))
        eventually(lambda: server.stats().pending == 2)
        time.sleep(0.02)
        tail.gate.set()
        one, two = peer.read(), peer.read()
        assert content(one) == (FrameType.REPLY, b"held", 1)
        assert two is not None
        assert (two.request_id, decode_error(two.body)[0]) == (2, ErrorCode.DEADLINE)


def test_requests_of_a_client_that_has_gone_never_reach_the_tail() -> None:
    tail = Echo()
    with serve(tail) as server:
        with Peer(server) as peer:
            peer.read()
            peer.send(b"".join(request(number, b"held") for number in range(1, 6)))
            eventually(lambda: server.stats().pending == 5 and tail.answered == 1)
        eventually(lambda: not server._service.peers)
        tail.gate.set()
        still_right(server)
        assert tail.answered == 2


def test_a_client_that_does_not_read_is_not_read_from_and_then_closed(clock: Clock) -> None:
    class Big(Echo):
        def answer(self, payload: bytes) -> bytes:
            return super().answer(payload).ljust(2**20)

    big = Big()
    with serve(big, window=8, message_timeout=10) as server, Peer(server, receive_buffer=4096) as peer:
        peer.read()
        peer.send(b"".join(request(number, b"x") for number in range(1, 9)))
        [connection] = server._service.peers
        eventually(lambda: connection._paused and server.stats().tails[0].replies == 8)
        for number in range(9, 100):
            peer.send(request(number, b"x"))
        time.sleep(0.1)
        assert big.answered == 8, "the server stopped reading"
        assert connection._transport.get_write_buffer_size() <= 8 * (2**20 + 16)
        clock.advance(server, 0.0)  # what the system has taken since the last look
        clock.advance(server, 9.9)
        assert server._service.peers
        clock.advance(server, 0.2)
        eventually(lambda: not server._service.peers)
        assert server._service.held_bytes == 0
        with open_client(server.address, [ID]) as client:
            assert client.request(b"good", timeout=30).strip() == b"good"


def test_who_leaves_its_answers_and_closes_its_side_holds_no_place() -> None:
    class Big(Echo):
        def answer(self, payload: bytes) -> bytes:
            return super().answer(payload).ljust(2**16)

    limits = {"max_connections": 1, "message_timeout": 60.0, "idle_timeout": 60.0}
    with serve(Big(), **limits) as server, Peer(server, receive_buffer=4096) as peer:
        peer.read()
        for number in range(
            1, 500
        ):  # until the system takes no more of them, but so few that the server goes on reading
            peer.send(request(number, b"x"))
            eventually(lambda count=number: server.stats().tails[0].replies == count)
            if server._service.unread_bytes:
                break
        [connection] = server._service.peers
        assert server._service.unread_bytes
        assert not connection._paused
        peer.socket.shutdown(socket.SHUT_WR)
        eventually(lambda: not server._service.peers)
        assert server._service.unread_bytes == 0
        with open_client(server.address, [ID]) as client:
            assert client.request(b"good", timeout=30).strip() == b"good"


def test_whoever_has_left_takes_no_answer_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    tail = Echo()
    with serve(tail) as server, Peer(server) as gone, Peer(server) as here:
        for peer in (gone, here):
            peer.read()
            peer.send(request(1, b"held"))
            eventually(lambda asked=peer is here: server.stats().pending == 1 + asked)
        connection = next(iter(server._service.peers))
        # As over TLS, where some time passes between the end of what comes in and that of the connection.
        server._loop.call_soon_threadsafe(connection.eof_received)
        eventually(lambda: connection._left)
        tail.gate.set()
        assert content(here.read()) == (FrameType.REPLY, b"held", 1)
        eventually(lambda: server.stats().pending == 0)
        assert server._service.held_bytes == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("half_closed", [False, True])
def test_after_goodbye_the_answers_come_to_who_keeps_its_end_open(half_closed: bool) -> None:
    tail = Echo()
    with serve(tail) as server, Peer(server) as peer:
        peer.read()
        peer.send(request(1, b"held") + request(2, b"x") + serialize(Frame(FrameType.GOODBYE)))
        eventually(lambda: server.stats().pending == 2 and tail.answered == 1)  # it has begun with the first
        if half_closed:
            peer.socket.shutdown(socket.SHUT_WR)
            assert peer.read() is None
            tail.gate.set()
            eventually(lambda: server.stats().tails[0].errors == {"canceled": 1})  # whose turn had not come
        else:
            tail.gate.set()
            answers = [content(peer.read()) for _ in range(2)]
            assert answers == [(FrameType.REPLY, b"held", 1), (FrameType.REPLY, b"x", 2)]
            assert peer.read() is None


def test_an_answer_that_cannot_be_handed_over_is_its_own_only(caplog: pytest.LogCaptureFixture) -> None:
    with serve(Echo()) as server, Peer(server) as one, Peer(server) as other:
        for peer in (one, other):
            peer.read()
        first, second = server._service.peers
        lane = next(iter(server._service._lanes.values()))
        jobs = [Job(lane, b"x", FULL, 0.0, peer, 1, 0.0) for peer in (first, second)]
        lane.entrusted, server._service._pending, server._service.held_bytes = 2, 2, 2
        second._protocol._in_flight.add(1)  # the first one awaits nothing, which is an error
        outcomes = [Outcome(b"a"), Outcome(b"b")]
        server._loop.call_soon_threadsafe(server._service._finish, jobs, outcomes, 0.0)
        assert content(other.read()) == (FrameType.REPLY, b"b", 1)
        assert (lane.entrusted, server.stats().pending, server._service.held_bytes) == (0, 0, 0)
    assert "could not be handed over" in caplog.text


def test_a_cancelled_id_is_forgotten_with_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "prompt", True)  # the tail answers at once
    with serve(Echo()) as server, Peer(server) as peer:
        peer.read()
        peer.send(request(1, b"x") + serialize(Frame(FrameType.CANCEL, b"", 1)))
        assert content(peer.read()) == (FrameType.REPLY, b"x", 1)
        [connection] = server._service.peers
        eventually(lambda: not connection._canceled)


def test_a_slow_reader_is_not_cut_off(clock: Clock) -> None:
    with serve(Echo(2**20), message_timeout=10) as server, Peer(server, receive_buffer=4096) as peer:
        body = random.Random(0).randbytes(2**20)
        peer.read()
        [connection] = server._service.peers
        for number in range(1, 5):
            peer.send(request(number, body))
        eventually(lambda: connection._paused)
        for number in range(1, 5):
            clock.advance(server, 6)
            assert content(peer.read()) == (FrameType.REPLY, body, number)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not say what a peer has not taken")
def test_a_link_so_slow_that_the_system_asks_for_nothing_more_is_not_cut_off(clock: Clock) -> None:
    with serve(Echo(2**24), message_timeout=10) as server, Peer(server, receive_buffer=4096) as peer:
        body = random.Random(0).randbytes(2**24)
        peer.read()
        peer.send(request(1, body))
        [connection] = server._service.peers
        eventually(lambda: connection._paused)
        clock.advance(server, 0.0)
        left = connection._untaken.here
        for _ in range(10):
            below = unsent(connection._transport.get_extra_info("socket").fileno())
            while unsent(connection._transport.get_extra_info("socket").fileno()) == below:
                peer.parser.feed(peer.socket.recv(2048))
            clock.advance(server, 6)
        assert connection._untaken.here == left
        assert content(peer.read()) == (FrameType.REPLY, body, 1)


def test_reading_goes_on_counts_although_more_answers_come() -> None:
    with serve(Echo(2**23), message_timeout=30) as server, Peer(server, receive_buffer=4096) as peer:
        peer.read()
        peer.send(request(1, bytes(2**23)))
        [connection] = server._service.peers
        eventually(lambda: connection._paused)
        eventually(lambda: connection._untaken.here == connection._transport.get_write_buffer_size())
        before = connection._untaken.here
        connection._protocol._in_flight.add(2)
        job = Job(Lane(Echo(), 1), b"", FULL, 0.0, connection, 2, 0.0)
        server._loop.call_soon_threadsafe(connection.deliver, job, Outcome(bytes(2**20)))
        server._loop.call_soon_threadsafe(connection.settle)
        eventually(lambda: connection._protocol.in_flight == 0)
        eventually(lambda: connection._untaken.here != before)  # the loop settles a moment later
        assert connection._untaken.here == before + 2**20 + 16, "what came on top is no proof that nothing was read"


def test_unread_answers_cannot_fill_the_server() -> None:
    class Big(Echo):
        def answer(self, payload: bytes) -> bytes:
            return super().answer(payload).ljust(2**20)

    # Two clients read nothing; a trickle would keep both for ever. The greedier one goes, the other one stays.
    limits = {"window": 16, "max_held_bytes": 12 * 2**20, "message_timeout": 60}
    with serve(Big(), **limits) as server, contextlib.ExitStack() as stack:
        modest, greedy = (stack.enter_context(Peer(server, receive_buffer=4096)) for _ in range(2))
        for peer, count in ((modest, 6), (greedy, 16)):
            peer.read()
            peer.send(b"".join(request(number, b"x") for number in range(1, count + 1)))
        eventually(lambda: len(server._service.peers) == 1)
        assert 0 < server._service.unread_bytes <= 12 * 2**20
        with open_client(server.address, [ID]) as client:
            assert client.request(b"good", timeout=30).strip() == b"good"
        for number in range(1, 7):
            assert content(modest.read()) == (FrameType.REPLY, b"x".ljust(2**20), number)
        stack.close()
        eventually(lambda: server._service.unread_bytes == 0)


def test_an_answer_longer_than_all_that_may_be_held_is_refused_with_words() -> None:
    class Big(Echo):
        def answer(self, payload: bytes) -> bytes:
            return bytes(2**20) if payload == b"big" else payload

    with serve(Big(), max_held_bytes=2**20) as server, open_client(server.address, [ID]) as client:
        with pytest.raises(RemoteError, match="max_held_bytes"):
            client.request(b"big", timeout=30)
        assert client.request(b"on", timeout=30) == b"on"
