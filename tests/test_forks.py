"""What a forked child finds of locks and descriptors that threads of its parent held."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from compoff.errors import BackendError
from compoff.forks import OwnLock, give_up
from compoff.onnx_session import OnnxSession
from compoff.programs import TorchProgram
from tests.wire.forking import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@contextlib.contextmanager
def held_by_a_thread(lock: OwnLock) -> Iterator[None]:
    """Another thread holds the lock while the block runs."""
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            over.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    yield
    over.set()
    thread.join()


def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    lock = OwnLock()

    def take() -> str:
        with lock:
            return "taken"

    with held_by_a_thread(lock):
        assert in_child(take) == "'taken'"
    assert take() == "taken"


def in_childs_child(work: Callable[[], object]) -> str:
    """As `in_child`, in a child: what would tell there of a hang is a thread that waits for itself when forked."""
    faulthandler.cancel_dump_traceback_later()
    return in_child(work)


def test_a_lock_is_free_in_a_childs_child_too() -> None:
    lock = OwnLock()

    def fork_while_held(generations: int) -> str:
        def take() -> str:
            taken = lock._lock.acquire(timeout=20)
            if not taken or generations == 1:
                return str(taken)
            lock._lock.release()
            return fork_while_held(generations - 1)

        with held_by_a_thread(lock):
            told = in_childs_child(take)
        return told.strip("'\"")

    assert fork_while_held(3) == "True"


def test_a_program_is_loaded_in_the_child_while_a_thread_of_the_parent_loads_others() -> None:
    program = TorchProgram(torch.export.export(torch.nn.ReLU(), (torch.zeros(3),)))
    data, over = program.to_bytes(), threading.Event()

    def load() -> None:
        while not over.is_set():
            TorchProgram.load(data, "another")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(3):
            time.sleep(0.05)
            ran = in_child(lambda: TorchProgram.load(data, "one").run([np.array([-1, 0, 2], np.float32)])[0].tolist())
            assert ran == "[0.0, 0.0, 2.0]"
    finally:
        over.set()
        thread.join()


def test_a_session_that_another_thread_was_in_says_so_in_the_child() -> None:
    import onnx.helper

    def value(name: str) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch"])

    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "graph", [value("x")], [value("y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    session = OnnxSession(model.SerializeToString(), "relu.onnx", threads=2)
    x = np.array([-1, 2], np.float32)
    session.run([x])  # and is out of it again
    assert in_child(lambda: session.run([x])[0].tolist()) == "[0.0, 2.0]"
    session._running.append(None)  # as while a thread is in it
    told = in_child(lambda: session.run([x]))
    assert told.startswith(
        f"{BackendError.__name__}: relu.onnx was running in another thread when this process was forked"
    )
    session._running.pop()

    def fork_again() -> str:
        session._running.append(None)
        told = in_childs_child(lambda: session.run([x]))
        session._running.pop()
        return told

    assert "was running in another thread when this process was forked" in in_child(fork_again)
    assert in_child(lambda: session.run([x])[0].tolist()) == "[0.0, 2.0]"


@pytest.mark.parametrize("full", [False, True], ids=["room", "no descriptor left"])
def test_a_connection_is_given_up_though_no_descriptor_is_left(full: bool) -> None:
    resource = pytest.importorskip("resource")
    ours, theirs = socket.socketpair()

    def give() -> str:
        if full:
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (ours.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            )
            kept = []
            try:
                while True:
                    kept.append(os.dup(0))
            except OSError:
                pass
        give_up(theirs.fileno())
        return str(Path(f"/proc/self/fd/{theirs.fileno()}").readlink())

    if full and theirs.fileno() > ours.fileno():
        ours, theirs = theirs, ours
    assert in_child(give) == f"'{os.devnull}'"
    ours.close()
    theirs.close()
    give_up(-1)
