"""The tables of the device side: heads in each runtime, what int8 costs, sizes and starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.markdown import result, source, table, whole

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DEVICE_TABLES"]


def heads_table() -> str:
    """A head in each runtime."""
    head = [
        "codec",
        "channels",
        "payload, bytes",
        "runtime",
        "program, ms",
        "torch ÷ this",
        "coder and checks, ms",
        "codec's share",
        "file, KB",
    ]
    cells = [
        [
            row["codec"],
            str(row["channels"]),
            whole(row["payload_bytes"]),
            row["runtime"],
            f"{row['program_ms']:.1f}",
            f"{row['times_torch']:.2f}",
            f"{row['coder_ms']:.2f}",
            "–" if row["codec_share"] is None else f"{100 * row['codec_share']:.1f} %",
            whole(row["file_bytes"] / 1e3),
        ]
        for row in result("heads")["rows"]
    ]
    return f"{table(head, cells)}\n\n{source('heads')}"


def heads_task_table() -> str:
    """What changes for the task."""
    head = [
        "runtime",
        "quality",
        "images × views",
        "bytes",
        "symbols changed, of a million",
        "payloads equal",
        "drop, points",
        "extra drop, points",
        "same answer as torch's head",
    ]
    cells = [
        [
            row["runtime"],
            str(row["quality"]),
            f"{row['images']:,} × {row['views']}",
            whole(row["bytes"]),
            f"{1e6 * row['symbols_changed']:,.1f}",
            f"{100 * row['payloads_equal']:.1f} %",
            f"{row['drop']:.1f}",
            f"{row['extra_drop']:.2f} ± {row['extra_drop_stderr']:.2f}",
            f"{100 * row['agreement']:.1f} %",
        ]
        for row in result("heads.task")["rows"]
    ]
    return f"{table(head, cells)}\n\n{source('heads.task')}"


def device_size_table() -> str:
    """Sizes and starts of a device without torch."""
    head = ["", "MB", "import, ms", "load, ms", "first payload, ms", "cold start, ms", "slowest, ms", "memory, MB"]
    keys = ("import_ms", "load_ms", "first_payload_ms", "cold_start_ms", "slowest_cold_start_ms", "peak_rss_mb")
    cells = [[row["what"], f"{row['mb']:.1f}", *(_rounded(row, key) for key in keys)] for row in _sizes()]
    return f"{table(head, cells)}\n\n{source('device_size')}"


def _sizes() -> list[dict[str, Any]]:
    return result("device_size")["rows"]


def _rounded(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.0f}" if key in row else "–"


DEVICE_TABLES: dict[str, Callable[[], str]] = {
    "device-size": device_size_table,
    "heads": heads_table,
    "heads-task": heads_task_table,
}
