"""What a remote with a goal learns and chooses: with reports by hand, and over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.coding import Payload
from compoff.device.answers import CallReport, Heads
from compoff.device.connecting import connect, connect_async
from compoff.device.planner import STAYS, Planner
from compoff.device.ways import Trust, ways_of
from compoff.edge.server import serve
from compoff.errors import ArtifactError, ArtifactMismatch, FeatureError, LocalProtocolError, ReadTimeout
from compoff.manifest import CodeSpec, Manifest, TensorSpec
from compoff.partition.decide import Goal, Plan
from tests.device.stand_in import ANSWER
from tests.device.test_link import Relay
from tests.edge.peers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from compoff.device.async_remote import AsyncRemote
    from compoff.edge.server import Server

BYTES, KEPT = (100, 400, 1600), (0.8, 0.9, 0.97)
X = np.zeros(1, np.float32)


class Device:
    """A head with three qualities whose payload is so many bytes, after some seconds."""

    runner = None

    def __init__(self, split: str, seconds: float = 0.0, **report: Any) -> None:
        self.split = split
        self.seconds = seconds
        self.artifact_id = split.encode().ljust(32, b"\0")
        outputs, code = (TensorSpec((3,), "float32"),), CodeSpec((3, 4), num_centers=2, qualities=(1, 2, 3))
        manifest = Manifest(
            "head", self.artifact_id.hex(), split, "Net", (), outputs, {"leaf": 0}, (code,), (), max_batch=4
        )
        curve = [
            {"bytes": size, "agreement": share, "output_error": 1 - share}
            for size, share in zip(BYTES, KEPT, strict=True)
        ]
        self.manifest = replace(manifest, report={"curve": curve, **report})

    def __call__(self, x: Any, quality: int | None = None, coding: str = "range") -> Payload:
        time.sleep(self.seconds)
        quality = 2 if quality is None else quality
        return Payload(bytes(BYTES[quality]), self.artifact_id, quality, 1)

    def check(self, *inputs: Any, quality: int | None = None, **keywords: Any) -> None:
        """Takes everything."""


class Edge:
    """A tail that answers after some seconds."""

    max_payload_bytes = 10_000

    def __init__(self, split: str, seconds: float = 0.0) -> None:
        self.artifact_id = split.encode().ljust(32, b"\0")
        self.seconds = seconds

    def answer(self, payload: bytes) -> bytes:
        time.sleep(self.seconds)
        return ANSWER


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Asked:
    """A call, as far as a planner looks at it."""

    def __init__(self, split: str, payload: Payload | None = None) -> None:
        self.head, self.payload = Device(split), payload
        self.since_encoded, self.retried, self.coding = 0.0, False, None


CLOCK = Clock()


def planner(*splits: str, alone: bool = False, **goal: Any) -> Planner:
    CLOCK.now += 10_000
    return Planner(Heads([Device(split) for split in splits]), Goal(**goal), alone=alone, clock=CLOCK)


def tell(chooser: Planner, report: CallReport, *, asked: bool = True, hedged: bool = False) -> None:
    chooser.answered(report, asked=asked, hedged=hedged)


def report(plan: Plan, head: float, link: float, server: float, **fields: Any) -> CallReport:
    """The report of a call that took a plan's way."""
    quality, split = plan.quality or 0, plan.split or ""
    timed = {"server_seconds": server, "quality": plan.quality, **fields}
    return CallReport(split, BYTES[quality], 12, head, link + server, head + link + server, **timed)


def answered(
    planner: Planner, times: dict[str, float], round_trip: float, rate: float, calls: int, every: float = 0.1
) -> list[Plan]:
    """So many calls as the planner has them, by heads of these times over such a link."""
    plans: list[Plan] = []
    for _ in range(calls):
        plan = planner.next(round_trip)
        plans.append(plan)
        if plan.split is not None:
            seconds = round_trip + (BYTES[plan.quality or 0] + 12 + 112) / rate
            tell(planner, report(plan, times[plan.split], seconds, 0.001))
        else:
            tell(planner, alone(times["local"]), asked=False)
        CLOCK.now += every
    return plans


def alone(seconds: float, **fields: Any) -> CallReport:
    """The report of a call that the device answered."""
    return CallReport("layer", 0, 0, 0.0, 0.0, seconds, source="local", local_seconds=seconds, **fields)


def test_every_head_is_tried_twice_and_then_the_fastest_is_taken() -> None:
    plans = answered(
        planner("near", "far", agreement=0.9), {"near": 0.03, "far": 0.01}, round_trip=0.01, rate=1e6, calls=12
    )
    assert {plan.split for plan in plans[:4]} == {"near", "far"}
    assert [plan.split for plan in plans[:4]].count("near") == 2
    assert {(plan.split, plan.quality) for plan in plans[4:]} == {("far", 1)}


