"""One call by a clock that is set by hand: what its report says of its times, and when it is over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compoff.coding import Payload
from compoff.device import calls
from compoff.device.answers import CallReport
from compoff.device.calls import Call
from compoff.errors import ReadTimeout
from compoff.wire.replies import FULL
from tests.device.stand_in import ANSWER, ID, StandIn, after


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now - 600.0  # the two count from different moments


class Head(StandIn):
    """Takes a quarter of a second; notes what it is asked."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.asked: list[Any] = []

    def __call__(self, word: Any, quality: int | None = None, **options: Any) -> Payload:
        self._clock.now += 0.25
        self.asked.append((quality, options))
        return Payload(word.tobytes(), ID, 2, 1, cut=True)

    def check(self, word: Any, quality: int | None = None, **options: Any) -> None:
        self.asked.append(("check", quality, options))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calls, "time", SimpleNamespace(monotonic=clock.monotonic, perf_counter=clock.perf_counter))
    return clock


def begun(head: Head, **options: Any) -> Call:
    given: dict[str, Any] = {"quality": None, "max_bytes": None, "coding": None, **options}
    return Call(head, 0, (after(1),), {}, given["quality"], given["max_bytes"], given["coding"], 2.0, FULL)  # type: ignore[arg-type]


def test_the_times_of_an_answer_of_the_edge(clock: Clock) -> None:
    call = begun(Head(clock))
    clock.now += 0.5  # until a thread is free
    assert call.encode() == b"\1"
    clock.now += 1.0
    output, report = call.from_edge(ANSWER, 0.125)
    assert np.array_equal(output, [[0, 1, 2]])
    expected = CallReport("input", 1, len(ANSWER), 0.25, 1.0, 1.75, server_seconds=0.125, quality=2, cut=True)
    assert report == expected


@pytest.mark.parametrize(("waited", "remote"), [({}, 0.5), ({"beside": True}, 4.5)])
def test_the_times_of_an_answer_of_the_device_after_the_edge_or_beside_it(
    clock: Clock, waited: dict[str, bool], remote: float
) -> None:
    call = begun(Head(clock))
    call.encode()
    clock.now += 0.5
    report = call.from_device("slow", clock.perf_counter(), clock.perf_counter() + 4.0, **waited)
    expected = CallReport("input", 1, 0, 0.25, remote, 4.75, "local", "slow", local_seconds=4.0, quality=2, cut=True)
    assert report == expected


def test_an_answer_of_the_device_whose_head_never_ran_has_no_times_of_it(clock: Clock) -> None:
    call = begun(Head(clock))
    clock.now += 0.5
    report = call.from_device("gone", clock.perf_counter(), clock.perf_counter() + 1.0)
    assert report == CallReport("input", 0, 0, 0.0, 0.0, 1.5, "local", "gone", local_seconds=1.0)


def test_a_head_is_asked_with_what_was_given_and_checks_only_what_it_has_not_taken(clock: Clock) -> None:
    head = Head(clock)
    plain, given = begun(head), begun(head, quality=1, max_bytes=9, coding="raw")
    for call in (plain, given):
        call.check()
        call.encode()
        call.check()
    options = {"max_bytes": 9, "coding": "raw"}
    assert head.asked == [("check", None, {}), (None, {}), ("check", 1, options), (1, options)]


def test_a_call_is_late_as_soon_as_nothing_is_left(clock: Clock) -> None:
    call = begun(Head(clock))
    assert call.deadline == 1002.0
    clock.now = 1001.5
    assert call.left(call.deadline) == 0.5
    clock.now = 1002.0
    with pytest.raises(ReadTimeout, match=r"of this call's 2 s, passed before anything was sent"):
        call.left(call.deadline)
