"""The report in words, in numbers and as a figure."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest
import torch

import compoff
from compoff import BackendError, FitReport, SplitReport


def report() -> FitReport:
    splits = {
        "layer1": SplitReport(
            loss=[1.0, 0.5, 0.6, 0.3], distilled_from=2, bytes=99.6, raw_bytes=65536, agreement=0.987
        ),
        "layer2": SplitReport(loss=[2.0, 0.5, 0.2, 0.1], bytes=12.2, raw_bytes=32768, output_error=0.01234),
    }
    return FitReport(splits, steps=4, seconds=61.7, measured_on=64, held_out=False, measuring_seconds=92.6)


def test_str_tells_bytes_and_agreement() -> None:
    assert str(report()).splitlines() == [
        "compoff.fit: 4 steps in 62 s, measured on 64 training samples in 93 s",
        "  layer1: 100 B of 65536 B raw, agreement 98.7 %",
        "  layer2: 12 B of 32768 B raw, output error 0.0123",
    ]


def test_to_dict_is_json_and_complete() -> None:
    told = json.loads(json.dumps(report().to_dict()))
    assert told["splits"]["layer1"]["loss"] == [1.0, 0.5, 0.6, 0.3]
    assert {key: value for key, value in told.items() if key != "splits"} == {
        "steps": 4,
        "seconds": 61.7,
        "measured_on": 64,
        "held_out": False,
        "measuring_seconds": 92.6,
    }
    figures = report().splits["layer1"].figures()
    assert "loss" not in figures
    assert figures == {key: value for key, value in told["splits"]["layer1"].items() if key != "loss"}


def test_plot_draws_a_curve_a_split_and_a_mark_where_distillation_sets_in() -> None:
    (axes,) = report().plot().axes
    curves = [line for line in axes.lines if line.get_linestyle() == "-"]
    marks = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [line.get_label() for line in curves] == ["layer1", "layer2"]
    assert list(curves[1].get_ydata()) == [2.0, 0.5, 0.2, 0.1]
    assert [list(line.get_xdata()) for line in marks] == [[2, 2]]
    assert axes.get_yscale() == "log"
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"layer1", "layer2"}


def test_plot_can_be_saved(tmp_path: object) -> None:
    path = f"{tmp_path}/loss.png"
    report().plot().savefig(path)
    with open(path, "rb") as file:  # noqa: PTH123 - tmp_path is typed as an object here
        assert file.read(4) == b"\x89PNG"


def test_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r'pip install "compoff\[demo\]"'):
        report().plot()


CURVE: list[dict[str, Any]] = [
    {"bytes": 90.0, "agreement": 0.97, "output_error": 0.1},
    {"bytes": 200.0, "agreement": 0.99, "output_error": 0.02},
]


def test_every_quality_is_a_row_of_a_table() -> None:
    measured = FitReport({"a": SplitReport(curve=CURVE, quality=1), "b": SplitReport(curve=CURVE[:1])}, 1, 1.0, 8, True)
    rows = measured.rows()
    assert [(row["split"], row["quality"], row["default"]) for row in rows] == [
        ("a", 0, False),
        ("a", 1, True),
        ("b", 0, True),
    ]
    assert [{key: row[key] for key in CURVE[0]} for row in rows] == [*CURVE, CURVE[0]]
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    assert text.getvalue().splitlines()[1] == "a,0,False,90.0,0.97,0.1"


@pytest.mark.parametrize(("agreement", "drawn"), [(0.99, [97.0, 99.0]), (None, [0.1, 0.02])])
def test_rates_are_drawn_against_what_they_keep(agreement: float | None, drawn: list[float]) -> None:
    curve = [CURVE[0], CURVE[1] | {"agreement": agreement}]
    (axes,) = FitReport({"a": SplitReport(curve=curve, quality=1)}, 1, 1.0, 8, True).plot_rates().axes
    line, default = axes.lines
    assert list(line.get_xdata()) == [90.0, 200.0]
    assert list(line.get_ydata()) == pytest.approx(drawn)
    assert list(default.get_xdata()) == [200.0]
    assert axes.get_ylabel() == ("output error" if agreement is None else "agreement (%)")


def test_what_is_done_to_a_report_changes_neither_the_export_nor_the_report_itself() -> None:
    model, x = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)), [torch.randn(16, 32)]
    report = compoff.fit(model, x, steps=2)
    given = report.to_dict()
    for split in given["splits"].values():
        del split["loss"]
        split["curve"].clear()
    expected = [point["bytes"] for point in report.splits["input"].curve]
    assert repr(report)
    report.splits["input"].curve.sort(key=lambda point: -point["bytes"])
    report.splits["input"].curve[0]["bytes"] = 12345
    head, _ = compoff.export(model, "input")
    assert [point["bytes"] for point in head.manifest.report["curve"]] == expected