def test_a_slow_link_gets_fewer_bytes_and_a_recovered_one_more() -> None:
    chooser = planner("layer", seconds=0.1)
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e6, 20)[-1].quality == 2
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e4, 20)[-1].quality == 1
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e3, 20)[-1].quality == 0
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e6, 30)[-1].quality == 2


STATIC = [
    {"bytes": size, "static_bytes": size * 5 / 4, "agreement": share, "output_error": 1 - share}
    for size, share in zip(BYTES, KEPT, strict=True)
]


def coded(chooser: Planner, rate: float, calls: int) -> list[Plan]:
    """So many calls of a head whose context models take 6 ms on the device and 4 ms on the edge."""
    plans: list[Plan] = []
    for _ in range(calls):
        plan = chooser.next(0.01)
        plans.append(plan)
        static = plan.coding == "static"
        size = BYTES[plan.quality or 0] * (5 if static else 4) // 4
        head, server = (0.002, 0.001) if static else (0.008, 0.005)
        found = report(plan, head, 0.01 + (size + 12 + 112) / rate, server, coding=plan.coding)
        tell(chooser, replace(found, payload_bytes=size))
        CLOCK.now += 0.1
    return plans


def test_a_fast_link_gets_the_quicker_coding_and_a_slow_one_the_shorter() -> None:
    CLOCK.now += 10_000
    for agreement, quality in ((0.8, 0), (0.97, 2)):
        chooser = Planner(Heads([Device("layer", curve=STATIC)]), Goal(agreement=agreement), alone=False, clock=CLOCK)
        assert {plan.coding for plan in coded(chooser, 1e6, 8)} == {None, "static"}
        assert {(plan.coding, plan.quality) for plan in coded(chooser, 1e6, 10)} == {("static", quality)}
        slow = 1e3 if quality == 0 else 1e4
        coded(chooser, slow, 30)
        last = coded(chooser, slow, 1)[0]
        assert (last.quality, last.coding) == (quality, None)


def test_how_many_samples_a_call_has_is_known_of_both_codings() -> None:
    one, other = ways_of(Device("layer", curve=STATIC))
    for _ in range(20):
        one.learn(CallReport("layer", 1600, 12, 0.0, 0.0, 0.0, quality=0), 0.0)
    assert one.payload_bytes(0) == pytest.approx(1600, rel=0.02)
    assert other.payload_bytes(0) == pytest.approx(2000, rel=0.03)
    one.learn(CallReport("layer", 999_999, 12, 0.0, 0.0, 0.0, quality=0, coding="raw"), 0.0)
    assert one.payload_bytes(0) == pytest.approx(1600, rel=0.02), "a caller's own coding says nothing of it"


@pytest.mark.parametrize("coding", ["raw", "huffman"])
def test_times_of_a_callers_own_coding_are_no_ways_where_there_are_two(coding: Any) -> None:
    CLOCK.now += 10_000
    chooser = Planner(Heads([Device("layer", curve=STATIC)]), Goal(agreement=0.8), alone=False, clock=CLOCK)
    own = CallReport("layer", 5000, 12, 0.5, 0.6, 1.1, server_seconds=0.5, quality=0, coding=coding)
    for _ in range(3):
        tell(chooser, own)
    assert not any(plan.measured for plan in chooser.plans())
    coded(chooser, 1e6, 8)
    before = {(plan.head_seconds, plan.server_seconds, plan.coding) for plan in chooser.plans()}
    assert len(before) == 2
    tell(chooser, own)
    assert {(plan.head_seconds, plan.server_seconds, plan.coding) for plan in chooser.plans()} == before
    single = planner("layer", agreement=0.8)
    for _ in range(2):
        tell(single, own)
    assert single.plan().measured, "without context models all codings take about as long"


def test_a_callers_own_coding_shows_that_a_way_answers_again() -> None:
    CLOCK.now += 10_000
    chooser = Planner(Heads([Device("layer", curve=STATIC)]), Goal(agreement=0.8), alone=False, clock=CLOCK)
    coded(chooser, 1e3, 12)
    assert chooser.next(0.01).coding is None
    chooser.failed(Asked("layer"), asked=True, late=False)  # type: ignore[arg-type]
    assert chooser.next(0.01).coding == "static"
    tell(chooser, CallReport("layer", 5000, 12, 0.5, 5.6, 6.1, server_seconds=0.5, quality=0, coding="raw"))
    assert chooser.next(0.01).coding is None


