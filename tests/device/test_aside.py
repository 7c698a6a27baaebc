"""A remote is closed by a handler of signals, and let go by the garbage collector, whatever lock they interrupt."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from compoff.device import aside as module
from compoff.device.aside import aside
from compoff.device.connecting import connect
from compoff.edge.server import serve
from tests.device.stand_in import StandIn, Tail, after
from tests.edge.peers import eventually

if TYPE_CHECKING:
    import pytest


def test_it_is_done_and_waited_for_so_long() -> None:
    over, began = threading.Event(), time.monotonic()
    aside(lambda: over.wait(60) and None, 0.05)
    assert time.monotonic() - began < 20
    over.set()
    done: list[str] = []
    aside(lambda: done.append(threading.current_thread().name), 30.0)
    assert done == ["compoff-close"]


def test_where_no_thread_is_left_it_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module.threading, "Thread", Full)
    done: list[str] = []
    aside(lambda: done.append(threading.current_thread().name), 0.0)
    assert done == ["MainThread"]


def test_a_handler_that_interrupts_a_call_closes_the_remote() -> None:
    with serve(Tail()) as server:
        remote = connect(StandIn(), server.address)  # type: ignore[arg-type]
        remote(after(0))
        client = remote._link.current
        assert client is not None
        with client._exchange._lock:  # as the call does that is interrupted
            remote.close()
        eventually(lambda: client.closed)
        eventually(lambda: not server.stats().connections)


def test_a_collection_that_interrupts_the_link_lets_go_of_the_remote() -> None:
    with serve(Tail()) as server:
        remote = connect(StandIn(), server.address)  # type: ignore[arg-type]
        remote(after(0))
        client, began = remote._link.current, time.monotonic()
        assert client is not None
        with client._exchange._lock, remote._link._changed:
            del remote
            assert time.monotonic() - began < 20
        eventually(lambda: not server.stats().connections)


PROGRAM = """
import compoff
from compoff.device.connecting import connect
from compoff.edge.server import serve
from tests.device.stand_in import StandIn, Tail, after
server = serve(Tail())
remote = connect(StandIn(), server.address)
print(remote(after(0)).tolist())
"""


def test_a_program_that_ends_without_closing_says_nothing() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert (ran.stdout, ran.stderr) == ("[[0.0, 1.0, 2.0]]\n", "")
