"""`compoff inspect`: what a folder of an exported head or tail holds, as plain data and as tables.

Reads and checks the folder; runs nothing of it and needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compoff.artifact import exports_in, find_part, kinds_in, read_folder
from compoff.checks import is_number
from compoff.errors import ArtifactError, BackendError
from compoff.manifest import sha256
from compoff.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
_GUARANTEE = (
    "agreement",
    "output_error",
    "semi_orthogonality_error",
    "lipschitz_bound",
    "local_gain",
    "aim_met",
)
_FIGURES = ("raw_bytes", "head_macs", "encoder_macs", "tail_macs", *(name for name in _GUARANTEE if name != "aim_met"))
_MEASURED = ("bytes", "agreement", "output_error", "encoder_macs")
_MOST = 1 << 63  # a number of hundreds of digits is no figure, and no float holds it
_COMPILED = ("onnx", "executorch")
_PLAIN = ("kind", "path", "artifact_id", "split", "model", "base", "factory", "max_batch", "ceiling_bytes")


def describe(path: str | Path) -> list[dict[str, Any]]:
    """Check a folder and say what is in it.

    Args:
        path: A folder of a head or of a tail, the folder around both, or one around several such pairs.

    Returns:
        For each part its identity, what it takes and returns, its qualities with their bytes, multiply-accumulates,
        formats, engines, files with their hashes, the guarantee's figures, and the versions that made it.

    Raises:
        ArtifactError: There is no such part there, or one is damaged, or reports what is no figure.
    """
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
        "codes": [asdict(code) for code in manifest.codes],
        "sides": [asdict(spec) for spec in manifest.sides],
        "qualities": _qualities(part),
        "macs": {name: report.get(f"{name}_macs") for name in ("head", "encoder", "tail")},
        "guarantee": {name: report.get(name) for name in _GUARANTEE},
        "formats": _formats(part),
        "compiled": {name: report[name] for name in _COMPILED if isinstance(report.get(name), dict)},
        "engines": _engines(part),
        "files": files,
        "versions": dict(manifest.versions),
    }


def _checked_report(part: Folder) -> dict[str, Any]:
    """The report, which nobody else reads, once what is shown of it is of the right kind."""
    report = part.manifest.report

    def check(where: str, found: dict[str, Any], names: Sequence[str], fits: Callable[[Any], bool]) -> None:
        wrong = next((name for name in names if not fits(found.get(name))), None)
        if wrong is not None:
            raise ArtifactError(
                f"{part.path / 'manifest.yaml'}: {where}.{wrong} is {found.get(wrong)!r:.80}, which cannot be; it is "
                "damaged: export again"
            )

    check("report", report, _FIGURES, _is_figure)
    check("report", report, ("aim_met",), lambda value: value is None or isinstance(value, bool))
    check("report", {"curve": [], **report}, ("curve",), _is_curve)
    for name in _COMPILED:
        if isinstance(report.get(name), dict):
            check(f"report.{name}", report[name], ("symbols",), _is_figure)
            check(f"report.{name}", report[name], ("precision",), lambda value: isinstance(value, str))
    return report


def _is_figure(value: Any) -> bool:
    return value is None or (is_number(value) and (isinstance(value, float) or abs(value) < _MOST))


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and all(_is_figure(entry.get(name)) for name in _MEASURED)  # pyright: ignore[reportUnknownMemberType]
        for entry in value  # pyright: ignore[reportUnknownVariableType]
    )


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
                "bytes": measured.get("bytes"),
                "ceiling_bytes": format_.max_bytes(1, index),
                "agreement": measured.get("agreement"),
                "output_error": measured.get("output_error"),
                "encoder_macs": measured.get("encoder_macs"),
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
        for table in _tables(part):
            console.print(table)


def _tables(part: dict[str, Any]) -> list[Table]:
    """Tables of one part: what it is, its qualities, its files."""
    facts = {name: part[name] for name in _PLAIN if part[name] not in ("", None)}
    facts |= {name: ", ".join(map(_tensor, part[name])) for name in ("inputs", "outputs", "sides") if part[name]}
    if part["pixels"] is not None:
        facts["the head takes"] = ", ".join(map(_tensor, part["taken"]))
        facts |= {f"{name} of pixels": ", ".join(map(_number, part["pixels"][name])) for name in ("mean", "std")}
    facts["symbols"] = ", ".join(f"{code['num_centers']} × {_shape(code['latent_shape'])}" for code in part["codes"])
    facts["MACs per sample"] = ", ".join(f"{key} {_count(value)}" for key, value in part["macs"].items())
    # Terms of the paper's guarantee mean something where the decoder's gain is bound, as with the paper's codec.
    bound = part["guarantee"]["lipschitz_bound"] is not None
    known = {
        key: value
        for key, value in part["guarantee"].items()
        if value is not None and (bound or key not in ("semi_orthogonality_error", "local_gain"))
    }
    facts |= {key.replace("_", " "): _number(value) for key, value in known.items()}
    facts["formats"] = ", ".join(part["formats"]) or "none"
    for name, found in part["compiled"].items():
        share = found.get("symbols")
        told = f"{100 * share:.2f} % of the symbols are PyTorch's" if isinstance(share, float) else "not compared"
        facts[f"head in {name}"] = f"{found.get('precision')}, {told}"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    title = f"{part['kind']} · {part['path']}"
    tables = [_table(title, None, [[name, _plain(value)] for name, value in facts.items()])]
    columns = ("quality", "channels", "step", "bytes", "at most", "agreement", "output error")
    tables.append(_table("qualities", columns, [_quality_row(row) for row in part["qualities"]]))
    files = [{"file": name, "state": "whole", **entry} for name, entry in part["files"].items()] + part["engines"]
    rows = [[row["file"], _count(row["bytes"]), (row["sha256"] or "–")[:16], row["state"]] for row in files]
    tables.append(_table("files", ("file", "bytes", "SHA-256", "state"), rows))
    return tables


def _table(title: str, columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title), style="table.title")
    table = Table(title=heading, title_justify="left", show_header=columns is not None)
    for name in columns or ():
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # a name may hold rich's own brackets, or a terminal's
    return table


def _quality_row(row: dict[str, Any]) -> list[str]:
    mark = " (default)" if row["default"] else ""
    channels = ", ".join(map(str, row["channels"]))
    agreement = "–" if row["agreement"] is None else f"{100 * row['agreement']:.1f} %"
    measured = "–" if row["bytes"] is None else f"{row['bytes']:.1f}"
    sent = [f"{row['quality']}{mark}", channels, str(row["step"])]
    return [*sent, measured, str(row["ceiling_bytes"]), agreement, _number(row["output_error"])]


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['dtype']} {_shape((['batch'] if spec['batched'] else []) + list(spec['shape']))}"


def _shape(sizes: Sequence[object]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"


def _count(number: int | None) -> str:
    return "not stored" if number is None else f"{number:,}"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