def test_every_coding_is_a_way_where_its_bytes_were_measured() -> None:
    both = Planner(Heads([Device("layer", curve=STATIC)]), Goal(seconds=1), alone=False)
    assert [(plan.quality, plan.coding, plan.payload_bytes) for plan in both.plans()] == [
        *((quality, None, size) for quality, size in enumerate(BYTES)),
        *((quality, "static", size * 5 / 4) for quality, size in enumerate(BYTES)),
    ]
    assert [(choice.quality, choice.coding) for choice in both.trials()] == [
        (0, None),
        (2, None),
        (0, "static"),
        (2, "static"),
    ]
    assert {plan.coding for plan in planner("layer", seconds=1).plans()} == {None}


def test_a_coding_that_failed_is_left_out_and_the_other_is_not() -> None:
    CLOCK.now += 10_000
    chooser = Planner(Heads([Device("layer", curve=STATIC)]), Goal(agreement=0.8), alone=False, clock=CLOCK)
    coded(chooser, 1e6, 12)
    call = Asked("layer")
    call.coding = "static"
    chooser.failed(call, asked=True, late=False)  # type: ignore[arg-type]
    assert chooser.next(0.01).coding is None
    CLOCK.now += 2
    assert chooser.next(0.01).coding == "static"


def test_expectations_are_what_was_measured() -> None:
    chooser = planner("layer", seconds=1)
    answered(chooser, {"layer": 0.02}, 0.03, 1e5, 10)
    plan = chooser.plan(0.03)
    assert plan.measured
    assert plan.head_seconds == pytest.approx(0.02)
    assert plan.server_seconds == pytest.approx(0.001)
    assert plan.link_seconds == pytest.approx(0.03 + (1600 + 12 + 112) / 1e5, rel=0.02)
    assert plan.payload_bytes == pytest.approx(1600)


def test_the_bytes_of_replies_are_expected_as_they_came() -> None:
    chooser = planner("layer", seconds=1)
    for _ in range(40):
        plan = chooser.next(0.03)
        found = report(plan, 0.01, 0.03 + (plan.payload_bytes + 100_000 + 112) / 1e6, 0.001)
        tell(chooser, replace(found, reply_bytes=100_000))
    assert chooser.plan(0.03).link_seconds == pytest.approx(0.03 + (1600 + 100_000 + 112) / 1e6, rel=0.02)


def test_payloads_of_more_samples_than_the_curve_has_are_expected_so() -> None:
    chooser = planner("layer", agreement=0.9)
    for quality in (0, 1, 2, 0, 2):  # 7.5 bytes of each payload are there once
        size = round(7.5 + 8 * (BYTES[quality] - 7.5))
        tell(chooser, CallReport("layer", size, 12, 0.01, 0.02, 0.03, server_seconds=0.001, quality=quality))
    expected = [7.5 + 8 * (size - 7.5) for size in BYTES]
    assert sorted(plan.payload_bytes for plan in chooser.plans()) == pytest.approx(expected, rel=0.01)


def test_a_payload_that_was_cut_tells_nothing_of_others() -> None:
    chooser = planner("layer", agreement=0.9)
    answered(chooser, {"layer": 0.01}, 0.01, 1e6, 5)
    tell(chooser, CallReport("layer", 20, 12, 0.01, 0.01, 0.02, server_seconds=0.001, quality=0, cut=True))
    assert sorted(plan.payload_bytes for plan in chooser.plans()) == pytest.approx([100, 400, 1600])


def test_the_device_is_chosen_once_its_time_is_known_and_the_edge_looked_at_when_it_could_be_better() -> None:
    chooser = planner("layer", alone=True, agreement=0.9)
    before = answered(chooser, {"layer": 0.05}, 0.05, 1e6, 10)
    assert {plan.place for plan in before} == {"edge"}, "nothing is known of the device"
    tell(chooser, alone(0.03), asked=False)
    after = answered(chooser, {"layer": 0.05, "local": 0.03}, 0.05, 1e6, 3000)
    assert {plan.place for plan in after} == {"local"}, "the round trip alone takes longer"
    looks = answered(chooser, {"layer": 0.05, "local": 0.03}, 0.001, 1e6, 3000)
    asked = [index for index, plan in enumerate(looks) if plan.place == "edge"]
    assert 2 <= len(asked) <= 5, "half a minute, a minute, two minutes after the last"
    assert {looks[index].quality for index in asked} == {1}, "for what the goal would take there"
    answered(chooser, {"layer": 0.001, "local": 0.03}, 0.001, 1e6, 4000)
    assert chooser.plan(0.001).place == "edge", "the edge became faster"


def test_only_the_device_keeps_every_answer() -> None:
    chooser = planner("layer", alone=True, agreement=1.0)
    tell(chooser, alone(0.5), asked=False)
    assert {plan.place for plan in answered(chooser, {"local": 0.5}, 0.001, 1e6, 2000)} == {"local"}
    with pytest.raises(LocalProtocolError, match=r"no way keeps an agreement of 1; the best has 0\.97"):
        planner("layer", agreement=1.0)


