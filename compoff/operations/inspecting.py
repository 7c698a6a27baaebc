"""`compoff inspect`: what a folder of an exported head or tail holds, or a file of bottlenecks, as data and as tables.

Reads and checks; runs nothing of it. A folder needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compoff.artifact import read_folder
from compoff.checks import check_path, reaching
from compoff.errors import ArtifactError, BackendError
from compoff.manifest import sha256
from compoff.operations.fit_figures import (
    GUARANTEE,
    MEASURED,
    MEASURED_ON,
    check_each,
    check_figures,
    count,
    facts_of,
    is_figure,
    number,
    quality_table,
    shape,
    table,
)
from compoff.parts import exports_in, find_part, kinds_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from compoff.artifact import Folder

__all__ = ["describe", "show"]

_FORMATS = {
    ".pt2": "PyTorch program",
    ".onnx": "ONNX",
    ".pte": "ExecuTorch",
    ".h": "C header",
    ".safetensors": "tables",
}
_COMPILED = ("onnx", "executorch")
_PLAIN = ("kind", "path", "artifact_id", "split", "model", "base", "factory", "max_batch", "ceiling_bytes")


def describe(path: str | Path) -> list[dict[str, Any]]:
    """Check a folder, or a file of bottlenecks, and say what is in it.

    Args:
        path: A folder of a head or of a tail, the folder around both, or one around several such pairs; or a file that
            `Wrapped.save` wrote.

    Returns:
        For each part its identity, what it takes and returns, its qualities with their bytes, multiply-accumulates,
        formats, engines, files with their hashes, the guarantee's figures, and the versions that made it. For each
        split point of a file of bottlenecks what of this is known before an export.

    Raises:
        ArtifactError: There is no such part there, or one is damaged, or reports what is no figure.
    """
    place = check_path("path", path, ArtifactError)
    with reaching(place, ArtifactError):
        is_file = place.is_file()
    if is_file:
        from compoff.operations.bottleneck_file import describe_bottlenecks  # they are torch's

        return describe_bottlenecks(place)
    return [
        _described(read_folder(find_part(place, kind), kind))
        for place in parts_around(path)
        for kind in kinds_in(place)
    ]


def parts_around(path: str | Path) -> list[Path]:
    """The folder itself; or those inside it that hold parts, where it holds none.

    Args:
        path: As for `describe`.

    Returns:
        Folders that `kinds_in` knows.

    Raises:
        ArtifactError: There is no part there.
    """
    folder = Path(path)
    try:
        kinds_in(folder)
    except ArtifactError:
        inside = exports_in(folder)
        if not inside:
            raise
        return inside
    return [folder]


def _described(part: Folder) -> dict[str, Any]:
    """One head or tail."""
    manifest, report = part.manifest, _checked_report(part)
    files = {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in part.files.items()}
    return {
        "kind": manifest.kind,
        "path": str(part.path),
        "artifact_id": manifest.artifact_id,
        "split": manifest.split,
        "model": manifest.model,
        "base": manifest.base,
        "factory": manifest.factory,
        "max_batch": manifest.max_batch,
        "ceiling_bytes": manifest.payload_format(part.tables).max_bytes(1),
        "raw_bytes": report.get("raw_bytes"),
        "inputs": [asdict(spec) for spec in manifest.inputs],
        "pixels": None if manifest.pixels is None else asdict(manifest.pixels),
        "taken": [asdict(spec) for spec in manifest.taken],
        "outputs": [asdict(spec) for spec in manifest.outputs],
        "codes": [
            {**asdict(code), "contexts": bool(tables.contexts)}
            for code, tables in zip(manifest.codes, part.tables, strict=True)
        ],
        "sides": [asdict(spec) for spec in manifest.sides],
        "qualities": _qualities(part),
        "macs": {name: report.get(f"{name}_macs") for name in ("head", "encoder", "tail")},
        "guarantee": {name: report.get(name) for name in GUARANTEE},
        "measured": {name: report.get(name) for name in MEASURED_ON},
        "formats": _formats(part),
        "compiled": {name: report[name] for name in _COMPILED if isinstance(report.get(name), dict)},
        "engines": _engines(part),
        "files": files,
        "versions": dict(manifest.versions),
    }


def _checked_report(part: Folder) -> dict[str, Any]:
    """The report, which nobody else reads, once what is shown of it is of the right kind."""
    report, where = part.manifest.report, f"{part.path / 'manifest.yaml'}: report"
    check_figures(where, report, "export again")
    for name in _COMPILED:
        if isinstance(report.get(name), dict):
            check_each(f"{where}.{name}", report[name], ("symbols",), is_figure, "export again")
            check_each(
                f"{where}.{name}", report[name], ("precision",), lambda value: isinstance(value, str), "export again"
            )
    return report


def _qualities(part: Folder) -> list[dict[str, Any]]:
    """What each quality sends, costs at most, and was measured to cost and give."""
    manifest, format_ = part.manifest, part.manifest.payload_format(part.tables)
    curve: list[dict[str, Any]] = manifest.report.get("curve", [])
    count = format_.num_qualities
    rows: list[dict[str, Any]] = []
    for index in range(count):
        measured = curve[index] if len(curve) == count else {}
        rows.append(
            {
                "quality": index,
                "default": index == manifest.quality % count,
                "channels": [code.qualities[index] for code in manifest.codes],
                "step": manifest.codes[0].steps[index] if manifest.codes[0].steps else 1,
                "ceiling_bytes": format_.max_bytes(1, index),
                **{name: measured.get(name) for name in MEASURED},
            }
        )
    return rows


def _formats(part: Folder) -> list[str]:
    """In which forms the program is there, by the names of the files."""
    found = {_FORMATS[suffix] for name in part.files if (suffix := Path(name).suffix) in _FORMATS}
    return sorted(found - {"tables"})


def _engines(part: Folder) -> list[dict[str, Any]]:
    """The engines, each with its state: whole, or why not. Whether it suits this machine is for the tail to say."""
    rows: list[dict[str, Any]] = []
    for name in part.engines:
        row: dict[str, Any] = {"file": name, "bytes": None, "sha256": None, "state": "whole"}
        try:
            data = part.engine(name)
            row |= {"bytes": len(data), "sha256": sha256(data)}
        except BackendError as error:
            row["state"] = str(error).partition(". ")[0]
        rows.append(row)
    return rows


def show(parts: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what `describe` found.

    Args:
        parts: What it found.
        console: Where to.
    """
    for part in parts:
        for made in _tables(part):
            console.print(made)


