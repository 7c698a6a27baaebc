"""The tables of README and docs are the results, not somebody's typing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import drop_tables, tables

_ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_table_stands_on_a_page() -> None:
    marked = [
        name for page in tables.pages() for name in re.findall(r"<!-- table: ([\w.-]+) -->", (_ROOT / page).read_text())
    ]
    assert set(marked) == set(tables.TABLES)


@pytest.mark.parametrize("page", tables.pages())
def test_every_table_is_drawn_from_the_results(page: str) -> None:
    text = (_ROOT / page).read_text()
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
    assert drop_tables.fewest_bytes(rows, ("deepcod",), 1) == "200"
    assert drop_tables.fewest_bytes(rows, ("deepcod",), 5) == "100"
    assert drop_tables.fewest_bytes(rows, (), 1) == "900 (jpeg 50)"
    assert drop_tables.fewest_bytes(rows, (), 0.5) == "–"


def test_several_seeds_are_told_by_median_and_range() -> None:
    rows = [
        {"system": "compoff", "seed": seed, "quality": quality, "bytes": 100.0 * quality + 10 * seed, "drop": drop}
        for seed in range(3)
        for quality, drop in ((1, 3.0), (2, 1.5 - 0.4 * seed))
    ]
    assert drop_tables.fewest_bytes(rows, ("compoff",), 2) == "210 (200–220)"
    assert drop_tables.fewest_bytes(rows, ("compoff",), 1) == "–"  # the first seed never comes as close


def test_a_quality_that_one_half_of_the_images_chose_is_measured_on_the_other() -> None:
    rows = [
        {"system": "compoff", "quality": 0, "bytes": 50.0, "drop_halves": [0.5, 1.8]},
        {"system": "compoff", "quality": 1, "bytes": 90.0, "drop_halves": [0.2, 0.4]},
    ]
    assert drop_tables.chosen_elsewhere(rows, 1) == [(90.0, 0.2), (50.0, 1.8)]


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        tables.redrawn("<!-- table: no-such -->\nold\n<!-- end -->")
