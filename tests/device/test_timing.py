"""The running estimate against the formulas of RFC 6298, and the budget of retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compoff.device.timing import Estimate, RetryBudget


@given(st.lists(st.floats(1e-6, 100.0), min_size=1, max_size=50))
def test_as_in_rfc_6298(times: list[float]) -> None:
    estimate = Estimate()
    srtt, rttvar = times[0], times[0] / 2
    estimate.add(times[0])
    for seconds in times[1:]:
        rttvar = 0.75 * rttvar + 0.25 * abs(srtt - seconds)
        srtt = 0.875 * srtt + 0.125 * seconds
        estimate.add(seconds)
    bound = max(srtt + 4 * rttvar, 2 * min(times))
    assert abs(estimate.upper(otherwise=0.0) - bound) <= 1e-9 * bound
    assert estimate.best == min(times)


def test_without_a_time_it_says_what_it_is_told() -> None:
    assert Estimate().upper(otherwise=0.25) == 0.25


def test_a_crowd_retries_a_tenth_of_its_calls_at_most() -> None:
    budget = RetryBudget()
    retried = 0
    for _ in range(1000):
        retried += budget.spend()
        budget.earn()
    assert 100 <= retried <= 111
