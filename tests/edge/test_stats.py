"""Counters of a tail and their snapshot."""

from __future__ import annotations

import random
from typing import Any

import pytest

from compoff.edge.stats import LATENCY_BOUNDS, Histogram, TailCounters
from compoff.errors import LocalProtocolError
from compoff.wire.messages import ErrorCode


def test_bounds_are_of_the_1_2_5_kind() -> None:
    assert len(LATENCY_BOUNDS) == 19
    assert list(LATENCY_BOUNDS) == sorted(LATENCY_BOUNDS)
    assert LATENCY_BOUNDS[:4] == pytest.approx((1e-5, 2e-5, 5e-5, 1e-4))
    assert LATENCY_BOUNDS[-1] == 10.0


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 100])
def test_percentiles_are_as_fine_as_the_buckets(percent: int) -> None:
    rng = random.Random(0)
    times = sorted(rng.lognormvariate(-6, 1.5) for _ in range(5000))
    counters = TailCounters(bytes(32))
    for seconds in times:
        counters.reply(10, seconds)
    found = counters.snapshot(0, 0).latency.percentile(percent)
    exact = times[max(0, round(len(times) * percent / 100) - 1)]
    assert exact / 2.5 <= found <= exact * 2.5


def test_a_snapshot_does_not_grow() -> None:
    counters = TailCounters(bytes(32))
    counters.reply(10, 100.0)
    counters.reply(5, 0.0)
    counters.error(ErrorCode.BUSY)
    counters.batch_sizes[4] += 1
    snapshot = counters.snapshot(waiting=2, running=1)
    counters.error(ErrorCode.BUSY)
    counters.batch_sizes[4] += 1
    counters.reply(1, 1.0)
    assert (snapshot.replies, snapshot.bytes_out, snapshot.waiting, snapshot.running) == (2, 15, 2, 1)
    assert (snapshot.errors, snapshot.batch_sizes) == ({"busy": 1}, {4: 1})
    assert (snapshot.latency.count, snapshot.latency.total) == (2, 100.0)
    assert snapshot.latency.counts[0] == snapshot.latency.counts[-1] == 1
    assert snapshot.latency.percentile(100) == 10.0, "beyond the last bound nothing finer is known"
    assert Histogram((0,) * 20, 0.0).percentile(50) == 0.0


@pytest.mark.parametrize("percent", [-1, 101, float("nan"), "50", True])
def test_a_percentile_that_there_is_not_is_refused(percent: Any) -> None:
    with pytest.raises(LocalProtocolError, match="expected a number from 0 to 100"):
        Histogram((1,) + (0,) * 19, 1.0).percentile(percent)
