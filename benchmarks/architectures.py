"""Cut every architecture of the zoo at each of its split points, and measure whether anything but the codec shows.

A cut measured before is not measured again, so that a killed run goes on where it was; --again starts over. Codecs are
as they are made, not fitted: what is measured is the cut.

    python -m benchmarks.architectures
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.record import record
from benchmarks.zoo import ARCHITECTURES
from benchmarks.zoo.architecture import largest
from benchmarks.zoo.checks import Export, Mounted, mount, run_strangers

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.zoo.architecture import Architecture

_ROOT = Path(__file__).resolve().parent.parent
_STATES = _ROOT / "benchmarks" / "states" / "architectures"  # not committed: rows measured so far


def crossing_row(mounted: Mounted) -> dict[str, Any]:
    """What crosses, one sample, as it is: codes, then what is sent beside them."""
    site = mounted.wrapped.sites[mounted.split]
    floats = [side for side in site.sides if side.dtype.is_floating_point]
    others = [side for side in site.sides if not side.dtype.is_floating_point]
    return {
        "codes": len(site.features),
        "code_bytes": sum(feature.raw_bytes for feature in site.features),
        "raw": len(floats),
        "raw_bytes": sum(side.raw_bytes for side in floats),
        "sides": len(others),
        "side_bytes": sum(side.raw_bytes for side in others),
    }


def training_row(mounted: Mounted) -> dict[str, Any]:
    """What wrapping changes, and whether a gradient reaches the encoders."""
    return {
        "teacher_gap": mounted.teacher_gap(),
        "bypass_gap": mounted.bypass_gap(),
        "gradient": not mounted.gradients_missing(),
    }


def shipping_row(mounted: Mounted, folder: Path) -> tuple[dict[str, Any], Export]:
    """What cutting, saving and sending change; at its first split point, what the programs alone change, too."""
    architecture = mounted.architecture
    alone = architecture.suffix_exports and mounted.split == architecture.split_points[0]
    program_gap = mounted.program_gap() if alone else None
    began = time.perf_counter()
    export = mounted.export(folder)
    seconds = time.perf_counter() - began
    gaps = {"program_gap": program_gap, "socket_gap": export.socket_gap()}
    return {"tail": "model" if export.head_only else "program", **gaps, "export_seconds": round(seconds, 2)}, export


def measure(
    architecture: Architecture, split: str, model: nn.Module, folder: Path, *, reduced: bool, ship: bool
) -> tuple[dict[str, Any], Any]:
    """One row, but for what the process without libraries says; a row that failed says why."""
    row: dict[str, Any] = {"error": ""}
    mounted = export = None
    try:
        began = time.perf_counter()
        mounted = mount(architecture, split, model, reduced=reduced)
        row |= {"wrap_seconds": round(time.perf_counter() - began, 2), "largest": largest(mounted.expected[0])}
        row |= crossing_row(mounted) | training_row(mounted)
        if ship:
            shipped, export = shipping_row(mounted, folder)
            row |= shipped
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    if mounted is not None:
        changes = mounted.unwrap()
        row |= {"unchanged": not changes, "changes": changes[:5]}
    return row, export


def rows_of(architecture: Architecture, folder: Path, *, reduced: bool, ship: bool) -> list[dict[str, Any]]:
    """All rows of one architecture."""
    model = architecture.build(reduced=reduced)
    same = {
        "architecture": architecture.name,
        "library": architecture.library,
        "instance": "small" if reduced else "as it is",
        "weights": "random" if reduced else architecture.weights,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "skips": architecture.skips,
    }
    rows: list[dict[str, Any]] = []
    exports: list[tuple[dict[str, Any], Export]] = []
    for number, split in enumerate(architecture.split_points):
        row, export = measure(architecture, split, model, folder / str(number), reduced=reduced, ship=ship)
        rows.append({**same, "split": split, **row})
        if export is not None:
            exports.append((rows[-1], export))
    results = run_strangers([export for _, export in exports], folder) if exports else []
    for (row, export), result in zip(exports, results, strict=True):
        row["payload_bytes"] = result["bytes"][-1] if result["bytes"] else None
        row["stranger_gap"] = None if result["error"] else export.stranger_gap()
        row["error"] = row["error"] or result["error"]
    return [finite(row) for row in rows]


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON can hold it: an infinite difference, which says that answers are of another form, as text."""
    return {name: "infinite" if value == float("inf") else value for name, value in row.items()}


def remembered(architecture: Architecture) -> Path:
    """Where the rows of one architecture wait for the others."""
    return _STATES / f"{re.sub('[^a-z0-9]+', '-', architecture.name.lower())}.json"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, help="names of architectures")
    parser.add_argument("--reduced", action="store_true", help="the small instances: minutes in place of hours")
    parser.add_argument("--wrap-only", action="store_true", help="wrap, do not export: what takes most of the time")
    parser.add_argument("--again", action="store_true", help="measure again what has been measured before")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _STATES.mkdir(parents=True, exist_ok=True)
    chosen = [one for one in ARCHITECTURES if options.only is None or one.name in options.only]
    for architecture in chosen:
        state = remembered(architecture)
        if state.is_file() and not options.again:
            continue
        folder = Path(tempfile.mkdtemp())
        try:
            rows = rows_of(architecture, folder, reduced=options.reduced, ship=not options.wrap_only)
        finally:
            shutil.rmtree(folder)
        state.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        for row in rows:
            print(json.dumps(row), flush=True)
    kept = [remembered(architecture) for architecture in ARCHITECTURES]
    rows = [row for state in kept if state.is_file() for row in json.loads(state.read_text(encoding="utf-8"))]
    small = " --reduced" if any(row["instance"] == "small" for row in rows) else ""
    print(record("architectures", rows, seed=0, command=f"python -m benchmarks.architectures{small}"))


if __name__ == "__main__":
    main()
