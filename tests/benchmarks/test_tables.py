"""The tables of README and docs are the results, not somebody's typing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import tables

_ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    "page", ["README.md", "docs/benchmarks.md", "docs/explanation/architectures.md", "docs/how-to/scale-out.md"]
)
def test_every_table_is_drawn_from_the_results(page: str) -> None:
    text = (_ROOT / page).read_text()
    assert "<!-- table: " in text
    assert tables.redrawn(text) == text, "run: python -m benchmarks.tables"


@pytest.mark.parametrize("path", sorted((_ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["name"] == path.stem
    assert re.match(r"(chrt -f \d+ )?python -m benchmarks\.", content["command"])
    assert re.fullmatch(r"[0-9a-f]{40}\+?", content["commit"])
    assert isinstance(content["seed"], int)
    assert {"cpu", "cores", "gpu"} <= set(content["hardware"])
    assert {"python", "torch", "numpy"} <= set(content["versions"])
    assert content["rows"]


def test_fewest_bytes_takes_the_smallest_row_within_the_drop() -> None:
    rows = [
        {"system": "deepcod", "channels": 8, "centers": 8, "bytes": 100.0, "drop": 2.5},
        {"system": "deepcod", "channels": 16, "centers": 8, "bytes": 200.0, "drop": 0.9},
        {"system": "deepcod", "channels": 32, "centers": 8, "bytes": 400.0, "drop": 0.1},
        {"system": "jpeg", "quality": 50, "bytes": 900.0, "drop": 1.0},
    ]
    assert tables.fewest_bytes(rows, ("deepcod",), 1) == "200"
    assert tables.fewest_bytes(rows, ("deepcod",), 5) == "100"
    assert tables.fewest_bytes(rows, (), 1) == "900 (jpeg 50)"
    assert tables.fewest_bytes(rows, (), 0.5) == "–"


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        tables.redrawn("<!-- table: no-such -->\nold\n<!-- end -->")
