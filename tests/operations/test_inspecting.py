"""What `compoff inspect` says of a folder, against independent counts."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console
from torch import nn

import compoff
from compoff.artifact import write_folder
from compoff.errors import ArtifactError
from compoff.operations.inspecting import describe, show
from tests.small_artifacts import MANIFEST, PROGRAM, TABLES, forge

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 6)).eval()
    model = compoff.wrap(net, "1", example_input=torch.zeros(2, 3, 8, 8))
    compoff.fit(model, [torch.randn(16, 3, 8, 8)], steps=2, progress=False)
    path = tmp_path_factory.mktemp("exports")
    for name in ("one", "two"):
        head, tail = compoff.export(model, "1")
        head.save(path / name / "head")
        tail.save(path / name / "tail")
    return path


def test_macs_are_those_of_one_sample(export: Path) -> None:
    head, _ = describe(export / "one")
    assert head["macs"]["head"] == 4 * 27 * 64 + head["macs"]["encoder"]
    assert head["macs"]["tail"] >= 256 * 6


def test_head_tail_the_folder_around_both_and_the_folder_around_pairs(export: Path) -> None:
    kinds = {"one": ["head", "tail"], "one/head": ["head"], "one/tail": ["tail"], ".": ["head", "tail"] * 2}
    for place, expected in kinds.items():
        assert [part["kind"] for part in describe(export / place)] == expected


def test_each_quality_with_its_measured_bytes_and_its_ceiling(export: Path) -> None:
    head = compoff.Head.load(export / "one")
    (part,) = describe(export / "one" / "head")
    assert [row["quality"] for row in part["qualities"]] == list(range(head.payload_format.num_qualities))
    for row, measured in zip(part["qualities"], head.manifest.report["curve"], strict=True):
        assert row["bytes"] == measured["bytes"] <= row["ceiling_bytes"]
        assert row["ceiling_bytes"] == head.payload_format.max_bytes(1, row["quality"])
        assert row["agreement"] == measured["agreement"]
    assert sum(row["default"] for row in part["qualities"]) == 1
    assert part["guarantee"]["agreement"] == head.manifest.report["agreement"]


def test_what_the_figures_were_measured_on(export: Path, tmp_path: Path) -> None:
    seen = describe(export / "one" / "head")
    assert seen[0]["measured"] == {"measured_on": 16, "held_out": False}
    model = compoff.wrap(nn.Conv2d(3, 4, 3), "input", example_input=torch.zeros(2, 3, 8, 8))
    compoff.fit(model, [torch.randn(16, 3, 8, 8)], validation=[torch.randn(5, 3, 8, 8)], steps=2, progress=False)
    compoff.export(model, "input")[0].save(tmp_path)
    held = describe(tmp_path)
    assert held[0]["measured"] == {"measured_on": 5, "held_out": True}
    console = Console(file=io.StringIO(), width=200)
    show([*seen, *held], console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "16 training samples" in shown
    assert "5 held-out samples" in shown
    assert "static" not in shown, "there are no context models"


def test_files_with_their_lengths_and_hashes(export: Path) -> None:
    (part,) = describe(export / "one" / "tail")
    data = (export / "one" / "tail" / "tail.pt2").read_bytes()
    assert part["files"]["tail.pt2"] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert part["formats"] == ["PyTorch program"]
    assert part["versions"]["torch"] == torch.__version__


def test_a_folder_without_a_fit_shows_what_there_is(tmp_path: Path) -> None:
    write_folder(tmp_path, MANIFEST, TABLES, {"head.onnx": PROGRAM, "engine.x": PROGRAM})
    (part,) = describe(tmp_path)
    assert [row["bytes"] for row in part["qualities"]] == [None, None]
    assert (part["formats"], part["macs"]["head"]) == (["ONNX"], None)
    console = Console(file=io.StringIO(), width=200)
    show([part], console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(
        word in shown
        for word in ("layer1.0", "not stored", "engine.x", "whole", hashlib.sha256(PROGRAM).hexdigest()[:16])
    )


def test_a_damaged_engine_is_shown_as_what_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path, MANIFEST, TABLES, {"head.pt2": PROGRAM, "engine.x": PROGRAM})
    (tmp_path / "engine.x").write_bytes(bytes(len(PROGRAM)))
    (part,) = describe(tmp_path)
    assert "SHA-256 is not the manifest's" in part["engines"][0]["state"]


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(ArtifactError, match="holds no head and no tail"):
            describe(place)


CURVE = {"bytes": 12.5, "agreement": 0.5}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in ("raw_bytes", "head_macs", "agreement", "measured_on")
            for value in ("x", [1], {}, True, 10**400)
        ),
        ("aim_met", 1),
        ("held_out", "yes"),
        *(("curve", value) for value in (3, None, "xx", {"a": 1}, [3, 3], [CURVE, {**CURVE, "agreement": "1"}])),
        ("onnx", {"precision": "int8", "symbols": [1]}),
        ("onnx", {"symbols": 0.5}),
    ],
    ids=lambda part: f"{part!r:.30}",
)
def test_a_report_of_what_is_no_figure_is_refused_by_its_key(tmp_path: Path, key: str, value: Any) -> None:
    write_folder(tmp_path, MANIFEST, TABLES, {"head.onnx": PROGRAM})
    forge(tmp_path, lambda content: content["report"].update({key: value}))
    with pytest.raises(ArtifactError, match=rf"manifest\.yaml: report\.{key}.* is .*, which cannot be"):
        describe(tmp_path)


@pytest.mark.parametrize("bad", ["\x1b[2J\x1b]0;title\x07", "\x9b31m", "a\nb", "\u202eevil"])
def test_what_a_forged_folder_says_does_not_steer_the_terminal(tmp_path: Path, bad: str) -> None:
    write_folder(tmp_path, MANIFEST, TABLES, {"head.onnx": PROGRAM})
    shown: list[str] = []
    for changes in ({}, {"model": bad, "split": bad, "versions": {bad: bad}}):
        forge(tmp_path, lambda content, changes=changes: content.update(changes))
        forge(tmp_path, lambda content: content["files"].update({f"engine.{bad}": {}}))
        console = Console(file=io.StringIO(), width=400)
        show(describe(tmp_path), console)
        shown.append(console.file.getvalue())  # type: ignore[attr-defined]
    for text in shown:
        assert all(line.isprintable() for line in text.splitlines())
        assert "?" in text
