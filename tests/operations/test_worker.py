"""One server process at work: what a reload takes over, each by itself, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from compoff.artifact import write_folder
from compoff.errors import ConfigError
from compoff.operations import worker
from compoff.operations.configuration import read_configuration
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


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("tails:\n  - tail\n  - nope\n", 3, "nope' is not a folder"),
        ("tails: [tail]\ntoken_file: /\n", 2, "the token file '/' cannot be read"),
        ("tails: [tail]\nlimits:\n  window: 3\n  max_held_bytes: 1\n", 4, "raise max_held_bytes to at least that"),
    ],
)
def test_what_only_shows_when_it_is_read_is_named_with_its_line(
    settings: Settings, tmp_path: Path, text: str, line: int, words: str
) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(f"address: 127.0.0.1:0\n{text}")
    read, _ = read_configuration(path)
    with pytest.raises(ConfigError) as caught:
        Worker(replace(read, relay=settings.relay))
    assert str(caught.value).startswith(f"{path}, line {line + 1}: ")
    assert words in str(caught.value)


def test_a_reload_names_the_line_too(front: Any, settings: Settings, tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("token_file: nothing\ntails:\n  - nope\n")
    read, _ = read_configuration(path)
    assert front.reload(replace(read, relay=settings.relay)) is False
    assert f"the tails stay as they were: {path}, line 3: '{tmp_path / 'nope'}' is not a folder" in caplog.text
    assert f"the tokens stay as they were: {path}, line 1: the token file" in caplog.text
