"""The words of the system's errors: no number, the file, and what to do. Each error is one that the system raised."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compoff.operations.system_errors import told

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda: Path("missing").read_text(), "there is no 'missing'; correct the name"),
        (
            lambda: Path("no/where.h").write_text(""),
            "'no/where.h' cannot be: there is no folder 'no'; make it, or correct the name",
        ),
        (lambda: Path("folder").read_text(), "'folder' is a folder; give a file"),
        (lambda: Path("file/below/it").mkdir(parents=True), "'file' is a file; give a folder"),
        (lambda: Path("file").mkdir(exist_ok=True), "'file' is a file; give a folder"),
        (lambda: Path("file/x").write_text(""), "'file' is a file; give a folder"),
    ],
)
def test_what_the_system_says_of_a_file(do: Callable[[], object], words: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which of them is the system's choice
        do()
    assert told(caught.value) == words


@pytest.mark.usefixtures("place")
def test_windows_word_for_a_folder_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "folder")
    assert told(error) == "'folder' is a folder; give a file"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert told(error).startswith("'folder' is not open to this user (Permission denied)")


def test_errors_that_cannot_be_made_here() -> None:
    assert told(PermissionError(errno.EACCES, "Permission denied", "a")).startswith("'a' is not open to this user (Per")
    assert told(OSError(errno.ENOSPC, "No space left on device", "a")).endswith("make room, or give another place")
    assert told(OSError(errno.ELOOP, "Too many links", "a")) == "'a' cannot be used (Too many links); give another one"


def test_errors_of_no_file() -> None:
    assert told(OSError(errno.EPIPE, "Broken pipe")) == "Broken pipe"
    assert told(OSError(errno.EBADF, "Bad file descriptor", 7)) == "Bad file descriptor"
    assert told(OSError("words alone")) == "words alone"
