"""What becomes of a call's request that is refused, or whose connection breaks or is closed; both remotes."""

from __future__ import annotations

import contextlib
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from compoff.device.edge import Asked
from compoff.device.local_runs import LocalRuns
from compoff.device.timing import Patience
from compoff.edge.server import serve
from compoff.errors import AuthenticationError, ConnectionLost, ConnectTimeout, ServerBusy
from compoff.wire.async_client import AsyncClient
from compoff.wire.client import Client
from tests.device.stand_in import HELD, Tail, after
from tests.device.test_fallback import EDGE, LOCAL, Async, Blocking, Whole
from tests.edge.peers import eventually


@pytest.fixture(params=[Blocking, Async], ids=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _time_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is waited for, however late this machine is."""
    for name in ("link.FIRST_ATTEMPT", "async_link.FIRST_ATTEMPT", "connecting._FIRST_WAIT"):
        monkeypatch.setattr(f"compoff.device.{name}", 30.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge is waited for, however late this machine is."""
    monkeypatch.setattr(Patience, "seconds", lambda self, timeout: timeout / 2)


@pytest.mark.parametrize("policy", ["raise", "local", "hedge"])
@pytest.mark.usefixtures("patient")
def test_a_call_beyond_the_window_is_told_and_its_payload_not_counted(
    kind: Any, caplog: pytest.LogCaptureFixture, policy: str
) -> None:
    tail = Tail()
    with serve(tail, window=1) as server, contextlib.ExitStack() as at_last:
        remote = kind(server.address, on_failure=policy, local=None if policy == "raise" else Whole())
        at_last.callback(remote.close)
        assert [remote(after(0)) for _ in range(2)] == [EDGE] * 2
        pool = at_last.enter_context(ThreadPoolExecutor(1))
        slow = pool.submit(remote, HELD, timeout=60.0)
        eventually(lambda: remote.stats.payload_bytes == 3)
        with pytest.raises(ServerBusy) if policy == "raise" else contextlib.nullcontext():
            assert remote(after(0), timeout=60.0) == LOCAL
        tail.gate.set()
        assert slow.result(60) == EDGE
        assert remote.stats.payload_bytes == 3
    told = [record.message for record in caplog.records if record.name == "compoff.connect"]
    assert ["no room" in line for line in told] == [True] * (policy != "raise")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("policy", ["raise", "local", "hedge"])
def test_a_remote_that_is_closed_under_a_call_raises_no_alarm(
    kind: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    caplog.set_level(logging.INFO, "compoff.connect")
    tail = Tail()
    with serve(tail) as server, ThreadPoolExecutor(1) as pool:
        remote = kind(server.address, on_failure=policy, local=None if policy == "raise" else Whole())
        remote(after(0))
        call = pool.submit(remote, HELD, timeout=60.0)
        eventually(lambda: remote.stats.payload_bytes == 2)
        monkeypatch.setattr(LocalRuns, "close", lambda _: None)  # as where that comes a moment later
        remote.close()
        with pytest.raises(ConnectionLost):
            call.result(30)
        tail.gate.set()
    assert not [record.message for record in caplog.records if record.name == "compoff.connect"]


def test_a_whole_model_that_raises_is_told_while_the_edge_answers(
    kind: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        tail.gate.set()
        raise ValueError("no such weights")

    monkeypatch.setattr(Patience, "seconds", lambda self, timeout: 0.01)
    tail = Tail()
    with serve(tail) as server:
        remote = kind(server.address, on_failure="hedge", local=broken)
        for word in (HELD, after(10), after(10)):
            assert remote(word) == EDGE
        assert remote.stats.hedged
        remote.close()
    (told,) = [record.message for record in caplog.records if record.name == "compoff.connect"]
    assert "raises, and cannot stand in: ValueError: no such weights" in told


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_fresh_connection_that_breaks_is_replaced_as_well(kind: Any, policy: str) -> None:
    with serve(Tail()) as server, contextlib.ExitStack() as at_last:
        remote = kind(server.address, on_failure=policy, local=Whole(), heartbeat=30.0)
        at_last.callback(remote.close)
        assert [remote(after(0)) for _ in range(3)] == [EDGE] * 3
        broken = ConnectionLost("it broke")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Client, "submit", Mock(side_effect=broken))
            patch.setattr(AsyncClient, "ask", Mock(side_effect=broken))
            assert remote(after(0)) == LOCAL
        eventually(lambda: remote.stats.connections == 3)
        eventually(lambda: remote(after(0)) == EDGE)


def test_only_time_mends_that_there_is_no_connection_yet() -> None:
    edge: Any = SimpleNamespace(link=None)
    waits, late = (Asked(edge, Mock(deadline=deadline), b"") for deadline in (math.inf, 0.0))
    assert not waits.failed(ConnectTimeout("nobody answers"))
    assert waits.failed(AuthenticationError("the token is wrong")), "waiting does not mend that"
    with pytest.raises(AuthenticationError, match="the token is wrong"):
        waits.settle()
    assert late.failed(ConnectTimeout("nobody answers"))
