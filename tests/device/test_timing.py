"""The running estimate against the formulas of RFC 6298, and the budget of retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compoff.device.timing import LEAST_PATIENCE, Estimate, Patience, RetryBudget


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


def test_a_warm_up_is_forgotten_with_the_second_time() -> None:
    estimate = Estimate(warm_up=True)
    estimate.add(2.0)
    assert estimate.upper(otherwise=0.0) == 4.0 + 2.0
    estimate.add(0.1)
    estimate.add(0.1)
    assert estimate.upper(otherwise=0.0) < 0.4
    steady = Estimate(warm_up=True)
    for seconds in (0.1, 2.0, 0.1):
        steady.add(seconds)
    assert steady.upper(otherwise=0.0) > 0.5, "only the first may be a warm-up"


def test_what_was_not_answered_does_not_make_the_next_call_wait_longer() -> None:
    patience = Patience()
    assert patience.seconds(4.0) == 2.0
    for _ in range(5):
        patience.add(0.1)
    usual = patience.seconds(4.0)
    waits = []
    for _ in range(40):
        patience.missed()
        waits.append(patience.seconds(4.0))
    assert waits[:2] == [usual] * 2
    assert [index for index, seconds in enumerate(waits) if seconds] == [0, 1, 15, 31]
    assert max(waits) == usual
    patience.add(0.1)
    assert patience.seconds(4.0) > 0
    for _ in range(200):
        patience.add(1e-6)
    assert patience.seconds(4.0) == LEAST_PATIENCE


def test_an_edge_that_never_answered_is_not_waited_for_again() -> None:
    patience = Patience()
    for _ in range(3):
        assert patience.seconds(4.0) == 2.0
        patience.missed()
    for _ in range(40):
        assert patience.seconds(4.0) == 0.0
        patience.missed()


def test_a_crowd_retries_a_tenth_of_its_calls_at_most() -> None:
    budget = RetryBudget()
    retried = 0
    for _ in range(1000):
        retried += budget.spend(now=0.0)
        budget.earn()
    assert 100 <= retried <= 111


def test_who_calls_seldom_may_retry_each_time() -> None:
    budget = RetryBudget()
    assert all(budget.spend(now=20.0 * turn) for turn in range(100))
    assert sum(budget.spend(now=2000.0 + turn) for turn in range(100)) in range(19, 22)
