"""What a file of fitted bottlenecks holds, for `compoff inspect`: checked, and told without the model they are of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compoff.checkpoint import read_checkpoint
from compoff.operations.fit_figures import (
    GUARANTEE,
    MEASURED,
    MEASURED_ON,
    check_each,
    check_figures,
    count,
    facts_of,
    is_figure,
    quality_table,
    shape,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

__all__ = ["describe_bottlenecks", "tables_of"]

_CURE = "save again"
_PLAIN = ("path", "split", "codec", "base", "skips", "raw_bytes", "ceiling_bytes", "adapter_bytes")


def describe_bottlenecks(path: str | Path) -> list[dict[str, Any]]:
    """Say what is in a file that `Wrapped.save` wrote.

    Args:
        path: The file.

    Returns:
        For each split point its codec, the features that cross there, its weights, its qualities and what was measured.

    Raises:
        ArtifactError: The file is damaged or foreign, or reports what is no figure.
    """
    description, tensors, base = read_checkpoint(path)
    check_each(f"'{path}': description", description, ("options", "shapes", "reports"), _is_table, _CURE)
    shapes, reports = description["shapes"], {split: {} for split in description["shapes"]} | description["reports"]
    check_each(f"'{path}': shapes", shapes, tuple(shapes), _are_features, _CURE)
    check_each(f"'{path}': reports", reports, tuple(reports), _is_table, _CURE)
    for split, report in reports.items():
        _check_report(f"'{path}': reports.{split}", report)
    rest = {"skips": description.get("skips", "forbid"), "codec": description["options"].get("codec", "deepcod")}
    sizes = {"weights": sum(tensor.numel() for tensor in tensors.values()), "file_bytes": Path(path).stat().st_size}
    return [
        {
            "kind": "bottlenecks",
            "path": str(path),
            "split": split,
            "base": base,
            **rest,
            "features": [shapes[split]] if _are_sizes(shapes[split]) else shapes[split],  # the first files: one shape
            "qualities": _qualities(report),
            **{name: report.get(name) for name in ("raw_bytes", "ceiling_bytes", "adapter_bytes", "encoder_macs")},
            "guarantee": {name: report.get(name) for name in GUARANTEE},
            "measured": {name: report.get(name) for name in MEASURED_ON},
            **sizes,
        }
        for split, report in reports.items()
        if split in shapes
    ]


def _check_report(where: str, report: dict[str, Any]) -> None:
    check_figures(where, report, _CURE)
    for index, entry in enumerate(report.get("curve", [])):
        check_each(f"{where}.curve.{index}", entry, ("channels",), _are_sizes, _CURE)
        check_each(f"{where}.curve.{index}", entry, ("step",), is_figure, _CURE)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _are_features(value: Any) -> bool:
    return _are_sizes(value) or (isinstance(value, list) and all(map(_are_sizes, value)))  # pyright: ignore[reportUnknownArgumentType]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) for size in value)  # pyright: ignore[reportUnknownVariableType]


def _qualities(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured of each quality; nothing before a fit."""
    curve: list[dict[str, Any]] = report.get("curve", [])
    return [
        {
            "quality": index,
            "default": index == report.get("quality"),
            "channels": entry.get("channels", []),
            "step": entry.get("step", 1),
            "ceiling_bytes": entry.get("ceiling_bytes"),  # a file of an older version has none
            **{name: entry.get(name) for name in MEASURED},
        }
        for index, entry in enumerate(curve)
    ]


def tables_of(part: Mapping[str, Any]) -> list[Table]:
    """One split point as tables.

    Args:
        part: What `describe_bottlenecks` found of it.

    Returns:
        What it is, and its qualities.
    """
    facts = {name.replace("_", " "): str(part[name]) for name in _PLAIN if part[name] is not None}
    facts["features"] = ", ".join(map(shape, part["features"]))
    if any(row["static_bytes"] is not None for row in part["qualities"]):
        facts["symbols"] = "under context models"
    facts |= facts_of(part["guarantee"], part["measured"])
    if not part["qualities"]:
        facts["qualities"] = "not measured; compoff.fit does it, or compoff.finish after a loop of your own"
    facts |= {"weights in the file": count(part["weights"]), "bytes of the file": count(part["file_bytes"])}
    tables = [table(f"bottlenecks · {part['path']} · {part['split']}", None, [list(row) for row in facts.items()])]
    if part["qualities"]:
        # What a quality takes at most is for an export to say.
        tables.append(quality_table(part["qualities"], without=["at most"]))
    return tables