def test_where_the_device_answers_in_time_nothing_else_is_looked_at() -> None:
    chooser = planner("layer", alone=True, seconds=0.05)
    answered(chooser, {"layer": 0.05}, 0.05, 1e3, 5)
    tell(chooser, alone(0.03), asked=False)
    assert {plan.place for plan in answered(chooser, {"local": 0.03}, 0.001, 1e3, 5000)} == {"local"}


def test_one_outlier_does_not_lock_a_way_out() -> None:
    chooser = planner("near", "far", agreement=0.9)
    times = {"near": 0.01, "far": 0.03}
    assert answered(chooser, times, 0.01, 1e6, 20)[-1].split == "near"
    tell(chooser, report(chooser.plan(0.01), 0.01, 0.011, 5.0))
    after = [plan.split for plan in answered(chooser, times, 0.01, 1e6, 600)]
    assert after[0] == "far"
    assert after.count("near") > 250, "it was looked at again after half a minute"


def test_a_cold_start_does_not_lock_a_way_out() -> None:
    chooser = planner("near", "far", agreement=0.9)
    answered(chooser, {"near": 0.11, "far": 0.03}, 0.01, 1e6, 20)
    after = [plan.split for plan in answered(chooser, {"near": 0.01, "far": 0.03}, 0.01, 1e6, 600)]
    assert after.count("near") > 250


def test_a_way_that_cannot_be_better_is_not_looked_at() -> None:
    chooser = planner("near", "far", agreement=0.9)
    plans = answered(chooser, {"near": 0.01, "far": 2.0}, 0.01, 1e6, 20_000)
    assert sum(plan.split == "far" for plan in plans) == 2


def test_a_way_that_fails_is_left_out_for_a_while() -> None:
    chooser = planner("near", "far", agreement=0.9)
    answered(chooser, {"near": 0.01, "far": 0.03}, 0.01, 1e6, 20)
    taken: list[str | None] = []
    for _ in range(600):
        plan = chooser.next(0.01)
        taken.append(plan.split)
        if plan.split == "near":
            chooser.failed(Asked("near"), asked=True, late=False)  # type: ignore[arg-type]
        else:
            tell(chooser, report(plan, 0.03, 0.012, 0.001))
        CLOCK.now += 0.1
    assert 4 <= taken.count("near") <= 7, "after 1, 2, 4, 8, 16, 32 seconds"
    chooser.next(0.01, opened=2)
    assert chooser.plan(0.01).split == "near", "over a fresh connection it may be there again"


def test_a_way_may_fail_for_days() -> None:
    trust = Trust()
    for _ in range(5000):
        trust.failed(now=0.0)
    assert (trust.held(now=59.0), trust.held(now=61.0)) == (True, False)
    trust.learned(now=61.0)
    trust.failed(now=62.0)
    assert (trust.held(now=62.5), trust.held(now=63.5)) == (True, False)


def test_a_device_that_fails_or_is_late_is_left_out_for_a_while() -> None:
    chooser = planner("layer", alone=True, agreement=0.9)
    answered(chooser, {"layer": 0.05}, 0.05, 1e6, 10)
    tell(chooser, alone(0.03), asked=False)
    assert chooser.next(0.05).place == "local"
    chooser.failed(Asked("layer"), asked=False, late=True)  # type: ignore[arg-type]
    assert chooser.next(0.05).place == "edge"
    CLOCK.now += 1.1
    assert chooser.next(0.05).place == "local"


def test_an_edge_that_the_device_overtakes_is_learned_as_slow() -> None:
    chooser = planner("layer", alone=True, agreement=0.9)
    answered(chooser, {"layer": 0.01}, 0.01, 1e6, 10)
    for _ in range(8):
        plan = chooser.next(0.01)
        if plan.place == "edge":
            late = CallReport("layer", 400, 0, 0.01, 0.4, 0.5, source="local", local_seconds=0.1)
            tell(chooser, late, hedged=True)
    assert chooser.next(0.01).place == "local"


def test_calls_that_get_no_answer_in_time_make_the_next_ones_shorter() -> None:
    chooser = planner("layer", seconds=0.1)
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e6, 10)[-1].quality == 2
    late = Asked("layer", Payload(bytes(1600), bytes(32), 2, 1))
    late.since_encoded += 1.0
    for _ in range(3):
        chooser.failed(late, asked=True, late=True)  # type: ignore[arg-type]
    assert chooser.plan(0.01).quality == 0
    before = chooser.plan(0.01).link_seconds
    chooser.failed(Asked("layer"), asked=True, late=True)  # type: ignore[arg-type]
    assert chooser.plan(0.01).link_seconds == before, "one that was not sent tells nothing"