def _symbols(code: dict[str, Any]) -> str:
    """Levels and shape of a code's symbols."""
    return f"{code['num_centers']} × {shape(code['latent_shape'])}" + ", under context models" * code["contexts"]


def _tables(part: dict[str, Any]) -> list[Table]:
    """Tables of one part: what it is, its qualities, its files."""
    if part["kind"] == "bottlenecks":
        from compoff.operations.bottleneck_file import tables_of

        return tables_of(part)
    facts = {name: part[name] for name in _PLAIN if part[name] not in ("", None)}
    facts |= {name: ", ".join(map(_tensor, part[name])) for name in ("inputs", "outputs", "sides") if part[name]}
    if part["pixels"] is not None:
        facts["the head takes"] = ", ".join(map(_tensor, part["taken"]))
        facts |= {f"{name} of pixels": ", ".join(map(number, part["pixels"][name])) for name in ("mean", "std")}
    facts["symbols"] = ", ".join(map(_symbols, part["codes"]))
    facts["MACs per sample"] = ", ".join(f"{key} {count(value)}" for key, value in part["macs"].items())
    facts |= facts_of(part["guarantee"], part["measured"])
    facts["formats"] = ", ".join(part["formats"]) or "none"
    for name, found in part["compiled"].items():
        share = found.get("symbols")
        told = f"{100 * share:.2f} % of the symbols are PyTorch's" if isinstance(share, float) else "not compared"
        facts[f"head in {name}"] = f"{found.get('precision')}, {told}"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    title = f"{part['kind']} · {part['path']}"
    tables = [table(title, None, [[name, _plain(value)] for name, value in facts.items()])]
    tables.append(quality_table(part["qualities"]))
    files = [{"file": name, "state": "whole", **entry} for name, entry in part["files"].items()] + part["engines"]
    rows = [[row["file"], count(row["bytes"]), (row["sha256"] or "–")[:16], row["state"]] for row in files]
    tables.append(table("files", ("file", "bytes", "SHA-256", "state"), rows))
    return tables


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['dtype']} {shape((['batch'] if spec['batched'] else []) + list(spec['shape']))}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
