"""Draws the tables of README and docs from ``benchmarks/results/*.json``, between markers: no number is typed.

python -m benchmarks.tables            rewrites the tables
python -m benchmarks.tables --check    says which files are out of date, and fails if one is
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cut_tables import CUT_TABLES
from benchmarks.device_tables import DEVICE_TABLES
from benchmarks.drop_tables import DROP_TABLES, one_fit
from benchmarks.markdown import result, source, system, table, whole
from benchmarks.rate_tables import RATE_TABLES
from benchmarks.runtime_tables import RUNTIME_TABLES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TABLES", "pages", "redrawn"]

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CIFAR = "cifar10-resnet56"
_SPLITS = ("input", "layer2", "layer3")


def points(row: dict[str, Any]) -> str:
    """A paired drop with its standard error."""
    return f"{row['drop']:.1f} ± {row['drop_stderr']:.1f}"


def over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several fits, one a seed, as their medians; those of one fit as they are."""
    fits: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        fits.setdefault((system(row), row["quality"]), []).append(row)
    numbers = ("bytes", "wire_bytes", "drop", "drop_stderr", "drop_top5", "agreement", "encode_ms")
    return [
        {**same[0], **{key: statistics.median(row[key] for row in same) for key in numbers if len(same) > 1}}
        for same in fits.values()
    ]


def rate_table(name: str) -> str:
    """Everything that one run measured at one split point."""
    rows = sorted(over_seeds(result(name)["rows"]), key=lambda row: row["bytes"])
    head = ["system", "bytes", "on the wire", "drop, points", "agreement", "encoder MACs", "encode, ms"]
    cells = [
        [
            system(row),
            whole(row["bytes"]),
            whole(row["wire_bytes"]),
            points(row),
            f"{100 * row['agreement']:.1f} %",
            whole(row["encoder_macs"]),
            "–" if row["encode_ms"] is None else f"{row['encode_ms']:.2f}",
        ]
        for row in rows
    ]
    return f"{table(head, cells)}\n\n{source(name)}"


def shifted_table(split: str) -> str:
    """What images that were spoilt on their way cost and lose."""
    rows = result(f"robustness.{_CIFAR}.{split}.transform")["rows"]
    head = ["images", "quality", "bytes", "largest", "limit", "drop, points", "agreement"]
    cells = [
        [
            row["condition"],
            str(row["quality"]),
            whole(row["bytes"]),
            whole(row["largest_bytes"]),
            whole(row["limit_bytes"]),
            points(row),
            f"{100 * row['agreement']:.1f} %",
        ]
        for row in rows
        if row["quality"] in (1, 3, 6)
    ]
    return f"{table(head, cells)}\n\n{source(f'robustness.{_CIFAR}.{split}.transform')}"


def coding_table() -> str:
    """How fast and how close to the entropy the coders are."""
    rows = result("coding")["rows"]
    head = ["coder", "channels × positions", "encode, ms", "decode, ms", "bytes", "cross-entropy, bytes"]
    cells = [
        [
            row["coder"],
            f"{row['channels']} × {row['positions']}",
            f"{row['encode_ms']:.2f}",
            f"{row['decode_ms']:.2f}",
            f"{row['bytes']:,.1f}",
            f"{row['cross_entropy_bytes']:,.1f}",
        ]
        for row in rows
    ]
    return f"{table(head, cells)}\n\n{source('coding')}"


def wire_table(name: str) -> str:
    """What one request costs, by client, with the times of an empty tail."""
    rows = result(name)["rows"]
    head = ["client", "security", "bytes up / down", "bytes beyond", "p50, µs", "p99, µs"]
    cells = [
        [
            row["client"],
            row["security"],
            f"{row['bytes_up']:,} / {row['bytes_down']:,}",
            str(row["overhead_bytes"]),
            f"{row['p50_us']:.0f}",
            f"{row['p99_us']:.0f}",
        ]
        for row in rows
    ]
    return f"{table(head, cells)}\n\n{source(name)}"


def peers_table() -> str:
    """The wire beside what others would use."""
    rows = result("peers")["rows"]
    head = ["system", "bytes up / down", "p50, µs", "p99, µs", "p50 ÷ compoff's", "server CPU, µs a request"]
    cells = [
        [
            row["system"],
            f"{row['bytes_up']:,} / {row['bytes_down']:,}",
            f"{row['p50_us']:.0f}",
            f"{row['p99_us']:.0f}",
            f"{row['times_compoff']:.2f}",
            f"{row['server_cpu_us_per_request']:.0f}",
        ]
        for row in rows
    ]
    return f"{table(head, cells)}\n\n{source('peers')} · {rows[0]['libraries']}"