def test_answers_of_the_device_in_the_edges_place_tell_of_the_link_only_what_is_worse() -> None:
    chooser = planner("layer", alone=True, seconds=0.1)
    answered(chooser, {"layer": 0.01}, 0.01, 1e6, 10)
    before = {plan.quality: plan.link_seconds for plan in chooser.plans(0.01)}
    broken = CallReport("layer", 1600, 0, 0.01, 0.0001, 0.2, source="local", reason="broken", local_seconds=0.5)
    tell(chooser, broken)
    assert {plan.quality: plan.link_seconds for plan in chooser.plans(0.01)} == before
    tell(chooser, replace(broken, remote_seconds=2.0, retried=True))
    assert {plan.quality: plan.link_seconds for plan in chooser.plans(0.01)} == before
    tell(chooser, replace(broken, remote_seconds=2.0))
    assert all(plan.link_seconds > 5 * (before[plan.quality] or 1) for plan in chooser.plans(0.01) if plan.quality)


def test_over_a_fresh_connection_nothing_is_known_of_the_link() -> None:
    chooser = planner("layer", seconds=0.1)
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e3, 10)[-1].quality == 0
    assert chooser.next(0.01, opened=1).quality == 2


def test_calls_that_name_their_way_tell_of_the_link_too() -> None:
    chooser = planner("layer", seconds=0.1)
    for quality in (0, 2):
        chooser.choose("layer", quality, 0.01, opened=1, max_bytes=None)
        tell(chooser, CallReport("layer", BYTES[quality], 12, 0.01, 0.01 + BYTES[quality] / 1e3, 1.0, quality=quality))
    assert chooser.next(0.01, opened=1).quality == 0, "the connection is the one that they went over"


def test_a_request_that_was_sent_twice_tells_nothing_of_the_link() -> None:
    chooser = planner("layer", seconds=0.1)
    answered(chooser, {"layer": 0.01}, 0.01, 1e6, 10)
    plan = chooser.plan(0.01)
    tell(chooser, report(plan, 0.01, 5.0, 0.001, retried=True))
    assert chooser.plan(0.01).link_seconds == pytest.approx(plan.link_seconds)


def test_a_ping_behind_a_payload_does_not_make_bytes_free() -> None:
    chooser = planner("layer", seconds=0.1)
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e4, 10)[-1].quality == 1
    assert chooser.plan(0.2).quality == 1, "the shortest of the last pings counts"


def test_bytes_that_are_at_most_allowed_limit_the_choice() -> None:
    chooser = planner("layer", alone=True, agreement=0.9)
    assert chooser.next(0.01, max_bytes=500).quality == 1
    tell(chooser, alone(0.5), asked=False)
    assert chooser.next(0.01, max_bytes=399).place == "local", "of the heads' payloads none keeps that much"
    unable = planner("layer", agreement=0.9)
    assert unable.next(0.01, max_bytes=50).quality == 0, "it is cut"


@pytest.mark.parametrize("alone_takes", [None, 2.0])
def test_bytes_that_no_head_keeps_to_do_not_lead_to_a_device_that_is_slow(alone_takes: float | None) -> None:
    chooser = planner("near", "far", alone=True, seconds=0.1)
    answered(chooser, {"near": 0.03, "far": 0.01}, 0.01, 1e6, 12)
    if alone_takes is not None:
        tell(chooser, replace(alone(alone_takes), split="near"), asked=False)
    plan = chooser.next(0.01, max_bytes=50)
    assert (plan.split, plan.quality) == ("far", 0), "it is cut"


def test_a_device_that_may_take_its_time_is_only_chosen_once_it_is_known() -> None:
    chooser = planner("layer", alone=True, seconds=math.inf)
    assert answered(chooser, {"layer": 0.01}, 0.01, 1e6, 3)[-1].place == "edge"
    tell(chooser, alone(2.0), asked=False)
    assert chooser.next(0.01).place == "local"


@pytest.mark.parametrize("given", ["10", 1.5, True])
def test_bytes_that_are_no_number_are_refused_before_anything_is_chosen(given: Any) -> None:
    with pytest.raises(FeatureError, match=f"max_bytes is {given!r}; expected a whole number"):
        planner("layer", seconds=0.1).choose("layer", 0, 0.01, opened=1, max_bytes=given)


