"""The order in which several server processes start; what they do then is in test_run.py."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compoff.artifact import write_folder
from compoff.errors import WireError
from compoff.operations import processes
from compoff.operations.processes import Processes
from compoff.operations.settings import Relay, Settings, TailPlace
from tests.small_artifacts import MANIFEST, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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

    monkeypatch.setattr(processes, "_Member", Member)
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


def test_a_process_that_cannot_serve_when_it_starts_again_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def front(settings: Settings) -> Settings:  # needs no torch, so it starts quickly
        return replace(settings, relay=Relay("127.0.0.1:1", "token" * 8))

    settings = Settings((TailPlace(tmp_path / "gone"),), "127.0.0.1:0")
    caplog.set_level(logging.INFO, "compoff.serve")
    member = processes._Member("0", front, settings, "127.0.0.1:0", ("text", "info"))
    try:
        deadline = time.monotonic() + 60
        while "died" not in caplog.text and time.monotonic() < deadline:
            member.revive(settings)
            time.sleep(0.05)
    finally:
        member.end(10.0)
    assert not member.listening
    (told,) = [record.getMessage() for record in caplog.records if "cannot serve" in record.getMessage()]
    assert told.startswith(f"server process 0 cannot serve: '{tmp_path / 'gone'}' is not a folder")


def within(seconds: float, condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[processes._Member]:
    """A front, which needs no torch and so starts quickly; whoever holds its tails is not there."""
    write_folder(tmp_path / "tail", replace(MANIFEST, kind="tail", factory=""), TABLES, {})
    settings = Settings((TailPlace(tmp_path / "tail"),), "127.0.0.1:0")

    def role(settings: Settings) -> Settings:
        return replace(settings, relay=Relay("127.0.0.1:1", "token" * 8))

    member = processes._Member("0", role, settings, "127.0.0.1:0", ("text", "warning"))
    member.settings = settings  # type: ignore[attr-defined]
    try:
        member.wait_until_ready()
        yield member
    finally:
        member._process.kill()
        member.end(10.0)


def test_a_process_that_hangs_is_not_asked_again_and_again_and_started_anew(
    front: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert front.figures(front.question(), time.monotonic() + 20)["ready"]
    # An answer that came too late is one all the same: the next question is asked, and nobody is killed.
    late = front.question()
    within(20, lambda: front._pipe.poll(0))
    front.revive(front.settings)
    assert front.question() == late + 1
    assert front.figures(late + 1, time.monotonic() + 20) is not None
    first = front._process.pid
    os.kill(first, signal.SIGSTOP)
    asked = {front.question() for _ in range(2000)}  # far more than its pipe holds
    assert len(asked) == 1
    assert front.figures(*asked, time.monotonic()) is None
    front.revive(front.settings)
    assert front._process.pid == first
    monkeypatch.setattr(processes, "_SILENT_SECONDS", 0.0)
    deadline = time.monotonic() + 60
    while front._process.pid == first and time.monotonic() < deadline:
        front.revive(front.settings)
        time.sleep(0.05)
    assert "server process 0 has not answered for 0 s; killing it" in caplog.text
    monkeypatch.setattr(processes, "_SILENT_SECONDS", 60.0)
    front.wait_until_ready()
    assert front.figures(front.question(), time.monotonic() + 20) is not None
    assert len(front.counted) == 2, "what the first one had counted stays in the sum"


def test_a_reload_says_whether_the_tails_were_read(front: Any, tmp_path: Path) -> None:
    def read(settings: Settings) -> bool:
        which = front.reload(settings)
        deadline = time.monotonic() + 20
        while (found := front.outcome(which)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found is not None
        return found

    asked = front.question()
    front.reload(front.settings)
    assert front.question() == asked, "the same, for it is not answered yet"
    assert read(front.settings)
    assert not read(replace(front.settings, tails=(TailPlace(tmp_path / "gone"),)))
    front._process.kill()
    front._process.join()
    front.revive(front.settings)
    assert front.outcome((front._starts, 99)) is False


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
        processes.threading.Lock(),
        [  # type: ignore[assignment]
            Member(figures(150), figures(150), []),
            Member(None, figures(100), [processes.counted_only(figures(50))]),
        ],
    )
    found = server.figures()
    assert (found["tails"][0]["requests"], found["processes"], found["ready"]) == (300, 1, False)
    assert (found["connections"], found["pending"], found["tails"][0]["waiting"]) == (4, 2, 6)
