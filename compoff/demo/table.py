"""The one table, for the terminal: its columns, its cells, and the notes that belong under it.

Takes the dict of ``results.json``; the report shows the same cells and notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.wire.frames import OVERHEAD_BYTES

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DROP_LIMIT", "cells", "describe_link", "headers", "notes", "print_table"]

DROP_LIMIT = 2.0
"""Points of drop up to which a way is named as the fastest."""

_WIDE = 100  # characters from which on the columns get room between them


def headers(results: dict[str, Any]) -> list[str]:
    """Titles of the columns, the unit in a second line.

    Args:
        results: What ``results.json`` holds.

    Returns:
        One title a column.
    """
    fixed = ["", "accuracy\n%", "drop\npoints", "bytes\nup", "device\nms", "loopback\nms"]
    return [*fixed, *(f"{link['name']}\nms" for link in results["links"])]


def cells(row: dict[str, Any]) -> list[str]:
    """One row as text.

    Args:
        row: One of the rows of ``results.json``.

    Returns:
        One cell a column.

    Examples:
        >>> row = {"label": "send PNG", "accuracy": 98.5, "drop": -0.04, "drop_stderr": 0.1, "bytes_up": 130.4,
        ...        "device_ms": 0.051, "loopback_ms": 1.24, "link_ms": {"LTE": 51.26}}
        >>> cells(row)
        ['send PNG', '98.5', '0.0 ± 0.1', '130', '0.05', '1.2', '51']

    Source: this project.
    """
    drop = f"{row['drop']:.1f}".replace("-0.0", "0.0")
    times = [row["device_ms"], row["loopback_ms"], *row["link_ms"].values()]
    return [
        row["label"],
        f"{row['accuracy']:.1f}",
        f"{drop} ± {row['drop_stderr']:.1f}",
        f"{row['bytes_up']:.0f}",
        *(_milliseconds(value) for value in times),
    ]


def _milliseconds(value: float) -> str:
    """Two digits that count."""
    if value < 0.01:
        return "<0.01"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know to judge the table.

    Args:
        results: What ``results.json`` holds.

    Returns:
        Sentences, one thought each.
    """
    rows = results["rows"]
    replies = sorted({f"{row['bytes_down']:.0f}" for row in rows if row["bytes_up"]})
    return [
        f"Time on a link = {results['formula']}. {'; '.join(describe_link(link) for link in results['links'])}. "
        "By arithmetic from the times measured here; no link was emulated.",
        f"Bytes are means and include {OVERHEAD_BYTES} of framing; a reply takes {' or '.join(replies)}. "
        "Times are medians. Edge time runs from sending to the answer, over a loopback socket to a second process.",
        f"Drop: accuracy lost against the unmodified network on the same {rows[0]['images']} images, ± standard error.",
        "Device and edge are both this machine, one thread each: on a weaker device the device column grows, "
        "most of all for the whole network.",
        results["note"],
        *_fastest(results),
    ]


def describe_link(link: dict[str, Any]) -> str:
    """Say what a link is.

    Args:
        link: One of the links of ``results.json``.

    Returns:
        Its rate and round trip, after its name where that is not the rate.

    Examples:
        >>> describe_link({"name": "LTE", "bits_per_second": 20e6, "round_trip_seconds": 0.05})
        'LTE: 20 Mbit/s, 50 ms round trip'

    Source: this project.
    """
    rate = f"{link['bits_per_second'] / 1e6:g} Mbit/s"
    name = "" if link["name"] == rate else f"{link['name']}: "
    return f"{name}{rate}, {1000 * link['round_trip_seconds']:g} ms round trip"


def _fastest(results: dict[str, Any]) -> list[str]:
    """Which way wins on each link, as the figures have it."""
    good = [row for row in results["rows"] if row["drop"] <= DROP_LIMIT]
    sending = [row for row in good if row["bytes_up"]]
    if not sending:
        return [f"No way that sends anything stays within {DROP_LIMIT:g} points of drop."]
    told: list[str] = []
    for link in results["links"]:
        name = link["name"]
        first, sender = (min(rows, key=lambda row: row["link_ms"][name]) for rows in (good, sending))
        beside = "" if sender is first else f", then of those that send: {_timed(sender, name)}"
        told.append(f"{name}: {_timed(first, name)}{beside}")
    fewest = min(sending, key=lambda row: row["bytes_up"])
    return [
        f"Fewest bytes within {DROP_LIMIT:g} points of drop: {fewest['label']} ({fewest['bytes_up']:.0f}).",
        f"Fastest here within {DROP_LIMIT:g} points of drop. {'. '.join(told)}.",
    ]


def _timed(row: dict[str, Any], link: str) -> str:
    return f"{row['label']} ({_milliseconds(row['link_ms'][link])} ms)"


def print_table(results: dict[str, Any], console: Console) -> None:
    """Print the table and its notes.

    Args:
        results: What ``results.json`` holds.
        console: Where to print.
    """
    from rich import box  # the demo's extra
    from rich.table import Table

    gap = 1 if console.width >= _WIDE else 0
    table = Table(title=results["title"], title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap))
    for position, title in enumerate(headers(results)):
        table.add_column(title, justify="right" if position else "left", no_wrap=True)
    for row in results["rows"]:
        table.add_row(*cells(row), style="bold" if row["system"] == "compoff" else None)
    # Never narrower than its figures: a wrapped line can be read, a cut figure cannot.
    table.width = max(console.measure(table, options=console.options.update(width=10 * _WIDE)).maximum, 1)
    console.print(table, crop=False, no_wrap=True, overflow="ignore")
    for note in notes(results):
        console.print(f"• {note}", style="dim", highlight=False, markup=False)
