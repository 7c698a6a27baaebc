"""The tables of the architectures: what crosses each cut, and what wrapping and cutting change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.markdown import result, source, table, whole

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CUT_TABLES"]


def architectures_table() -> str:
    """Every cut of every architecture, one row a cut."""
    rows = result("architectures")["rows"]
    head = ["architecture", "split point", "codes", "beside", "bytes raw", "cut alone", "stranger", "socket"]
    return f"{table([*head, 'gradient', 'unchanged'], [_cut_cells(row) for row in rows])}\n\n{source('architectures')}"


def _cut_cells(row: dict[str, Any]) -> list[str]:
    """One cut; what was not reached because something before it failed is a question mark."""
    raw = sum(row.get(name, 0) for name in ("code_bytes", "raw_bytes", "side_bytes"))
    alone = [row.get("bypass_gap"), row.get("program_gap")]
    return [
        row["architecture"] + _instance(row),
        f"`{row['split']}`",
        str(row.get("codes", "?")),
        str(row["raw"] + row["sides"]) if "sides" in row else "?",
        whole(raw) if "codes" in row else "?",
        gap(max((value for value in alone if isinstance(value, float)), default=None)),
        gap(row.get("stranger_gap")) + (" (eager tail)" if row.get("tail") == "model" else ""),
        gap(row.get("socket_gap")),
        "yes" if row.get("gradient") else "**no**",
        "yes" if row.get("unchanged") else "**no**",
    ]


def _instance(row: dict[str, Any]) -> str:
    """What was cut, where it is not the small instance."""
    if row["instance"] == "small":
        return ""
    return ", as it is, real weights" if row["weights"] == "real" else ", as it is"


def gap(value: Any) -> str:
    """A difference; bold where it is larger than it may be."""
    if not isinstance(value, float):
        return "–" if value is None else f"**{value}**"
    text = "0" if value == 0 else f"{value:.0e}"
    return text if value <= 1e-5 else f"**{text}**"


def architectures_summary() -> str:
    """How many cuts, and how many of them hold what was looked at."""
    rows = result("architectures")["rows"]
    names = {row["architecture"] for row in rows}
    wrapped = [
        row for row in rows if row["gradient"] and row["unchanged"] and not row["error"] and small(row, "bypass_gap")
    ]
    shipped = [row for row in rows if row.get("stranger_gap") is not None]
    same = [row for row in shipped if small(row, "stranger_gap") and small(row, "socket_gap")]
    return (
        f"{len(names)} architectures, {len(rows)} cuts. Wrapped: {len(wrapped)} of {len(rows)} hold everything that is "
        f"looked at. Shipped: {len(shipped)} of {len(rows)} so far, in {len({row['architecture'] for row in shipped})} "
        f"architectures, and {len(same)} of these {len(shipped)} answer as the wrapped model does."
    )


def small(row: dict[str, Any], name: str) -> bool:
    """Whether a difference was measured and is as small as it must be."""
    return isinstance(row.get(name), float) and row[name] <= 1e-5


def wrapping_table() -> str:
    """What wrapping costs while no bottleneck is on."""
    rows = [row for row in result("wrapping")["rows"] if row["measured"] == "teacher"]
    head = ["model", "split points", "forward, ms", "wrapped, µs more", "%", "quartiles, %"]
    cells = [
        [
            row["architecture"],
            str(row["split_points"]),
            f"{row['plain_ms']:.1f}",
            f"{row['overhead_us']:.0f}",
            f"{row['overhead_percent']:+.2f}",
            f"{row['overhead_low_percent']:+.2f} to {row['overhead_high_percent']:+.2f}",
        ]
        for row in rows
    ]
    listed = next(row for row in result("wrapping")["rows"] if row["measured"] == "list_split_points")
    took = (
        f"{listed['median_seconds']:.1f} s (median of {listed['runs']}; the slowest {listed['largest_seconds']:.1f} s)"
    )
    told = f"`list_split_points` finds the {listed['found']} clean split points of {listed['architecture']} in {took}."
    return f"{table(head, cells)}\n\n{told}\n\n{source('wrapping')}"


CUT_TABLES: dict[str, Callable[[], str]] = {
    "architectures": architectures_table,
    "architectures-summary": architectures_summary,
    "wrapping": wrapping_table,
}
