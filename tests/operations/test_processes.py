"""The order in which several server processes start; what they do then is in test_run.py."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from compoff.errors import WireError
from compoff.operations import processes
from compoff.operations.processes import Processes
from compoff.operations.settings import Settings, TailPlace


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
