"""In a forked child remotes are refused at once, undisturbed in the parent; heads in onnxruntime run and are let go."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from typing import Any

import pytest

from compoff.device import local_runs
from compoff.device.connecting import connect, connect_async
from compoff.edge.server import serve
from tests.device.stand_in import StandIn, Tail, after
from tests.golden_head import GOLDEN, golden_head, golden_payloads
from tests.wire.forking import in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

ANSWER = [[0, 1, 2]]
POLICIES: list[dict[str, Any]] = [{}, {"on_failure": "local", "local": len}, {"on_failure": "hedge", "local": len}]


@pytest.mark.parametrize("policy", POLICIES, ids=["raise", "local", "hedge"])
def test_a_remote_is_its_process_s_own(policy: dict[str, Any]) -> None:
    with serve(Tail()) as server:
        remote = connect(StandIn(), server.address, heartbeat=0.1, **policy)  # type: ignore[arg-type]
        link = remote._link
        with link._changed:  # as a thread that is not in the child may hold it
            assert "this Remote was made in another process; connect again after" in in_child(lambda: remote(after(0)))
            assert in_child(remote.close) == "None"

        def forget() -> None:
            nonlocal remote
            del remote
            gc.collect()

        assert in_child(forget) == "None"
        for _ in range(3):
            assert remote(after(0)).tolist() == ANSWER
        assert remote.stats.connections == 1
        remote.close()


def test_an_async_remote_is_its_process_s_own() -> None:
    with serve(Tail()) as server:
        loop = asyncio.new_event_loop()
        remote = loop.run_until_complete(connect_async(StandIn(), server.address))  # type: ignore[arg-type]
        told = "this AsyncRemote was made in another process; connect again after"
        assert told in in_child(lambda: loop.run_until_complete(remote(after(0))))
        assert told in in_child(lambda: asyncio.new_event_loop().run_until_complete(remote(after(0))))
        assert in_child(lambda: loop.run_until_complete(remote.close())) == "None"
        for _ in range(3):
            assert loop.run_until_complete(remote(after(0))).tolist() == ANSWER
        assert remote.stats.connections == 1
        loop.run_until_complete(remote.close())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.mark.parametrize("threads", [1, 2, None])
def test_a_head_in_onnxruntime_runs_and_ends_in_a_child(threads: int | None) -> None:
    head = golden_head().compile("onnx", threads=threads)

    def forget() -> None:
        nonlocal head
        del head
        gc.collect()

    assert in_child(lambda: golden_payloads(head) == GOLDEN) == "True"
    assert in_child(forget) == "None"
    assert golden_payloads(head) == GOLDEN


def test_statistics_are_the_parent_s() -> None:
    with serve(Tail()) as server, connect(StandIn(), server.address) as remote:  # type: ignore[arg-type]
        with remote._tally._lock:  # as a thread that is not in the child may hold it
            assert "this Remote was made in another process" in in_child(lambda: remote.stats)
        assert remote.stats.connections == 1


def test_a_child_does_not_wait_for_a_local_run_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_runs, "_LONGEST_END", 60.0)
    began, over = threading.Event(), threading.Event()

    def whole(x: Any) -> bool:
        began.set()
        return over.wait(60)

    with serve(Tail()) as server:
        remote = connect(StandIn(), server.address, on_failure="hedge", local=whole)  # type: ignore[arg-type]
        server.close()
        call = threading.Thread(target=lambda: remote(after(0), timeout=60))
        call.start()
        assert began.wait(30)

        def end() -> float:
            start = time.monotonic()
            weakref.finalize._exitfunc()  # type: ignore[attr-defined]
            return time.monotonic() - start

        assert float(in_child(end)) < 20
        over.set()
        call.join()
        remote.close()
