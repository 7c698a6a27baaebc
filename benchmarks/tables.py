"""Draws the tables of README and docs from ``benchmarks/results/*.json``, between markers: no number is typed.

python -m benchmarks.tables            rewrites the tables
python -m benchmarks.tables --check    says which files are out of date, and fails if one is
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TABLES", "redrawn"]

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_PAGES = ("README.md", "docs/benchmarks.md")
_BLOCK = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CIFAR = "cifar10-resnet56"


def result(name: str) -> dict[str, Any]:
    """One file of results."""
    return json.loads((_RESULTS / f"{name}.json").read_text())


def table(head: list[str], rows: list[list[str]]) -> str:
    """Rows as Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source(name: str) -> str:
    """Where a table comes from: its command, machine and commit."""
    content = result(name)
    machine = content["hardware"]
    return (
        f"`{content['command']}` · {machine['gpu'] or machine['cpu']}, {machine['cores']} cores · torch "
        f"{content['versions']['torch']} · commit {content['commit'][:8]} · {content['date']}"
    )


def points(row: dict[str, Any]) -> str:
    """A paired drop with its standard error."""
    return f"{row['drop']:.1f} ± {row['drop_stderr']:.1f}"


def whole(value: float | None) -> str:
    """A number without decimals, in groups of three."""
    return "–" if value is None else f"{value:,.0f}"


def rate_table(split: str) -> str:
    """Everything that was measured at one split point."""
    name = f"rate_accuracy.{_CIFAR}.{split}"
    rows = sorted(result(name)["rows"], key=lambda row: row["bytes"])
    head = ["system", "bytes", "on the wire", "drop, points", "agreement", "encoder MACs", "encode, ms"]
    cells = [
        [
            _system(row),
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


def _system(row: dict[str, Any]) -> str:
    """A system with the setting that makes the row."""
    if "channels" in row:
        return f"compoff, {row['channels']} channels × {row['centers']} centers"
    return f"{row['system']} {row['quality']}" if row["system"] in ("jpeg", "webp") else row["system"]


def fewest_bytes(rows: list[dict[str, Any]], ours: bool, limit: float) -> str:
    """The row with the fewest bytes within a drop, as a cell."""
    fitting = [row for row in rows if ("channels" in row) is ours and row["drop"] <= limit]
    if not fitting:
        return "–"
    row = min(fitting, key=lambda row: row["bytes"])
    return whole(row["bytes"]) + ("" if ours else f" ({_system(row)})")


def at_drop_table() -> str:
    """Fewest bytes within 1, 2 and 5 points of drop, at each split point, beside the best that is not learned."""
    cells: list[list[str]] = []
    for split in ("input", "layer2", "layer3"):
        rows = result(f"rate_accuracy.{_CIFAR}.{split}")["rows"]
        cells += [
            [split, f"≤ {limit}", fewest_bytes(rows, True, limit), fewest_bytes(rows, False, limit)]
            for limit in (1, 2, 5)
        ]
    head = ["split point", "drop, points", "compoff, bytes", "best without a learned codec, bytes"]
    made = source(f"rate_accuracy.{_CIFAR}.layer3")
    return f"{table(head, cells)}\n\nCIFAR-10, ResNet-56; {made} (and the other split points)"


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


def loopback_table() -> str:
    """What the wire costs beside an empty tail."""
    rows = result("loopback")["rows"]
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
    return f"{table(head, cells)}\n\n{source('loopback')}"


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
    "at-drop": at_drop_table,
    "rate-input": lambda: rate_table("input"),
    "rate-layer2": lambda: rate_table("layer2"),
    "rate-layer3": lambda: rate_table("layer3"),
    "coding": coding_table,
    "fuzz": fuzz_table,
    "hostile": hostile_table,
    "loopback": loopback_table,
    "peers": peers_table,
    "soak": soak_table,
    "throughput": throughput_table,
}


def redrawn(text: str) -> str:
    """A page with every table drawn anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def main() -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale: list[str] = []
    for name in _PAGES:
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
