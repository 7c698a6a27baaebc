"""The breaker and the pauses between attempts, without a clock."""

from __future__ import annotations

import random

import pytest

from compoff.device.breaker import Backoff, Breaker


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
