"""A server's figures as Prometheus reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.edge.stats import LATENCY_BOUNDS
from compoff.errors import BackendError

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise BackendError('metrics need prometheus-client: pip install "compoff[metrics]"') from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from compoff.operations.figures import Figures, TailFigures

__all__ = ["CONTENT_TYPE_LATEST", "exposition"]

_LABELS = ("artifact", "model", "split")


def exposition(figures: Figures) -> bytes:
    """What Prometheus gets when it asks.

    Args:
        figures: The server's figures.

    Returns:
        The text, in UTF-8, of the type ``CONTENT_TYPE_LATEST``.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(figures))
    return generate_latest(registry)


class _Once(Collector):
    """The figures of one moment."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield GaugeMetricFamily("compoff_ready", "Whether every process of the server answers", float(figures["ready"]))
        yield GaugeMetricFamily("compoff_uptime_seconds", "Time since the server listens", figures["uptime"])
        yield GaugeMetricFamily("compoff_processes", "Server processes that answer", figures["processes"])
        yield GaugeMetricFamily("compoff_connections", "Clients connected now", figures["connections"])
        yield CounterMetricFamily("compoff_connections_accepted", "Connections taken", figures["accepted"])
        yield CounterMetricFamily(
            "compoff_connections_refused",
            "Connections closed for what they sent, or for want of room",
            figures["refused"],
        )
        yield GaugeMetricFamily("compoff_pending_requests", "Requests taken and not answered", figures["pending"])
        yield GaugeMetricFamily(
            "compoff_held_bytes", "Payloads that wait and messages half received", figures["held_bytes"]
        )
        yield GaugeMetricFamily(
            "compoff_unread_bytes", "Answers written that clients have not taken", figures["unread_bytes"]
        )
        yield from _of_tails(figures["tails"])


def _of_tails(tails: list[TailFigures]) -> Iterator[Metric]:
    requests = CounterMetricFamily("compoff_requests", "Requests taken", labels=_LABELS)
    replies = CounterMetricFamily("compoff_replies", "Requests that the tail answered", labels=_LABELS)
    errors = CounterMetricFamily("compoff_errors", "Requests answered by an error", labels=(*_LABELS, "error"))
    received = CounterMetricFamily("compoff_received_bytes", "Payload bytes taken", labels=_LABELS)
    sent = CounterMetricFamily("compoff_sent_bytes", "Reply bytes given", labels=_LABELS)
    waiting = GaugeMetricFamily("compoff_waiting_requests", "Requests that wait for their turn", labels=_LABELS)
    busy = CounterMetricFamily("compoff_tail_busy_seconds", "Time spent in the tail", labels=_LABELS)
    latency = HistogramMetricFamily("compoff_latency_seconds", "From arrival to reply", labels=_LABELS)
    batches = HistogramMetricFamily("compoff_batch_requests", "Requests that ran as one batch", labels=_LABELS)
    for tail in tails:
        names = [tail["artifact"], tail["model"], tail["split"]]
        requests.add_metric(names, tail["requests"])
        replies.add_metric(names, tail["replies"])
        for error, count in tail["errors"].items():
            errors.add_metric([*names, error], count)
        received.add_metric(names, tail["bytes_in"])
        sent.add_metric(names, tail["bytes_out"])
        waiting.add_metric(names, tail["waiting"])
        busy.add_metric(names, tail["busy_seconds"])
        bounds = [f"{bound:g}" for bound in LATENCY_BOUNDS]
        latency.add_metric(names, _cumulative([*bounds, "+Inf"], tail["latency_counts"]), tail["latency_seconds"])
        batches.add_metric(names, *_batches(tail["batch_sizes"]))
    yield from (requests, replies, errors, received, sent, waiting, busy, latency, batches)


def _cumulative(bounds: list[str], counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus counts in each bucket what is in the smaller ones, too."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _batches(sizes: dict[str, int]) -> tuple[list[tuple[str, float]], float]:
    bounds = [1, 2, 4, 8, 16, 32, 64, 128]
    counts = [sum(count for size, count in sizes.items() if int(size) <= bound) for bound in bounds]
    buckets: list[tuple[str, float]] = [(str(bound), count) for bound, count in zip(bounds, counts, strict=True)]
    total = sum(sizes.values())
    return [*buckets, ("+Inf", total)], sum(int(size) * count for size, count in sizes.items())
