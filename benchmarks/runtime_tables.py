"""The tables of what a tail's runtimes cost: time, disk, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.markdown import result, source, table, whole

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RUNTIME_TABLES"]


def engines_table() -> str:
    """The same tail in each runtime."""
    head = ["tail", "backend", "batch", "median, ms", "times eager", "deviation", "compiling, s", "engine, MB"]
    cells = [
        [
            f"{row['model']} from {row['split']}, {row['codec']}",
            row["backend"],
            str(row["batch"]),
            f"{row['median_ms']:.1f}",
            f"{row['times_eager']:.2f}",
            "–" if row["deviation"] is None else f"{row['deviation']:.0e}",
            whole(row["compile_seconds"]),
            f"{row['engine_bytes'] / 1e6:.0f}",
        ]
        for row in result("engines")["rows"]
    ]
    return f"{table(head, cells)}\n\n{source('engines')}"


def shared_weights_table() -> str:
    """Tails of several split points, apart and together."""
    rows = result("shared_weights")["rows"]
    splits = [key.removeprefix("memory_bytes_") for key in rows[0] if key.startswith("memory_bytes_")]
    head = ["weights", "on disk, MB", *(f"memory with {split}, MB" for split in splits)]
    cells = [
        [row["weights"], whole(row["disk_bytes"] / 1e6), *(whole(row[f"memory_bytes_{name}"] / 1e6) for name in splits)]
        for row in rows
    ]
    return f"{table(head, cells)}\n\n{source('shared_weights')}"


def ray_table() -> str:
    """What became of the calls while a replica was killed."""
    [row] = result("ray_serve")["rows"]
    head = [
        "calls",
        "right",
        "wrong",
        "errors",
        "median, ms",
        "p99, ms",
        "longest around the kill, ms",
        "replaced after, s",
    ]
    numbers = [row[name] for name in ("calls", "right", "wrong", "errors")]
    times = [row[name] for name in ("median_ms", "p99_ms", "longest_around_the_kill_ms", "replacement_seconds")]
    return f"{table(head, [[*map(whole, numbers), *map(whole, times)]])}\n\n{source('ray_serve')}"


def deciding_table() -> str:
    """Each way over each link: what a call takes and keeps."""
    head = [
        "link",
        "KB/s",
        "round trip, ms",
        "way",
        "split point taken",
        "quality",
        "median, ms",
        "p90, ms",
        "answers kept",
    ]
    cells = [
        [*_link(row), row["way"], row["split"], str(row["quality"]), *_times(row)]
        for row in result("deciding")["rows"]
        if "settled_after_calls" not in row
    ]
    return f"{table(head, cells)}\n\n{source('deciding')}"


def changing_table() -> str:
    """A goal over a link that changes: how many calls until it has settled."""
    head = ["link", "KB/s", "round trip, ms", "split point taken", "quality", "median, ms", "p90, ms", "answers kept"]
    head += ["slowest, ms", "settled after calls"]
    cells = [
        [
            *_link(row),
            row["split"],
            str(row["quality"]),
            *_times(row),
            whole(row["slowest_ms"]),
            str(row["settled_after_calls"]),
        ]
        for row in result("deciding")["rows"]
        if "settled_after_calls" in row
    ]
    return f"{table(head, cells)}\n\n{source('deciding')}"


def _link(row: dict[str, Any]) -> list[str]:
    return [row["link"], whole(row["bytes_per_second"] / 1000), whole(row["round_trip_ms"])]


def _times(row: dict[str, Any]) -> list[str]:
    return [whole(row["median_ms"]), whole(row["p90_ms"]), f"{100 * row['agreement']:.0f} %"]


RUNTIME_TABLES: dict[str, Callable[[], str]] = {
    "deciding": deciding_table,
    "deciding-changes": changing_table,
    "engines": engines_table,
    "ray-serve": ray_table,
    "shared-weights": shared_weights_table,
}
