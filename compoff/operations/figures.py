"""A server's figures in the form that is shown: totals of all its processes, and what happened in the last seconds.

Plain numbers, strings, lists and dictionaries, so that they go through JSON to a page, a terminal or another process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from compoff.edge.stats import Histogram

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from compoff.edge.stats import ServerStats, TailStats

__all__ = [
    "Figures",
    "Live",
    "TailFigures",
    "TailName",
    "add_live",
    "behind",
    "counted_only",
    "figures_of",
    "merge",
    "only",
]


class TailName(TypedDict):
    """What people call a tail."""

    model: str
    split: str


class Live(TypedDict):
    """What happened in the last seconds: counts and bytes a second, times in seconds."""

    requests: float
    replies: float
    errors: float
    bytes_in: float
    bytes_out: float
    busy: float
    mean_batch: float
    p50: float
    p90: float
    p99: float


class TailFigures(TypedDict):
    """One tail, since the server started; ``live`` is filled in where somebody looks on."""

    artifact: str
    model: str
    split: str
    requests: int
    replies: int
    errors: dict[str, int]
    bytes_in: int
    bytes_out: int
    waiting: int
    running: int
    busy_seconds: float
    latency_counts: list[int]
    latency_seconds: float
    batch_sizes: dict[str, int]
    live: Live | None


class Figures(TypedDict):
    """A server: all its processes together."""

    uptime: float
    processes: int
    ready: bool
    connections: int
    accepted: int
    refused: int
    pending: int
    held_bytes: int
    unread_bytes: int
    tails: list[TailFigures]


def figures_of(stats: ServerStats, names: Mapping[bytes, TailName]) -> Figures:
    """The figures of one process.

    Args:
        stats: What its server counted.
        names: What the tails are called.
    """
    return {
        "uptime": stats.uptime,
        "processes": 1,
        "ready": True,
        "connections": stats.connections,
        "accepted": stats.accepted,
        "refused": stats.refused,
        "pending": stats.pending,
        "held_bytes": stats.held_bytes,
        "unread_bytes": stats.unread_bytes,
        "tails": [_tail(tail, names.get(tail.artifact_id, {"model": "", "split": ""})) for tail in stats.tails],
    }


def _tail(tail: TailStats, name: TailName) -> TailFigures:
    return {
        "artifact": tail.artifact_id.hex()[:8],
        "model": name["model"],
        "split": name["split"],
        "requests": tail.requests,
        "replies": tail.replies,
        "errors": dict(tail.errors),
        "bytes_in": tail.bytes_in,
        "bytes_out": tail.bytes_out,
        "waiting": tail.waiting,
        "running": tail.running,
        "busy_seconds": tail.busy_seconds,
        "latency_counts": list(tail.latency.counts),
        "latency_seconds": tail.latency.total,
        "batch_sizes": {str(size): count for size, count in sorted(tail.batch_sizes.items())},
        "live": None,
    }


def counted_only(figures: Figures) -> Figures:
    """What stays of the figures of a process that has ended: what it counted, and nothing that it held.

    Args:
        figures: As it told them last.

    Returns:
        The same without its age, connections, waiting requests and bytes held.
    """
    held: Figures = {**figures, "uptime": 0.0, "connections": 0, "pending": 0, "held_bytes": 0, "unread_bytes": 0}
    return {**held, "tails": [{**tail, "waiting": 0, "running": 0} for tail in figures["tails"]]}


def only(figures: Figures, artifacts: Container[str]) -> Figures:
    """The figures without the tails of other artifacts than these.

    Args:
        figures: The figures.
        artifacts: Names of artifacts, as figures have them.

    Returns:
        The rest.
    """
    return {**figures, "tails": [tail for tail in figures["tails"] if tail["artifact"] in artifacts]}


def behind(fronts: Figures, keeper: Figures) -> Figures:
    """The figures of fronts, where those of the process that holds the tails say more.

    A front counts devices, requests and bytes; what it takes for a tail is a connection to the keeper, so that how busy
    the tail is, and what goes together through it, is only known there.

    Args:
        fronts: Of all fronts together.
        keeper: Of the process that holds the tails.

    Returns:
        Both as one server's.
    """
    there = {tail["artifact"]: tail for tail in keeper["tails"]}
    tails: list[TailFigures] = []
    for tail in fronts["tails"]:
        held = there.get(tail["artifact"]) or _nothing(tail)
        tails.append(
            {
                **tail,
                "waiting": tail["waiting"] + held["waiting"],
                "running": held["running"],
                "busy_seconds": held["busy_seconds"],
                "batch_sizes": held["batch_sizes"],
            }
        )
    return {**fronts, "tails": tails}


def merge(parts: Sequence[Figures], *, processes: int) -> Figures:
    """The figures of several processes as those of one server.

    Args:
        parts: One for each process that answered.
        processes: How many there should be.

    Returns:
        Sums; ready where every process is.
    """
    tails: dict[str, TailFigures] = {}
    for part in parts:
        for tail in part["tails"]:
            found = tails.get(tail["artifact"])
            tails[tail["artifact"]] = tail if found is None else _sum(found, tail)
    return {
        "uptime": max((part["uptime"] for part in parts), default=0.0),
        "processes": len(parts),
        "ready": len(parts) == processes and all(part["ready"] for part in parts),
        "connections": sum(part["connections"] for part in parts),
        "accepted": sum(part["accepted"] for part in parts),
        "refused": sum(part["refused"] for part in parts),
        "pending": sum(part["pending"] for part in parts),
        "held_bytes": sum(part["held_bytes"] for part in parts),
        "unread_bytes": sum(part["unread_bytes"] for part in parts),
        "tails": list(tails.values()),
    }


def _sum(one: TailFigures, other: TailFigures) -> TailFigures:
    return {
        "artifact": one["artifact"],
        "model": one["model"],
        "split": one["split"],
        "requests": one["requests"] + other["requests"],
        "replies": one["replies"] + other["replies"],
        "errors": _sum_counts(one["errors"], other["errors"]),
        "bytes_in": one["bytes_in"] + other["bytes_in"],
        "bytes_out": one["bytes_out"] + other["bytes_out"],
        "waiting": one["waiting"] + other["waiting"],
        "running": one["running"] + other["running"],
        "busy_seconds": one["busy_seconds"] + other["busy_seconds"],
        "latency_counts": [a + b for a, b in zip(one["latency_counts"], other["latency_counts"], strict=True)],
        "latency_seconds": one["latency_seconds"] + other["latency_seconds"],
        "batch_sizes": _sum_counts(one["batch_sizes"], other["batch_sizes"]),
        "live": None,
    }


def _sum_counts(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}


def add_live(now: Figures, before: Figures | None, seconds: float) -> Figures:
    """The same figures with what happened since an earlier look.

    Args:
        now: The figures now.
        before: The figures then; None where there was no look yet.
        seconds: The time between.

    Returns:
        The figures with ``live`` for each tail. A process that was started anew since then counts from nothing.
    """
    earlier = {tail["artifact"]: tail for tail in (now if before is None else before)["tails"]}
    tails: list[TailFigures] = []
    for tail in now["tails"]:
        live = _live(tail, earlier.get(tail["artifact"]), seconds)
        tails.append({**tail, "live": live})
    return {**now, "tails": tails}


def _live(tail: TailFigures, before: TailFigures | None, seconds: float) -> Live:
    def rate(now: float, then: float) -> float:
        return max(0.0, now - then) / seconds if seconds > 0 else 0.0

    then = _nothing(tail) if before is None else before
    counts = [max(0, a - b) for a, b in zip(tail["latency_counts"], then["latency_counts"], strict=True)]
    latency = Histogram(tuple(counts), 0.0)
    batches = {
        int(size): max(0, count - then["batch_sizes"].get(size, 0)) for size, count in tail["batch_sizes"].items()
    }
    return {
        "requests": rate(tail["requests"], then["requests"]),
        "replies": rate(tail["replies"], then["replies"]),
        "errors": rate(_total(tail["errors"].values()), _total(then["errors"].values())),
        "bytes_in": rate(tail["bytes_in"], then["bytes_in"]),
        "bytes_out": rate(tail["bytes_out"], then["bytes_out"]),
        "busy": rate(tail["busy_seconds"], then["busy_seconds"]),
        "mean_batch": _total(size * count for size, count in batches.items()) / max(1, _total(batches.values())),
        "p50": latency.percentile(50),
        "p90": latency.percentile(90),
        "p99": latency.percentile(99),
    }


def _nothing(tail: TailFigures) -> TailFigures:
    """A tail that has counted nothing and holds nothing: it is not served there, or was not at the earlier look."""
    return {
        **tail,
        "requests": 0,
        "replies": 0,
        "errors": {},
        "bytes_in": 0,
        "bytes_out": 0,
        "waiting": 0,
        "running": 0,
        "busy_seconds": 0.0,
        "latency_counts": [0] * len(tail["latency_counts"]),
        "latency_seconds": 0.0,
        "batch_sizes": {},
    }


def _total(counts: Iterable[int]) -> int:
    return sum(counts)