def throughput_table() -> str:
    """Many devices on one server process."""
    head = [
        "tail",
        "security",
        "devices",
        "batch ≤",
        "in a batch",
        "requests/s",
        "p50, ms",
        "p99, ms",
        "CPU, µs a request",
    ]
    cells = [
        [
            row["tail"],
            row["security"],
            str(row["devices"]),
            str(row["max_batch"]),
            f"{row.get('requests_per_batch', 1):.1f}",
            f"{row['requests_per_second']:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            whole(row["server_cpu_us_per_request"]),
        ]
        for row in result("throughput")["rows"]
    ]
    return f"{table(head, cells)}\n\n{source('throughput')}"


def faults_table() -> str:
    """What became of the calls while things went wrong."""
    head = [
        "fault",
        "times",
        "calls",
        "wrong, late or foreign error",
        "from the edge",
        "from the device",
        "error",
        "local calls answered",
        "latest after its deadline, ms",
        "longest standstill of the machine, ms",
        "edge back after, ms (p50, max)",
    ]
    return f"{table(head, [_fault_cells(row) for row in result('faults')['rows']])}\n\n{source('faults')}"


def _fault_cells(row: dict[str, Any]) -> list[str]:
    outcomes = {key: count for key, count in row.items() if ": " in key}
    edge, device = (
        sum(count for key, count in outcomes.items() if key.endswith(f": {end}")) for end in ("edge", "local")
    )
    local = {key: count for key, count in outcomes.items() if key.startswith("local: ")}
    answered = local.get("local: edge", 0) + local.get("local: local", 0)
    return [
        row["fault"],
        whole(row["faults"]),
        whole(row["calls"]),
        whole(row["wrong_or_late"]),
        whole(edge),
        whole(device),
        whole(row["calls"] - edge - device),
        f"{answered:,} of {sum(local.values()):,}",
        f"{max(0.0, row['latest_after_deadline_ms']):.0f}",
        whole(row["longest_standstill_ms"]),
        f"{row['recovery_p50_ms']:,}, {row['recovery_max_ms']:,}",
    ]


def soak_table() -> str:
    """What became of a million requests."""
    [row] = result("soak")["rows"]
    names = ("requests", "right", "wrong", "late", "canceled", "busy")
    cells = [whole(row[name]) for name in names]
    growth = [f"{100 * row[f'{end}_memory_growth']:.1f} %" for end in ("server", "client")]
    head = [*names, "server memory growth", "client memory growth"]
    return f"{table(head, [[*cells, *growth]])}\n\n{source('soak')}"


def hostile_table() -> str:
    """A good client under attack."""
    head = ["attack", "connections", "p50 quiet → attacked, ms", "p99 quiet → attacked, ms", "p99 ratio", "memory, MiB"]
    cells = [
        [
            row["attack"],
            whole(row["connections"]),
            f"{row['quiet_p50_ms']:.2f} → {row['attacked_p50_ms']:.2f}",
            f"{row['quiet_p99_ms']:.2f} → {row['attacked_p99_ms']:.2f}",
            f"{row['p99_ratio']:.1f}",
            f"{row['memory_growth_mib']:+.1f}",
        ]
        for row in result("hostile")["rows"]
    ]
    return f"{table(head, cells)}\n\n{source('hostile')}"


def fuzz_table() -> str:
    """How much of what no peer would send was sent."""
    [row] = result("fuzz")["rows"]
    names = ("frames", "inputs", "corpus", "seconds")
    return f"{table(list(names), [[whole(row[name]) for name in names]])}\n\n{source('fuzz')}"


TABLES: dict[str, Callable[[], str]] = {
    **CUT_TABLES,
    **DROP_TABLES,
    **RATE_TABLES,
    **DEVICE_TABLES,
    **RUNTIME_TABLES,
    **{f"rate-{split}": partial(rate_table, f"rate_accuracy.{_CIFAR}.{split}") for split in _SPLITS},
    **{f"once-{split}": partial(rate_table, one_fit(split)) for split in _SPLITS},
    "once-layer3-long": partial(rate_table, f"{one_fit('layer3')}.long"),
    **{f"shifted-{split}": partial(shifted_table, split) for split in _SPLITS},
    "coding": coding_table,
    "faults": faults_table,
    "fuzz": fuzz_table,
    "hostile": hostile_table,
    "loopback": lambda: wire_table("loopback"),
    "remote": lambda: wire_table("remote"),
    "peers": peers_table,
    "soak": soak_table,
    "throughput": throughput_table,
}


def redrawn(text: str) -> str:
    """A page with every table drawn anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def pages() -> list[str]:
    """The pages that have such tables, as paths from the root."""
    every = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]
    return [page.relative_to(_ROOT).as_posix() for page in every if _BLOCK.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale: list[str] = []
    for name in pages():
        page = _ROOT / name
        before = page.read_text()
        after = redrawn(before)
        if after != before:
            stale.append(name)
            if not options.check:
                page.write_text(after)
    print(f"{'out of date' if options.check else 'rewritten'}: {', '.join(stale) or 'none'}")
    sys.exit(1 if stale and options.check else 0)


if __name__ == "__main__":
    main()
