"""What a remote counts, against counting by hand."""

from __future__ import annotations

from typing import Any

import pytest

from compoff.device.answers import CallReport
from compoff.device.statistics import Tally
from compoff.errors import LocalProtocolError, PayloadError, ReadTimeout


def report(**fields: Any) -> CallReport:
    return CallReport(**{
        "split": "input", "payload_bytes": 10, "reply_bytes": 20, "head_seconds": 0.01, "remote_seconds": 0.02,
        "total_seconds": 0.03, **fields,
    })  # fmt: skip


def snapshot(tally: Tally) -> Any:
    return tally.snapshot(connections=1, reachable=True, reason=None, round_trip=None)


def test_counts() -> None:
    tally = Tally()
    for _ in range(3):
        tally.answered(report())
    tally.answered(report(source="local", reply_bytes=0, local_seconds=0.5))
    for error in (ReadTimeout("late"), PayloadError("broken"), ValueError("a model's own"), KeyboardInterrupt()):
        with pytest.raises(type(error)), tally.failures():
            raise error
    for num_bytes in (10, 11, 12):
        tally.sent(num_bytes)
    tally.retried()
    tally.hedged()
    stats = snapshot(tally)
    assert (stats.calls, stats.edge, stats.local, stats.failed, stats.raised) == (8, 3, 1, 2, 2)
    assert (stats.retried, stats.hedged) == (1, 1)
    assert (stats.payload_bytes, stats.reply_bytes) == (33, 60)
    assert stats.recent[-1].source == "local"


def test_a_snapshot_does_not_change() -> None:
    tally = Tally()
    before = snapshot(tally)
    tally.answered(report())
    assert (before.edge, before.recent) == (0, ())


def test_only_the_last_calls_are_kept() -> None:
    tally = Tally()
    for number in range(3000):
        tally.answered(report(total_seconds=float(number)))
    stats = snapshot(tally)
    assert (stats.edge, len(stats.recent)) == (3000, 1024)
    assert stats.quantile(0.0) == 3000 - 1024
    assert stats.quantile(1.0) == 2999


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 1.0), (0.5, 5.0), (0.51, 6.0), (0.99, 10.0), (1.0, 10.0)])
def test_quantiles_are_times_that_were_measured(fraction: float, expected: float) -> None:
    tally = Tally()
    for number in (3, 1, 2, 10, 9, 8, 7, 6, 5, 4):
        tally.answered(report(remote_seconds=float(number)))
    assert snapshot(tally).quantile(fraction, "remote_seconds") == expected


@pytest.mark.parametrize(
    ("fraction", "field", "words"),
    [
        (50, "total_seconds", "fraction is 50; expected a number from 0 to 1"),
        (-0.1, "total_seconds", "fraction is -0.1"),
        (float("nan"), "total_seconds", "fraction is nan"),
        ("0.5", "total_seconds", "fraction is '0.5'"),
        (0.5, "nonsense", "field is 'nonsense'; expected one of head_seconds, "),
    ],
)
def test_a_quantile_of_what_there_is_not_is_refused(fraction: Any, field: Any, words: str) -> None:
    tally = Tally()
    tally.answered(report())
    with pytest.raises(LocalProtocolError, match=words):
        snapshot(tally).quantile(fraction, field)


def test_nothing_answered_has_no_quantile() -> None:
    assert snapshot(Tally()).quantile(0.5) is None
