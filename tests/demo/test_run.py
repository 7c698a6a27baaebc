"""The whole demonstration with a schedule of seconds: every way over a real socket, files written, nothing left."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console

from compoff.demo.links import LINKS
from compoff.demo.run import run_demo
from compoff.demo.tasks import Schedule, SplitPlan
from compoff.errors import ArtifactError, BackendError

if TYPE_CHECKING:
    from pathlib import Path

TINY = Schedule(
    splits=(SplitPlan("input", 30, 4), SplitPlan("layer3", 20, 4)),
    batch=64,
    epochs=1,
    limit=12,
    jpeg_qualities=(90,),
)
LABELS = ["stay on device", "send raw uint8", "send PNG", "send JPEG 90", "compoff input", "compoff layer3"]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str, set[str]]:
    out, temporary = tmp_path_factory.mktemp("out") / "new", tmp_path_factory.mktemp("temporary")
    console = quiet()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        results = run_demo(None, out, seed=3, threads=1, console=console, schedule=TINY)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return results, out, printed, {entry.name for entry in temporary.iterdir()}


def test_a_row_for_every_way(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    results, _, printed, _ = demo
    assert [row["label"] for row in results["rows"]] == LABELS
    assert [label for label in LABELS if label not in printed] == []
    assert {row["images"] for row in results["rows"]} == {12}


def test_what_loses_nothing_has_no_drop(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    rows = {row["label"]: row for row in demo[0]["rows"]}
    for label in LABELS[:3]:
        assert (rows[label]["drop"], rows[label]["agreement"]) == (0.0, 100.0)


def test_bytes_are_those_of_the_wire(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    rows = {row["label"]: row for row in demo[0]["rows"]}
    assert rows["stay on device"]["bytes_up"] == rows["stay on device"]["bytes_down"] == 0
    assert rows["send raw uint8"]["bytes_up"] == 8 * 8 + 16
    assert {row["bytes_down"] for row in demo[0]["rows"][1:]} == {
        1 + 4 + 4 * 10 + 16
    }  # count, shape, ten float32, frame
    assert 16 < rows["compoff layer3"]["bytes_up"] < rows["send raw uint8"]["bytes_up"]


def test_times_over_the_links_follow_the_formula(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    for row in demo[0]["rows"][1:]:
        for link in LINKS:
            line = 8000 * (row["bytes_up"] + row["bytes_down"]) / link.bits_per_second
            expected = row["device_ms"] + row["edge_ms"] + 1000 * link.round_trip_seconds + line
            assert row["link_ms"][link.name] == pytest.approx(expected)


def test_results_say_how_they_were_made(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    results, out, _, _ = demo
    stored = json.loads((out / "results.json").read_text())
    assert stored == json.loads(json.dumps(results))
    about = {"task", "title", "note", "command", "seed", "seconds", "hardware", "versions"}
    assert set(stored) == about | {"formula", "links", "rows", "fits"}
    assert stored["command"] == "compoff demo --out DIR --seed 3"
    assert stored["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(stored["fits"]) == {"input", "layer3"}


def test_files_name_no_host_and_no_path(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    out = demo[1]
    for name in ("results.json", "report.html"):
        text = (out / name).read_text()
        assert str(out) not in text
        assert not platform.node() or f'"{platform.node()}"' not in text


def test_nothing_is_left_behind(demo: tuple[dict[str, Any], Path, str, set[str]]) -> None:
    assert {name for name in demo[3] if not name.startswith("torchinductor_")} == set()  # a cache that torch makes once


def test_the_callers_torch_is_as_it_was(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with pytest.raises(ArtifactError):
        run_demo(tmp_path, None, threads=1, console=quiet())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "PIL", "jinja2", "rich"])
def test_a_missing_extra_says_what_to_install(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else found(name, *rest))
    with pytest.raises(BackendError, match=r'pip install "compoff\[demo\]"'):
        run_demo(None, None, console=quiet())


def test_wrong_data_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        run_demo(tmp_path / "nowhere", None, console=quiet())
    with pytest.raises(ArtifactError, match=r"cifar10_resnet56\.safetensors does not exist"):
        run_demo(tmp_path, None, console=quiet())


def test_out_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="give --out a folder"):
        run_demo(None, tmp_path / "file" / "out", console=quiet())


@pytest.mark.data
def test_cifar_rows_are_those_of_the_pretrained_network(data: Path) -> None:
    schedule = Schedule(splits=(SplitPlan("layer3", 20, 2),), batch=50, limit=20)
    results = run_demo(data, None, threads=1, console=quiet(), schedule=schedule)
    rows = {row["label"]: row for row in results["rows"]}
    assert results["task"] == "cifar10-resnet56"
    assert rows["send raw uint8"]["bytes_up"] == 32 * 32 * 3 + 16
    assert rows["send PNG"]["drop"] == rows["send raw uint8"]["drop"] == 0.0
    assert rows["stay on device"]["accuracy"] >= 85  # 92.6 % of all 1,000
    assert os.environ["COMPOFF_DATA"] not in json.dumps(results)
