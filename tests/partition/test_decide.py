"""The decision, against looking at every way by the words of the goal."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compoff.errors import LocalProtocolError
from compoff.partition.decide import Goal, Plan, decide

SHARES = st.floats(0, 1)
MISSED = 1e-6  # of a share that is met all the same: means of single precision miss it by so much
WAYS = st.lists(
    st.builds(
        Plan,
        split=st.sampled_from(["layer1", "layer2"]),
        quality=st.integers(0, 10),
        agreement=SHARES,
        output_error=SHARES,
        payload_bytes=st.floats(1, 1e4),
        head_seconds=SHARES,
        link_seconds=SHARES,
        server_seconds=SHARES,
    ),
    min_size=1,
    max_size=20,
)


def way(seconds: float, agreement: float | None = 0.9, error: float = 0.1, **fields: Any) -> Plan:
    return Plan("layer1", 0, agreement, error, 100.0, seconds, 0.0, 0.0, **fields)


@given(WAYS)
def test_a_time_is_the_sum_of_equation_14(ways: list[Plan]) -> None:
    for one in ways:
        assert one.seconds == one.head_seconds + one.link_seconds + one.server_seconds


@given(WAYS, SHARES)
def test_with_an_agreement_no_way_that_keeps_it_is_faster(ways: list[Plan], floor: float) -> None:
    kept = [one for one in ways if (one.agreement or 0.0) >= floor - MISSED]
    if not kept:
        with pytest.raises(LocalProtocolError, match="no way keeps an agreement of"):
            decide(ways, Goal(agreement=floor))
        return
    chosen = decide(ways, Goal(agreement=floor))
    assert chosen in kept
    assert chosen.seconds == min(one.seconds for one in kept)


@given(WAYS, st.floats(0.01, 3))
@example([Plan("layer1", 0, share, 0.0, 1.0, 0.0, 0.0, 0.0) for share in (0.0, 1e-20)], 1.0)
def test_with_a_time_no_way_in_it_keeps_more(ways: list[Plan], limit: float) -> None:
    chosen = decide(ways, Goal(seconds=limit))
    in_time = [one for one in ways if one.seconds <= limit]
    if in_time:
        assert chosen in in_time
        assert chosen.agreement == max(one.agreement or 0.0 for one in in_time)
    else:
        assert chosen.seconds == min(one.seconds for one in ways)


@given(WAYS, SHARES, st.floats(0.01, 3))
def test_with_both_the_agreement_comes_first(ways: list[Plan], floor: float, limit: float) -> None:
    kept = [one for one in ways if (one.agreement or 0.0) >= floor - MISSED]
    if kept:
        assert decide(ways, Goal(agreement=floor, seconds=limit)) == decide(kept, Goal(seconds=limit))


def test_of_equal_times_the_better_answer_is_taken_and_of_equal_answers_the_shorter_time() -> None:
    worse, better = way(0.1, 0.90), way(0.1, 0.95)
    assert decide([worse, better], Goal(agreement=0.5)) is better
    slow, fast = way(0.2), way(0.1)
    assert decide([slow, fast], Goal(seconds=1)) is fast


def test_without_agreement_the_error_of_the_output_decides() -> None:
    worse, better = way(0.1, None, 0.3), way(0.2, None, 0.1)
    assert decide([worse, better], Goal(seconds=1)) is better
    assert decide([worse, better], Goal(seconds=0.15)) is worse
    with pytest.raises(LocalProtocolError, match="no agreement measured"):
        decide([worse, better], Goal(agreement=0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a goal of nothing"),
        ({"agreement": 95}, "agreement=95 was given; expected a share from 0 to 1"),
        ({"agreement": -0.1}, "agreement=-0.1"),
        ({"agreement": float("nan")}, "agreement=nan"),
        ({"agreement": "0.9"}, "agreement='0.9'"),
        ({"agreement": True}, "agreement=True"),
        ({"seconds": 0}, "seconds=0 was given; expected a time above 0"),
        ({"seconds": float("nan")}, "seconds=nan"),
        ({"seconds": "fast"}, "seconds='fast'"),
    ],
)
def test_no_other_goal_is_one(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LocalProtocolError, match=message):
        Goal(**fields)


def test_a_way_that_takes_nobody_knows_how_long_is_taken_where_there_is_no_other() -> None:
    unknown, known = way(math.inf, agreement=1.0), way(0.5)
    for goal in (Goal(seconds=math.inf), Goal(seconds=0.1), Goal(agreement=0.5)):
        assert decide([unknown, known], goal) is known
    assert decide([unknown, known], Goal(agreement=0.95)) is unknown


def test_a_share_in_single_precision_that_is_met_exactly_is_kept() -> None:
    kept = way(0.1, agreement=0.949999988079071)
    assert decide([kept], Goal(agreement=0.95)) is kept


@given(st.floats(0.001, 0.999))
def test_the_share_that_an_error_names_can_be_asked_for(agreement: float) -> None:
    with pytest.raises(LocalProtocolError, match="the best has") as caught:
        decide([way(0.1, agreement=agreement)], Goal(agreement=1.0))
    named = float(str(caught.value).partition("the best has ")[2].partition(". Ask")[0])
    assert decide([way(0.1, agreement=agreement)], Goal(agreement=named))
    assert named > agreement - 2e-4
