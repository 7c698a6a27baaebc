"""What `docs/explanation/design.md` says of the house is so: its layers, its rooms, the length of what is in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent
_DESIGN = (_ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
_FILES = sorted((_ROOT / "compoff").rglob("*.py"))


def test_the_page_draws_the_layers_of_the_contract() -> None:
    contract = (_ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2].partition("\n]")[0]
    drawn = _DESIGN.partition("## The layers")[2].split("```")[1]
    assert drawn.split("\n")[1:-1] == re.findall(r'"(.+)"', contract)


def test_every_room_is_in_the_table() -> None:
    table = _DESIGN.partition("## The rooms")[2].partition("## The layers")[0]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall("`(\\w+)`", row[: row.index("|", 1)])
    }
    rooms = {
        path.stem for path in (_ROOT / "compoff").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert named == rooms - {"__init__"}


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.relative_to(_ROOT).as_posix())
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert (node.end_lineno or 0) - first.lineno < 60, node.name


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.relative_to(_ROOT).as_posix())
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
