"""What a fit found, as people are shown it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from compoff.operations.fit_figures import GUARANTEE, facts_of, quality_table

ROW: dict[str, Any] = {
    "quality": 0, "channels": [3, 4], "step": 2, "bytes": 10.0, "static_bytes": None, "ceiling_bytes": 99,
    "agreement": 0.875, "output_error": 0.25, "default": False,
}  # fmt: skip


def shown(*rows: dict[str, Any]) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200)
    console.print(quality_table(rows))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in lines
        if "│" in line or "┃" in line
    ]


def test_what_is_sent_without_context_models_is_a_column_where_some_quality_has_them() -> None:
    plain, better = ROW, {**ROW, "quality": 1, "bytes": 20.0, "static_bytes": 25.0, "default": True}
    head, row = shown(plain)
    assert head == ["quality", "channels", "step", "bytes", "at most", "agreement", "output error"]
    assert row == ["0", "3, 4", "2", "10.0", "99", "87.5 %", "0.25"]
    assert [row[:5] for row in shown(plain, better)] == [
        ["quality", "channels", "step", "bytes", "static"],
        ["0", "3, 4", "2", "10.0", "–"],
        ["1, default", "3, 4", "2", "20.0", "25.0"],
    ]


@pytest.mark.parametrize("bound", [None, 1.5])
def test_terms_of_the_papers_guarantee_are_shown_where_the_gain_is_bound(bound: float | None) -> None:
    guarantee = {**dict.fromkeys(GUARANTEE), "agreement": 0.9, "semi_orthogonality_error": 0.1, "local_gain": 2.0}
    facts = facts_of({**guarantee, "lipschitz_bound": bound}, {"measured_on": 1500, "held_out": True})
    terms = {"semi orthogonality error": "0.1", "lipschitz bound": "1.5", "local gain": "2"}
    assert facts == {"agreement": "0.9", **(terms if bound else {}), "measured on": "1,500 held-out samples"}
