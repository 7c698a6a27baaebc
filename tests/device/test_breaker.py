"""The breaker and the pauses between attempts, without a clock."""

from __future__ import annotations

import itertools
import random

import pytest

from compoff.device.breaker import Backoff, Breaker, Stall


def test_one_failure_opens_and_two_good_signs_in_a_row_close() -> None:
    breaker = Breaker()
    assert breaker.closed
    assert not breaker.succeeded(), "nothing to close"
    assert breaker.failed("first")
    assert not breaker.failed("second"), "open already"
    assert (breaker.closed, breaker.reason) == (False, "second")
    assert not breaker.succeeded()
    breaker.failed("third")
    assert not breaker.succeeded(), "the sign before the failure does not count"
    assert breaker.succeeded()
    assert (breaker.closed, breaker.reason) == (True, None)


def test_pauses_double_to_a_bound_and_start_again() -> None:
    pauses = Backoff(0.1, 5.0, random.Random(0).random)
    for _ in range(3):
        drawn = [pauses.next() for _ in range(12)]
        for number, pause in enumerate(drawn):
            whole = min(0.1 * 2**number, 5.0)
            assert whole / 2 <= pause <= whole
        pauses.reset()


@pytest.mark.parametrize("number", [3, 6])
def test_devices_do_not_come_back_together(number: int) -> None:
    pauses = []
    for seed in range(50):
        backoff = Backoff(draw=random.Random(seed).random)
        pauses.append(sum(backoff.next() for _ in range(number)))
    assert len(set(pauses)) == 50
    assert max(pauses) > 1.2 * min(pauses)


def test_after_three_calls_without_an_answer_one_in_a_while_asks() -> None:
    stall = Stall(lambda: 1.0)
    now, asked = 0.0, []
    assert [stall.unanswered(now) for _ in range(2)] == [True, False]
    assert stall.asks(now, 2.0), "two may be chance"
    assert not stall.unanswered(now)
    assert "3 calls in a row" in stall.reason
    while now < 400:
        if stall.asks(now, 2.0):
            asked.append(now)
            assert not stall.asks(now + 1.9, 2.0), "one at a time"
            stall.unanswered(now + 2.0)
        now += 0.5
    waited = [after - before - 2.0 for before, after in itertools.pairwise(asked)]
    assert waited == [2.0, 4.0, 8.0, 16.0, 32.0] + [60.0] * (len(waited) - 5)
    assert len(waited) >= 8
    stall.answered()
    assert all(stall.asks(now, 2.0) for _ in range(3))
    assert stall.unanswered(now), "the log hears of it anew"


def test_a_call_that_asks_and_ends_some_other_way_leaves_the_next_to_another() -> None:
    stall = Stall(lambda: 1.0)
    for _ in range(3):
        stall.unanswered(0.0)
    assert stall.asks(1.0, 2.0)
    assert not stall.asks(2.9, 2.0)
    assert stall.asks(3.0, 1e10)
    assert stall.asks(63.0, 1e10)


def test_a_server_without_room_is_told_once_in_a_minute() -> None:
    stall = Stall()
    assert [stall.busy(now) for now in (5.0, 6.0, 64.9, 65.0, 66.0)] == [True, False, False, True, False]
    assert stall.asks(66.0, 1.0), "it may have room the next moment"
