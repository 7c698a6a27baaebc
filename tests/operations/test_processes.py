"""The order in which several server processes start; what they do then is in test_run.py."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compoff.errors import WireError
from compoff.operations import processes
from compoff.operations.processes import Processes
from compoff.operations.settings import Relay, Settings, TailPlace


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

        def wait_until_ready(self) -> list[str]:
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
