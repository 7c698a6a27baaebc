"""The order in which several server processes start; what they do then is in test_run.py."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compoff.errors import WireError
from compoff.operations import processes
from compoff.operations.figures import counted_only
from compoff.operations.processes import Processes
from compoff.operations.settings import Settings, TailPlace

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("counts", "order"),
    [
        (
            {"fronts": 2},
            ["start with the tails", "with the tails is ready", "start 0", "start 1", "0 is ready", "1 is ready"],
        ),
        ({"processes": 2}, ["start 0", "start 1", "0 is ready", "1 is ready"]),
    ],
)
def test_nobody_listens_before_somebody_can_answer(
    counts: dict[str, Any], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Member:
        def __init__(self, number: str, *_: Any) -> None:
            self.number = number
            seen.append(f"start {number}")

        def wait_until_ready(self, stopping: Callable[[], bool]) -> list[str]:
            assert not stopping()
            seen.append(f"{self.number} is ready")
            return [self.number]

        def ask(self, what: str) -> None:
            del what

        def end(self, seconds: float) -> None:
            del seconds

    monkeypatch.setattr(processes, "Member", Member)
    settings = Settings((TailPlace(Path("export")),), "127.0.0.1:0", **counts)
    server = Processes(settings, ("text", "info"))
    server.stop()
    assert seen == order
    assert server.served == [order[1].removesuffix(" is ready")] if "fronts" in counts else ["0"]


def test_a_port_that_others_share_among_themselves_is_not_shared_with_them() -> None:
    with socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        address = f"127.0.0.1:{theirs.getsockname()[1]}"
        with pytest.raises(WireError, match=f"cannot listen on {address}: Address already in use"):
            Processes(Settings((TailPlace(Path("export")),), address, processes=2), ("text", "info"))


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
@pytest.mark.parametrize("counts", [{"processes": 2}, {"fronts": 1}])
def test_what_cannot_be_a_hosts_name_is_one_line(host: str, counts: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=f"cannot listen on {host}:7878: .*label"):
        Processes(Settings((TailPlace(Path("export")),), f"{host}:7878", **counts), ("text", "info"))


def test_a_start_ends_when_the_server_shall_stop(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(WireError, match="was stopped while it started"):
        Processes(
            Settings((TailPlace(tmp_path),), "127.0.0.1:0", processes=2), ("text", "error"), stopping=lambda: True
        )
    assert time.monotonic() - began < 20


def figures(requests: int, **fields: Any) -> Any:
    counts = {"requests": requests, "replies": requests, "errors": {}, "bytes_in": 0, "bytes_out": 0, "waiting": 3}
    rest = {"running": 0, "busy_seconds": 0.0, "latency_counts": [], "latency_seconds": 0.0, "batch_sizes": {}}
    tail = {"artifact": "a", "model": "Net", "split": "input", **counts, **rest, "live": None}
    held = {"connections": 2, "accepted": 2, "refused": 0, "pending": 1, "held_bytes": 0, "unread_bytes": 0}
    return {"uptime": 1.0, "processes": 1, "ready": True, **held, "tails": [tail], **fields}


def test_one_that_misses_its_turn_does_not_take_its_counts_out_of_the_sum() -> None:
    class Member:
        listening = True

        def __init__(self, answer: Any, last: Any, past: list[Any]) -> None:
            self.answer, self.counted = answer, [*past, last]

        def question(self) -> int:
            return 1

        def figures(self, number: int, deadline: float) -> Any:
            return self.answer

    server = object.__new__(Processes)
    server._lock, server._members = (
        threading.Lock(),
        [  # type: ignore[assignment]
            Member(figures(150), figures(150), []),
            Member(None, figures(100), [counted_only(figures(50))]),
        ],
    )
    found = server.figures()
    assert (found["tails"][0]["requests"], found["processes"], found["ready"]) == (300, 1, False)
    assert (found["connections"], found["pending"], found["tails"][0]["waiting"]) == (4, 2, 6)
