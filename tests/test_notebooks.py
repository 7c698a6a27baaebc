"""Every notebook runs to its end, and still gives what it was committed with: text, values, pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

_ROOT = Path(__file__).resolve().parent.parent
# In a process of its own: the client's sockets and threads are not for those that fork after it.
_RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=110, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""
_NOTEBOOKS = sorted(path.name for path in (_ROOT / "examples").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert _NOTEBOOKS


@pytest.mark.parametrize("name", _NOTEBOOKS)
def test_notebook_runs(name: str, tmp_path: Path) -> None:
    kept = code_of(_ROOT / "examples" / name)
    assert any(cell.outputs for cell in kept), "it is committed with what it printed"
    command = [sys.executable, "-c", _RUN, str(_ROOT / "examples" / name), str(_ROOT), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=115, check=False)
    assert done.returncode == 0, done.stderr
    for cell, before in zip(code_of(tmp_path / name), kept, strict=True):
        assert kinds(cell.outputs) == kinds(before.outputs), cell.source


def code_of(path: Path) -> list[Any]:
    """The cells of a notebook that hold code."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(outputs: list[Any]) -> set[str]:
    """What a cell gave: text, a value, a picture; but what went to the log."""
    shown = [one for one in outputs if one.get("name") != "stderr"]
    return {kind for one in shown for kind in (one.output_type, *one.get("data", ()))}
