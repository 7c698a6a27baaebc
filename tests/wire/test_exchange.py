"""Interrupts at every moment of a request: no thread may be left waiting for one that has gone."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from compoff.edge.server import serve
from compoff.errors import ConnectionLost, ReadTimeout
from compoff.wire import exchange, sockets
from compoff.wire.client import Client, PendingReply, open_client
from compoff.wire.frames import Frame, FrameParser, FrameType, serialize
from compoff.wire.messages import Route, Welcome
from tests.edge.peers import eventually
from tests.wire.scripted import read_frame, scripted_server
from tests.wire.test_client import ID, Reverse

if TYPE_CHECKING:
    import socket
    import types
    from collections.abc import Callable, Iterator

    from compoff.edge.server import Server

# The garbage collector frees the descriptor where nobody knows whether a thread still writes to it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
_FILES = {exchange.__file__, sockets.__file__}


@pytest.fixture
def tail() -> Reverse:
    return Reverse()


@pytest.fixture
def server(tail: Reverse) -> Iterator[Server]:
    with serve(tail, workers=4) as server:
        yield server


def interrupted(action: Callable[[], object], moment: int) -> bool:
    """Interrupt an action where Python looks for signals: as a function starts, and as a call into C comes back.

    Whether it did: the action has fewer such moments otherwise.
    """
    left = moment

    def look(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and frame.f_code.co_filename in _FILES:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        action()
    except KeyboardInterrupt:
        return True
    except ConnectionLost:  # the connection is over, and before Python looked for signals once more
        return left < 0
    finally:
        sys.setprofile(before)
    return left < 0


def ends_soon(client: Client) -> None:
    """The answer comes, or the news that there will be none: not the deadline."""
    start = time.monotonic()
    try:
        assert client.request(b"next", timeout=30) == b"txen"
    except ConnectionLost:
        assert client.closed
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("body", [b"word", b"0010"], ids=["an answer at once", "an answer to wait for"])
def test_an_interrupted_request_costs_the_next_no_more_than_the_connection(server: Server, body: bytes) -> None:
    moment, going_on = 0, True
    while going_on:
        client = open_client(server.address, [ID])
        going_on = interrupted(lambda client=client: client.request(body, timeout=30), moment)
        ends_soon(client)
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 10, moment
        moment += 1
    assert moment > 10


@pytest.mark.parametrize(
    ("begun", "least"),
    [(lambda client: client.submit(b"0030", timeout=30).cancel, 5), (lambda client: client.look, 3)],
    ids=["a cancel", "a look"],
)
def test_an_interruption_costs_the_next_request_no_more_than_the_connection(
    server: Server, begun: Callable[[Client], Callable[[], object]], least: int
) -> None:
    moment, going_on = 0, True
    while going_on:
        with open_client(server.address, [ID]) as client:
            going_on = interrupted(begun(client), moment)
            ends_soon(client)
            moment += 1
    assert moment > least


def test_a_thread_that_waits_beside_an_interrupted_one_is_woken(server: Server) -> None:
    moment, going_on = 0, True
    while going_on:
        with open_client(server.address, [ID]) as client, ThreadPoolExecutor(1) as pool:
            leads = client.submit(b"0040", timeout=30)
            follows = client.submit(b"0060", timeout=30)

            def follow(client: Client = client, follows: PendingReply = follows) -> float:
                time.sleep(0.01)
                start = time.monotonic()
                try:
                    assert follows.result() == b"0600"
                except ConnectionLost:
                    assert client.closed
                return time.monotonic() - start

            result = pool.submit(follow)
            going_on = interrupted(leads.result, moment)
            assert result.result(60) < 10, moment
            moment += 1
    assert moment > 5


@pytest.mark.parametrize("answers", [True, False], ids=["both are answered", "the server hangs up"])
def test_an_interruption_while_what_came_is_handed_out_keeps_no_other_waiting(answers: bool) -> None:
    def script(connection: socket.socket, parser: FrameParser) -> None:
        read_frame(connection, parser)
        connection.sendall(serialize(Frame(FrameType.WELCOME, Welcome(4, (Route(0, 1000),)).encode())))
        asked = [read_frame(connection, parser) for _ in range(2)]
        if answers:
            connection.sendall(b"".join(serialize(Frame(FrameType.REPLY, b"x", one.request_id)) for one in asked))
            connection.recv(100)

    moment, going_on = 0, True
    with scripted_server(script) as address:
        while going_on:
            with open_client(address, [ID]) as client:
                leads, follows = client.submit(b"leads", timeout=5), client.submit(b"follows", timeout=5)
                going_on = interrupted(leads.result, moment)
                try:
                    assert follows.result() == b"x", moment
                except ConnectionLost:
                    assert client.closed
                moment += 1
    assert moment > 5


def test_a_client_closes_at_once_where_a_thread_that_read_has_gone(server: Server) -> None:
    client = open_client(server.address, [ID])
    assert client._exchange._take(exchange._Lead()), "an interrupt took it away between two steps"
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 10


def test_the_descriptor_is_free_as_soon_as_no_thread_waits_on_it(server: Server, tail: Reverse) -> None:
    client = open_client(server.address, [ID])
    pending = client.submit(b"held", timeout=30)
    reader = threading.Thread(target=lambda: pending.wait(30))
    reader.start()
    eventually(lambda: not client._exchange._lead.over)
    client.close()
    reader.join(30)
    tail.gate.set()
    assert client._exchange._stream._socket.fileno() == -1


def test_nothing_is_written_into_the_frame_of_another_thread(server: Server) -> None:
    with open_client(server.address, [ID]) as client:
        sent = client._exchange._stream._sent
        with client._exchange._send_lock:
            pending = client.submit(b"late", timeout=0.01)
        assert client._exchange._stream._sent == sent
        with pytest.raises(ReadTimeout):
            pending.result()
        assert client.request(b"next", timeout=30) == b"txen"


def test_a_thread_that_came_during_a_look_reads_as_soon_as_it_is_over(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_LOOK", 60.0)
    with open_client(server.address, [ID]) as client:
        pending, stream = client.submit(b"word", timeout=30), client._exchange._stream
        looking, seen, wait = threading.Event(), threading.Event(), stream.wait

        def look(until: float, **ways: bool) -> bool:
            if until > 0.0:
                return wait(until, **ways)
            looking.set()
            seen.wait(30)
            return False

        monkeypatch.setattr(stream, "wait", look)
        threads = [threading.Thread(target=action) for action in (client.look, pending.result)]
        threads[0].start()
        assert looking.wait(30)
        threads[1].start()
        eventually(lambda: pending._slot.event is not None)
        seen.set()
        for thread in threads:
            thread.join(10)
        assert pending._slot.body == b"drow"
