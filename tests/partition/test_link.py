"""What a link takes, against numpy's own weighted means and links that are known."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.partition.link import LinkEstimate

LENGTHS = st.lists(st.integers(50, 20_000), min_size=1, max_size=40)
SECONDS = st.floats(1e-4, 2.0)


def told(lengths: list[int], times: list[float], ping: float | None = None) -> LinkEstimate:
    link = LinkEstimate()
    if ping is not None:
        link.ping(ping)
    for num_bytes, seconds in zip(lengths, times, strict=True):
        link.add(num_bytes, seconds)
    return link


@given(LENGTHS, st.data())
def test_is_the_mean_time_a_byte_of_the_last_calls(lengths: list[int], data: st.DataObject) -> None:
    times = data.draw(st.lists(SECONDS, min_size=len(lengths), max_size=len(lengths)))
    ping = data.draw(st.none() | SECONDS)
    whole = np.array(lengths) + 112
    each = (np.array(times) - (ping or 0.0)) / whole
    slope = max(0.0, float(np.average(each, weights=0.75 ** np.arange(len(lengths))[::-1])))
    link = told(lengths, times, ping)
    assert link.seconds(1000) == pytest.approx((ping or 0.0) + 1112 * slope, rel=1e-6, abs=1e-9)


@given(st.lists(st.integers(100, 5000), min_size=1, max_size=20), st.floats(0, 0.2), SECONDS)
def test_a_steady_link_is_found(lengths: list[int], round_trip: float, second_of_kilobyte: float) -> None:
    slope = second_of_kilobyte / 1000
    link = told(lengths, [round_trip + (num_bytes + 112) * slope for num_bytes in lengths], round_trip)
    assert link.bytes_per_second == pytest.approx(1 / slope, rel=1e-3)
    assert link.seconds(777) == pytest.approx(round_trip + (777 + 112) * slope, rel=1e-3)


def test_without_a_ping_it_is_the_harmonic_mean_of_the_throughput_as_in_the_paper() -> None:
    lengths, times = [500, 2000, 900], [0.1, 0.5, 0.2]
    weights = [0.75**2, 0.75, 1]
    throughput = [(num_bytes + 112) / seconds for num_bytes, seconds in zip(lengths, times, strict=True)]
    assert told(lengths, times).bytes_per_second == pytest.approx(statistics.harmonic_mean(throughput, weights))


def test_nothing_is_known_at_first() -> None:
    link = LinkEstimate()
    assert (link.round_trip, link.bytes_per_second, link.seconds(1), link.line) == (None, None, None, (0.0, 0.0))


def test_a_ping_alone_tells_a_round_trip_and_nothing_of_bytes() -> None:
    link = told([], [], ping=0.03)
    assert (link.round_trip, link.bytes_per_second, link.seconds(10**6)) == (0.03, None, 0.03)


def test_without_a_ping_all_time_is_put_on_the_bytes() -> None:
    link = told([888] * 5, [0.1] * 5)
    assert (link.seconds(888), link.seconds(1888)) == (pytest.approx(0.1), pytest.approx(0.2))
    link.ping(0.09)
    assert (link.seconds(888), link.seconds(1888)) == (pytest.approx(0.1), pytest.approx(0.11))


def test_bytes_that_took_no_longer_than_a_ping_are_free() -> None:
    link = told([500, 4000], [0.02, 0.018], ping=0.02)
    assert link.bytes_per_second == math.inf
    assert link.seconds(10_000) == link.seconds(10) == 0.02


def test_a_link_that_slows_down_is_followed_within_five_calls_and_by_shorter_ones_too() -> None:
    link = told([888] * 100, [0.021] * 100, ping=0.02)
    for _ in range(5):
        link.add(888, 0.02 + 1.0)
    assert link.seconds(888) == pytest.approx(0.02 + 0.763, abs=0.01)
    for _ in range(5):
        link.add(188, 0.02 + 0.3)
    assert link.seconds(888) == pytest.approx(0.02 + 1.0, rel=0.07)


def test_a_link_that_has_never_carried_any_may_at_best_carry_all() -> None:
    link = told([], [], ping=0.02)
    link.at_least(1000, 5.0)
    assert link.line[1] > 0
    assert link.line_at_best == (0.02, 0.0)


def test_a_call_shorter_than_its_ping_is_not_the_best_that_the_link_did() -> None:
    link = LinkEstimate()
    link.ping(0.020)
    link.add(1000, 0.019)
    for _ in range(50):
        link.add(1000, 0.5)
    assert link.line_at_best[1] == pytest.approx(link.line[1], rel=0.5)
