"""Every notebook runs to its end, and still gives what it was committed with: text, values, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

_ROOT = Path(__file__).resolve().parent.parent
_NOTEBOOKS = sorted(path.name for path in (_ROOT / "examples").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert _NOTEBOOKS


@pytest.mark.parametrize("name", _NOTEBOOKS)
def test_notebook_runs(name: str) -> None:
    notebook = nbformat.read(_ROOT / "examples" / name, as_version=4)  # type: ignore[no-untyped-call]
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert any(kept), "it is committed with what it printed"
    NotebookClient(notebook, timeout=110, kernel_name="python3", resources={"metadata": {"path": str(_ROOT)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, before in zip(cells, kept, strict=True):
        assert kinds(cell.outputs) == kinds(before), cell.source


def kinds(outputs: list[Any]) -> set[str]:
    """What a cell gave: text, a value, a picture; but what went to the log."""
    shown = [one for one in outputs if one.get("name") != "stderr"]
    return {kind for one in shown for kind in (one.output_type, *one.get("data", ()))}