@pytest.mark.parametrize(
    "figures",
    [
        {"curve": []},
        {"curve": [], "agreement": 0.9},
        {"curve": [{"bytes": 1, "agreement": 1, "output_error": 0}]},
        {"curve": "none"},
        {"curve": [1, 2, 3]},
        {"curve": [{"bytes": 9, "static_bytes": "9", "agreement": 0.5, "output_error": 0}] * 3},
        {"curve": [{"bytes": -1, "agreement": 0.5, "output_error": 0}] * 3},
        {"curve": [{"bytes": 9, "agreement": 1.5, "output_error": 0}] * 3},
        {"curve": [{"bytes": 9, "agreement": "0.9", "output_error": 0}] * 3},
        {"curve": [{"bytes": float("nan"), "agreement": 0.9, "output_error": 0}] * 3},
        {"curve": [{"bytes": 9, "agreement": 0.9, "output_error": float("nan")}] * 3},
        {"curve": [{"bytes": math.inf, "agreement": 0.9, "output_error": 0}] * 3},
        {"curve": [{"bytes": 9, "agreement": 0.9, "output_error": math.inf}] * 3},
    ],
)
def test_a_head_without_figures_that_can_be_is_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="the head of 'layer'"):
        Planner(Heads([Device("layer", **figures)]), Goal(seconds=1), alone=False)


def test_a_codec_of_one_quality_has_the_figures_of_the_whole_report() -> None:
    head = Device("layer")
    code = CodeSpec((3, 4), num_centers=2, qualities=(3,))
    figures = {"bytes": 400, "agreement": 0.9, "output_error": 0.1}
    head.manifest = replace(head.manifest, codes=(code,), report=figures)
    [plan] = Planner(Heads([head]), Goal(agreement=0.9), alone=False).plans()
    assert (plan.payload_bytes, plan.agreement, plan.output_error) == (400, 0.9, 0.1)


def test_heads_without_agreement_are_ranked_by_their_error() -> None:
    curve = [{"bytes": 9 * (1 + step), "agreement": None, "output_error": 0.3 - step / 10} for step in range(3)]
    chooser = Planner(Heads([Device("layer", curve=curve)]), Goal(seconds=1), alone=False)
    assert chooser.plan().quality == 2


def test_another_goal_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(LocalProtocolError, match=r"goal is a float; expected a compoff\.Goal"):
        connect([Device("layer")], "127.0.0.1:9", goal=0.95)  # type: ignore[list-item, arg-type]
    with pytest.raises(LocalProtocolError, match="no way keeps"):
        connect([Device("layer")], "127.0.0.1:9", goal=Goal(agreement=0.99))  # type: ignore[list-item]


def test_models_without_scores_can_ask_for_no_agreement() -> None:
    curve = [{"bytes": 9 * (1 + step), "agreement": None, "output_error": 0.3 - step / 10} for step in range(3)]
    chooser = Planner(Heads([Device("layer", curve=curve)]), Goal(agreement=0, seconds=1), alone=True, clock=CLOCK)
    assert {chooser.next().place for _ in range(40)} == {"edge"}


# -- over real sockets


@pytest.fixture
def server() -> Iterator[Server]:
    with serve([Edge("near"), Edge("far")]) as server:  # type: ignore[list-item]
        yield server


def whole(x: Any) -> Any:
    return np.arange(3, dtype=np.float32)[None]


def settles(took: Callable[[], bool]) -> None:
    """After a few calls, and however late this machine was in some of them, several in a row take the same way."""
    in_a_row = 0

    def call() -> bool:
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if took() else 0
        return in_a_row >= 4

    for _ in range(4):
        took()
    eventually(call)


def test_calls_take_the_goals_way_and_say_so(server: Server) -> None:
    heads: Any = [Device("near", 0.03), Device("far", 0.002)]
    with connect(heads, server.address, goal=Goal(agreement=0.9)) as remote:
        assert [plan.measured for plan in remote.plans] == [False] * 6
        settles(lambda: remote(X) is not None and remote.last is not None and remote.last.split == "far")
        assert remote.last is not None
        assert remote.last.source == "edge"
        assert remote.last.quality in (1, 2), "what keeps more where that takes no longer"
        remote(X, quality=0)
        assert (remote.last.split, remote.last.quality) == ("near", 0), "who names one is not overruled"
        remote(X, split="near")
        assert (remote.last.split, remote.last.quality) == ("near", 2)
        eventually(lambda: remote.stats.round_trip_seconds is not None)
    with connect(heads, server.address) as remote:
        assert (remote.plans, remote.plan) == ((), None)
        with pytest.raises(LocalProtocolError, match="has no goal"):
            remote.profile(X)


