"""Waiting on a stream: awake for an answer that comes soon, asleep for one that does not."""

from __future__ import annotations

import errno
import os
import runpy
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from compoff.errors import ConnectionLost
from compoff.wire import moved, sockets
from compoff.wire.sockets import Stream, connect_error, look_up, open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

MINUTE = 60.0


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stream, socket.socket]]:
    """A stream of a machine with several cores, and the other end."""
    monkeypatch.setattr(sockets, "_SEVERAL_CORES", True)
    near, far = socket.socketpair()
    stream = Stream(near)
    yield stream, far
    stream.close()
    far.close()


def arrive(stream: Stream, far: socket.socket) -> None:
    """Something that is there already when it is waited for."""
    far.send(b"x")
    assert stream.wait(time.monotonic() + MINUTE, read=True)
    assert stream.receive() == b"x"


def processor_seconds(stream: Stream, seconds: float) -> float:
    """What it costs to wait in vain."""
    began = time.thread_time()
    assert not stream.wait(time.monotonic() + seconds, read=True)
    return time.thread_time() - began


def test_what_arrives_while_awake_is_seen(pair: tuple[Stream, socket.socket]) -> None:
    for _ in range(3):
        arrive(*pair)


def test_a_long_wait_is_slept_through(pair: tuple[Stream, socket.socket]) -> None:
    arrive(*pair)
    assert processor_seconds(pair[0], 0.2) < 0.02


def test_what_arrives_while_asleep_wakes(pair: tuple[Stream, socket.socket]) -> None:
    stream, far = pair
    arrive(stream, far)
    timer = threading.Timer(0.05, far.send, (b"late",))
    timer.start()
    assert stream.wait(time.monotonic() + MINUTE, read=True)
    timer.join()
    assert stream.receive() == b"late"


def test_a_look_in_between_changes_nothing(pair: tuple[Stream, socket.socket]) -> None:
    stream, far = pair
    assert not stream.wait(0.0, read=True)
    arrive(stream, far)
    assert not stream.wait(0.0, read=True)
    arrive(stream, far)


@pytest.mark.parametrize("deadline", [0.0, 2e-5])
def test_a_deadline_sooner_than_soon_holds(pair: tuple[Stream, socket.socket], deadline: float) -> None:
    arrive(*pair)
    began = time.monotonic()
    assert not pair[0].wait(began + deadline, read=True)
    assert time.monotonic() - began < 10


def test_the_end_of_the_stream_is_an_arrival(pair: tuple[Stream, socket.socket]) -> None:
    stream, far = pair
    arrive(stream, far)
    far.close()
    assert stream.wait(time.monotonic() + MINUTE, read=True)
    assert stream.receive() == b""


@pytest.mark.parametrize("lacking", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_what_this_side_has_run_out_of_is_not_blamed_on_the_server(lacking: int) -> None:
    found = str(connect_error("edge:7878", OSError(lacking, os.strerror(lacking))))
    assert f"edge:7878: {os.strerror(lacking)} on this side; raise the limit" in found
    assert "start a server" not in found


def test_numbers_that_have_no_words_are_told_in_those_of_the_error() -> None:
    assert "edge:7878: it was refused; start" in str(connect_error("edge:7878", OSError(10061, "it was refused")))
    refused = OSError(errno.ECONNREFUSED, "words of asyncio")
    assert f"edge:7878: {os.strerror(errno.ECONNREFUSED)}; start" in str(connect_error("edge:7878", refused))


def test_a_host_is_not_looked_up_where_there_can_be_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    found: list[object] = []
    look_up("localhost", 7878, found.append)
    assert isinstance(found[0], OSError)
    with pytest.raises(ConnectionLost, match=r"on this side; raise the limit"):
        open_stream("localhost:7878", tls=None, deadline=time.monotonic() + MINUTE)


def test_a_system_that_does_not_say_what_was_acknowledged_counts_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "termios", None)
    assert runpy.run_path(moved.__file__)["unsent"](0) == 0
