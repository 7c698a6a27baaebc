"""Results as Markdown: what the tables of every benchmark share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["exists", "matching", "result", "source", "sources", "system", "table", "whole"]

_RESULTS = Path(__file__).resolve().parent / "results"


def exists(name: str) -> bool:
    """Whether there is a file of results."""
    return (_RESULTS / f"{name}.json").exists()


def matching(pattern: str) -> list[str]:
    """Names of the files of results that match a pattern."""
    return sorted(path.stem for path in _RESULTS.glob(f"{pattern}.json"))


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
    changed = "+"[: content["commit"].endswith("+")]  # the tree held changes that were not committed
    return (
        f"`{content['command']}` · {machine['gpu'] or machine['cpu']}, {machine['cores']} cores · torch "
        f"{content['versions']['torch']} · commit {content['commit'][:8]}{changed} · {content['date']}"
    )


def sources(names: list[str]) -> str:
    """Where a table of several results comes from, folded up: the commands are long, and nobody reads all of them."""
    lines = "\n".join(f"- {source(name)}" for name in names)
    told = f"<summary>{len(names)} commands make these figures again</summary>"
    return f"<details markdown>\n{told}\n\n{lines}\n\n</details>"


def whole(value: float | None) -> str:
    """A number without decimals, in groups of three."""
    return "–" if value is None else f"{value:,.0f}"


def system(row: dict[str, Any]) -> str:
    """A system with the setting that makes the row."""
    if row["system"] == "compoff":
        return f"transform, quality {row['quality']}"
    if row["system"] == "deepcod":
        return f"deepcod, {row.get('channels', row['quality'])} channels"
    if row["system"] == "opus":
        return f"opus, {row['quality']} kbit/s"
    return f"{row['system']} {row['quality']}" if row["system"] in ("jpeg", "webp") else row["system"]
