"""One server process at work: what a reload takes over, each by itself, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from compoff.artifact import write_folder
from compoff.operations import worker
from compoff.operations.settings import Relay, Settings, TailPlace
from compoff.operations.worker import Worker
from tests.small_artifacts import MANIFEST, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a front, which needs no torch; whoever holds its tails is not there."""
    write_folder(tmp_path / "tail", replace(MANIFEST, kind="tail", factory=""), TABLES, {})
    (tmp_path / "tokens").write_text("old")
    relay = Relay("127.0.0.1:1", "token" * 8)
    return Settings((TailPlace(tmp_path / "tail"),), "127.0.0.1:0", tmp_path / "tokens", relay=relay)


@pytest.fixture
def front(settings: Settings) -> Iterator[Worker]:
    started = Worker(settings)
    yield started
    started.stop()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_without_memory_for_a_second_copy_the_tails_stay_and_all_else_is_read(
    front: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def load(settings: Settings) -> Any:
        raise error

    before = front.served
    (settings.tails[0].folder.parent / "tokens").write_text("new")
    monkeypatch.setattr(worker, "_load", load)
    assert front.reload(settings) is False
    assert "the tails stay as they were" in caplog.text
    assert type(error).__name__ in caplog.text
    assert front.served == before
    assert front._server._service.token == ("new",)
    monkeypatch.undo()
    assert front.reload(settings) is True
