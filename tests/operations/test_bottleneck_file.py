"""What `compoff inspect` says of a file of bottlenecks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import compoff
from compoff.checkpoint import _checksum, read_checkpoint
from compoff.cli import app
from compoff.errors import ArtifactError
from compoff.fingerprint import fingerprint
from compoff.operations.inspecting import describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 6))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = compoff.wrap(network(), ["input", "1"], example_input=torch.zeros(2, 3, 8, 8))
    compoff.fit(model, [torch.randn(16, 3, 8, 8)], validation=[torch.randn(5, 3, 8, 8)], steps=2, progress=False)
    path = tmp_path_factory.mktemp("files") / "fitted.safetensors"
    model.save(path)
    return path


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A whole file of bottlenecks whose description somebody has changed."""
    description, tensors, base = read_checkpoint(source)
    change(description)
    text = json.dumps(description)
    metadata = {"format": "compoff-bottlenecks-2", "base": base, "description": text}
    save_file(tensors, target, {**metadata, "checksum": _checksum(text, tensors)})
    return target


def test_each_split_point_with_its_features_and_figures(fitted: Path) -> None:
    seen = describe(fitted)
    assert [(part["kind"], part["split"], part["features"]) for part in seen] == [
        ("bottlenecks", "input", [[3, 8, 8]]),
        ("bottlenecks", "1", [[4, 8, 8]]),
    ]
    reports = read_checkpoint(fitted)[0]["reports"]
    for part in seen:
        report = reports[part["split"]]
        assert part["base"] == fingerprint(network().state_dict())
        assert part["measured"] == {"measured_on": 5, "held_out": True}
        assert [row["bytes"] for row in part["qualities"]] == [point["bytes"] for point in report["curve"]]
        assert [row["quality"] for row in part["qualities"] if row["default"]] == [report["quality"]]
        assert part["weights"] == sum(tensor.numel() for tensor in load_file(fitted).values())
        assert part["file_bytes"] == fitted.stat().st_size


def test_the_command_shows_it(fitted: Path) -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", str(fitted)]).output
    assert all(word in shown for word in ("bottlenecks", "transform", "[4, 8, 8]", "5 held-out samples", ", default"))
    assert not any(word in shown for word in ("context models", "static", "at most"))
    told = CliRunner().invoke(app, ["inspect", str(fitted), "--json"]).output
    assert json.loads(told) == describe(fitted)


def test_bottlenecks_before_a_fit_say_so(tmp_path: Path) -> None:
    compoff.wrap(network(), "1", example_input=torch.zeros(2, 3, 8, 8)).save(tmp_path / "new")
    (part,) = describe(tmp_path / "new")
    assert (part["qualities"], part["raw_bytes"]) == ([], None)
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", str(tmp_path / "new")]).output
    assert "not measured" in shown


def test_the_first_files_had_one_feature_a_split_point(fitted: Path, tmp_path: Path) -> None:
    changed = rewritten(fitted, tmp_path / "old", lambda told: told["shapes"].update({"1": [4, 8, 8]}))
    assert describe(changed)[1]["features"] == [[4, 8, 8]]


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(options=3),
        lambda told: told.update(shapes=[]),
        lambda told: told.update(reports=None),
        lambda told: told.pop("shapes"),
        lambda told: told["shapes"].update({"1": "xx"}),
        lambda told: told["shapes"].update({"1": [[4], 8]}),
        lambda told: told["reports"].update({"1": [1]}),
        lambda told: told["reports"]["1"].update(agreement="much"),
        lambda told: told["reports"]["1"].update(curve=[3]),
        lambda told: told["reports"]["1"]["curve"][0].update(channels=4),
        lambda told: told["reports"]["1"]["curve"][0].update(step=[4]),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    fitted: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    with pytest.raises(ArtifactError, match=r"which cannot be; it is damaged: save again"):
        describe(rewritten(fitted, tmp_path / "forged", change))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"words")
    with pytest.raises(ArtifactError, match="cannot be read"):
        describe(tmp_path / "other")