@pytest.mark.parametrize(("seconds", "hangs"), [(0.4, 0.0), (0.0, 0.6)])
def test_a_head_or_a_tail_that_is_too_slow_is_not_asked_for_ever(seconds: float, hangs: float) -> None:
    heads: Any = [Device("near", seconds), Device("far", 0.002)]
    for _ in range(3):  # unless the machine was late itself
        with (
            # Two workers: with one, whether "far" waits behind a "near" that hangs for its whole time is luck.
            serve([Edge("near", hangs), Edge("far")], workers=2) as server,  # type: ignore[list-item]
            connect(heads, server.address, goal=Goal(agreement=0.9)) as remote,
        ):
            late = 0
            for _ in range(12):
                try:
                    remote(X, timeout=0.3)
                except ReadTimeout:
                    late += 1
            if late <= 3 and remote.last is not None and remote.last.split == "far":
                return
    pytest.fail("it is asked again and again")


def test_a_tail_that_is_no_longer_served_leaves_its_head_out(server: Server) -> None:
    heads: Any = [Device("near", 0.001), Device("far", 0.02)]
    with connect(heads, server.address, goal=Goal(agreement=0.9)) as remote:
        settles(lambda: remote(X) is not None and remote.last is not None and remote.last.split == "near")
        server.swap([Edge("far")])  # type: ignore[list-item]
        refused = 0
        splits = []
        for _ in range(10):
            try:
                remote(X)
            except ArtifactMismatch:
                refused += 1
            else:
                assert remote.last is not None
                splits.append(remote.last.split)
        assert refused <= 2
        assert set(splits) == {"far"}


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_a_whole_model_that_raises_is_not_run_by_every_call(server: Server, policy: Any) -> None:
    broken: list[str] = []

    def model(x: Any) -> Any:
        if broken:
            raise MemoryError("no room")
        return whole(x)

    heads: Any = [Device("near", 0.02)]
    with connect(heads, server.address, goal=Goal(agreement=0.9), on_failure=policy, local=model) as remote:
        eventually(lambda: remote.profile(X)[0].place == "local")
        remote(X)
        assert remote.last is not None
        assert remote.last.source == "local"
        broken.append("yes")
        with pytest.raises(MemoryError):
            remote(X)
        remote(X)
        assert remote.last is not None
        assert remote.last.source == "edge"


@pytest.mark.parametrize("option", [{"split": "near"}, {"quality": 0}, {"max_bytes": 200}, {"coding": "raw"}])
def test_profile_takes_no_option_of_a_call(server: Server, option: dict[str, Any]) -> None:
    heads: Any = [Device("near")]
    with connect(heads, server.address, goal=Goal(seconds=1)) as remote:
        with pytest.raises(LocalProtocolError, match=f"with {next(iter(option))}=, but measures every way"):
            remote.profile(X, **option)
        assert remote.stats.calls == 0


def test_profile_measures_every_way_and_the_device(server: Server) -> None:
    heads: Any = [Device("near", 0.001), Device("far", 0.002)]
    goal = Goal(agreement=0.9)
    with connect(heads, server.address, goal=goal, on_failure="local", local=whole) as remote:
        plans = remote.profile(X)
        assert all(plan.measured for plan in plans)
        assert [plan.seconds for plan in plans] == sorted(plan.seconds for plan in plans)
        assert remote.stats.calls == 2 * 2 + 2
        eventually(lambda: remote.profile(X)[0].place == "local")
        settles(lambda: remote(X) is not None and remote.last is not None and remote.last.source == "local")
        assert remote.last is not None
        assert (remote.last.source, remote.last.reason, remote.last.payload_bytes) == ("local", STAYS, 0)


@pytest.mark.parametrize("policy", ["local", "hedge"])
def test_times_come_from_no_clock_that_stands_still_as_long_as_a_call(
    monkeypatch: pytest.MonkeyPatch, policy: Any
) -> None:
    fine, tick = time.monotonic, 1 / 64  # Windows' clock before Python 3.13; times that mixed both would be hours
    monkeypatch.setattr(time, "monotonic", lambda: 10_000 + tick * (fine() // tick))
    heads: Any = [Device("near", 0.001)]
    options: Any = {"goal": Goal(agreement=0.9), "on_failure": policy, "local": whole}

    def check(remote: Any) -> None:
        last = remote.last
        assert last.source == "edge"
        assert 0.001 <= last.head_seconds <= last.total_seconds < 60
        assert 0.001 <= last.server_seconds <= last.remote_seconds <= last.total_seconds

    def check_profile(remote: Any) -> None:
        assert all(0 < plan.seconds < 60 for plan in remote.plans)
        assert remote.last.source == "local"
        assert 0 < remote.last.local_seconds <= remote.last.total_seconds < 60
        assert 0 < remote.stats.round_trip_seconds < 60

    async def main() -> None:
        async with await connect_async(heads, server.address, **options) as remote:
            await remote(X)
            check(remote)
            await remote.profile(X)
            await remote(X)
            while remote.stats.round_trip_seconds is None:
                await asyncio.sleep(0.001)
            check_profile(remote)

    with serve(Edge("near", 0.001)) as server:  # type: ignore[arg-type]
        with connect(heads, server.address, **options) as remote:
            remote(X)
            check(remote)
            remote.profile(X)
            remote(X)
            eventually(lambda: remote.stats.round_trip_seconds is not None)
            check_profile(remote)
        asyncio.run(main())
        [tail] = server.stats().tails
        assert 0.001 < tail.busy_seconds < 60
        assert 0.001 < tail.latency.total < 60


def test_a_device_that_hedges_stays_alone_where_its_goal_is_so(server: Server) -> None:
    heads: Any = [Device("near", 0.05)]
    goal = Goal(agreement=0.9)
    with connect(heads, server.address, goal=goal, on_failure="hedge", local=whole) as remote:
        eventually(lambda: remote.profile(X)[0].place == "local")
        settles(lambda: remote(X) is not None and remote.last is not None and remote.last.source == "local")
        assert remote.last is not None
        assert remote.last.reason == STAYS
        hedged = remote.stats.hedged
        remote(X)
        assert remote.stats.hedged == hedged


def test_asyncio_does_the_same(server: Server) -> None:
    heads: Any = [Device("near", 0.03), Device("far", 0.002)]

    async def settles_too(remote: AsyncRemote, took: Callable[[], bool]) -> None:
        in_a_row = 0
        for _ in range(200):
            await remote(X)
            in_a_row = in_a_row + 1 if took() else 0
            if in_a_row >= 4:
                return
        pytest.fail("it does not settle")

    async def main() -> None:
        async with await connect_async(heads, server.address, goal=Goal(agreement=0.9)) as remote:
            await settles_too(remote, lambda: remote.last is not None and remote.last.split == "far")
            assert remote.last is not None
            assert remote.last.quality in (1, 2)
            assert remote.plan is not None
            assert remote.plan.split == "far"
            await remote(X, quality=0)
            assert (remote.last.split, remote.last.quality) == ("near", 0)
        local: Any = {"on_failure": "local", "local": whole}
        async with await connect_async(heads, server.address, goal=Goal(agreement=0.9), **local) as remote:
            plans = await remote.profile(X)
            assert all(plan.measured for plan in plans)
            await settles_too(remote, lambda: remote.last is not None and remote.last.source == "local")
            assert remote.last is not None
            assert remote.last.reason == STAYS
        async with await connect_async(heads, server.address) as remote:
            assert (remote.plans, remote.plan) == ((), None)
            with pytest.raises(LocalProtocolError, match="has no goal"):
                await remote.profile(X)

    asyncio.run(main())


def test_a_forked_child_is_refused_the_plans_whose_lock_may_be_held(server: Server) -> None:
    heads: Any = [Device("near")]
    goal = Goal(seconds=1)

    async def main() -> None:
        async with await connect_async(heads, server.address, goal=goal) as remote:
            refused(remote)

    def refused(remote: Any) -> None:
        remote._link.forked = True
        for name in ("plans", "plan"):
            with pytest.raises(LocalProtocolError, match="was made in another process"):
                getattr(remote, name)
        remote._link.forked = False

    with connect(heads, server.address, goal=goal) as remote:
        refused(remote)
    asyncio.run(main())


def test_a_link_that_carries_little_gets_little(server: Server) -> None:
    relay = Relay(server.address, bytes_per_second=10_000)
    heads: Any = [Device("near")]
    with connect(heads, relay.address, goal=Goal(seconds=0.08)) as remote:
        # 1600 bytes would take 160 ms.
        settles(lambda: remote(X) is not None and remote.last is not None and remote.last.quality in (0, 1))


def test_calls_that_all_come_too_late_are_followed_by_shorter_ones(server: Server) -> None:
    relay = Relay(server.address)
    heads: Any = [Device("near")]
    with connect(heads, relay.address, goal=Goal(seconds=0.05), timeout=30, heartbeat=30) as remote:
        remote(X)
        assert remote.last is not None
        assert remote.last.quality == 2
        relay.hold()
        for _ in range(3):
            with pytest.raises(ReadTimeout):
                remote(X, timeout=0.2)
        assert remote.plan is not None
        assert remote.plan.quality == 0


def test_plans_are_the_same_from_many_threads(server: Server) -> None:
    heads: Any = [Device("near"), Device("far")]
    with connect(heads, server.address, goal=Goal(agreement=0.9)) as remote:
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(lambda _: remote(X), range(64))]
        assert all(np.array_equal(left, right) for left, right in itertools.pairwise(answers))
        assert remote.stats.edge == 64
