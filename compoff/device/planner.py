"""Which way a remote with a goal takes, call by call, by what the calls before took.

How a way is chosen among what is expected is for ``partition``; what was learned of each, for ``ways``.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from compoff.checks import check_whole
from compoff.device.timing import Estimate
from compoff.device.ways import GAIN, TRIALS, Trust, Way, at_best, ways_of
from compoff.errors import LocalProtocolError
from compoff.partition.decide import Goal, Plan, decide
from compoff.partition.link import LinkEstimate

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.coding import Coding
    from compoff.device.answers import CallReport, Heads
    from compoff.device.calls import Call

__all__ = ["STAYS", "Choice", "Planner", "check_profiled", "no_goal"]

_MOST = Goal(seconds=math.inf)  # whatever keeps most
STAYS, PROFILED = "the goal prefers the device now", "it is being profiled"  # reasons of answers from the device


class Choice(NamedTuple):
    """What a call takes.

    Args:
        split: The split point; None for the first head.
        quality: Index of the quality; None for the export's default.
        stays: Why the edge is not asked at all; None where it is.
        coding: How the payload is coded; None for the shortest.
    """

    split: str | None
    quality: int | None
    stays: str | None = None
    coding: Coding | None = None


class Planner:
    """The ways of a remote's heads, what each takes now, and the one that a goal prefers. Threads share it.

    A head that has not run twice counts as taking no time, with context models and without them, so that it is tried;
    the whole model on the device is only chosen once its time is known. A way that fails is left out for a while. One
    that has not run for half a minute is taken once if it would be better, should it take as little as it ever did, or
    a quarter of what it took last.

    Args:
        heads: The heads.
        goal: What calls shall keep and take.
        alone: Whether the whole model can run on this device.
        clock: Seconds, never falling.

    Raises:
        ArtifactError: A head's figures are not such as a fit leaves, or it has none.
        LocalProtocolError: No way keeps the agreement that is asked for.

    Source: DeepCOD (SenSys 2020), Sec. 4.2.
    """

    def __init__(self, heads: Heads, goal: Goal, *, alone: bool, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without a time."""
        if not isinstance(goal, Goal):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LocalProtocolError(f"goal is a {type(goal).__name__}; expected a compoff.Goal")
        self._goal = goal
        self._clock = clock
        self._ways = {(way.split, way.coding): way for head in heads.all for way in ways_of(head)}
        self._alone = alone
        self._local_trust, self._local = Trust(), Estimate(warm_up=True, gain=GAIN)
        self._link = LinkEstimate()
        self._reply_bytes = Estimate(gain=GAIN)
        self._opened = 0
        self._lock = threading.Lock()
        decide(self._plans(), goal)  # a goal that cannot be reached is refused now

    def plans(self, round_trip: float | None = None) -> tuple[Plan, ...]:
        """Every way with what it is expected to take now, the fastest first.

        Args:
            round_trip: Of next to no bytes, as the link last measured it, in seconds; None where it has not.
        """
        with self._lock:
            self._link.ping(round_trip)
            return tuple(sorted(self._plans(), key=lambda plan: plan.seconds))

    def plan(self, round_trip: float | None = None) -> Plan:
        """The way that the goal prefers now.

        Args:
            round_trip: As for `plans`.
        """
        with self._lock:
            self._link.ping(round_trip)
            return self._preferred(self._plans(), self._clock())

    def next(self, round_trip: float | None = None, opened: int = 0, max_bytes: int | None = None) -> Plan:
        """The way that the next call takes: the goal's, or now and then one that may have become better.

        Args:
            round_trip: As for `plans`.
            opened: Connections that were opened so far: of a link over another one nothing is known.
            max_bytes: Most bytes that the payload may have.
        """
        now = self._clock()
        with self._lock:
            self._notice(opened)
            self._link.ping(round_trip)
            plans = _within(self._plans(), max_bytes)
            plan = self._preferred(plans, now)
            self._trust(plan).preferred()
            for trust, hoped in self._worth_a_look(plan, now):
                # What beats the preferred one beats all that it is preferred to.
                chosen = self._preferred([plan, *_within(hoped, max_bytes)], now)
                if self._trust(chosen) is trust:
                    trust.looked(now)
                    return chosen
            return plan

    def choose(
        self,
        split: str | None,
        quality: int | None,
        round_trip: float | None,
        opened: int,
        max_bytes: int | None,
    ) -> Choice:
        """What a call takes: as its caller said, or where nothing was said, as the goal prefers.

        Args:
            split: The split point that the caller named.
            quality: The quality that the caller named.
            round_trip: As for `next`.
            opened: As for `next`.
            max_bytes: As for `next`.

        Raises:
            FeatureError: `max_bytes` is no whole number.
        """
        check_whole("max_bytes", max_bytes, or_none=True)
        if split is not None or quality is not None:
            with self._lock:
                self._notice(opened)  # what this call will tell is of this connection
            return Choice(split, quality)
        plan = self.next(round_trip, opened, max_bytes)
        return Choice(plan.split, plan.quality, STAYS if plan.place == "local" else None, plan.coding)

    def trials(self) -> list[Choice]:
        """What to run so that every way's time is known: few bytes and many, for the link; and the whole model."""
        ends = [(way, quality) for way in self._ways.values() for quality in (0, len(way.qualities) - 1)]
        local = [Choice(None, None, PROFILED)] * (TRIALS if self._alone else 0)
        return [*(Choice(way.split, quality, coding=way.coding) for way, quality in ends), *local]

    def answered(self, report: CallReport, *, asked: bool, hedged: bool) -> None:
        """Take an answered call into account, wherever it was answered.

        Args:
            report: Its report.
            asked: Whether the edge was to answer it.
            hedged: Whether the device may have answered while the edge was still being waited for.
        """
        now = self._clock()
        with self._lock:
            way = self._way(report.split, report.coding)
            if report.source == "edge":
                # Context models take many times what other coders do; without them the coding changes little of a time.
                if report.coding in (way.coding, "range") or (way.split, "static") not in self._ways:
                    way.learn(report, now)
                else:
                    way.trust.release()
                self._reply_bytes.add(report.reply_bytes)
                if not report.retried:  # else the time of what was lost is in it
                    on_link = max(0.0, report.remote_seconds - report.server_seconds)
                    self._link.add(report.payload_bytes + report.reply_bytes, on_link)
                return
            if self._local_trust.looking:
                self._local = Estimate(gain=GAIN)
            self._local.add(report.local_seconds)
            self._local_trust.learned(now)
            if asked and not hedged:
                way.trust.failed(now)
            if asked and not report.retried:
                self._at_least(way, report.payload_bytes, report.remote_seconds)

    def failed(self, call: Call, *, asked: bool, late: bool) -> None:
        """Take a call into account that ended without an answer.

        Args:
            call: The call.
            asked: Whether the edge was to answer it.
            late: Whether its time was over.
        """
        now = self._clock()
        with self._lock:
            if not asked:
                self._local_trust.failed(now)
                return
            way = self._way(call.head.split, call.coding)
            way.trust.failed(now)
            if late and call.payload is not None and not call.retried:
                self._at_least(way, len(call.payload), call.since_encoded)

    def _notice(self, opened: int) -> None:
        if opened != self._opened:
            self._opened = opened
            self._link = LinkEstimate()
            for way in self._ways.values():
                way.trust.release()

    def _at_least(self, way: Way, payload_bytes: int, seconds: float) -> None:
        """A call took at least so long: where less was expected, that tells of the link or of the tail."""
        num_bytes = payload_bytes + (self._reply_bytes.mean or 0.0)
        expected = self._link.seconds(num_bytes) or 0.0
        if payload_bytes and seconds > expected + way.server_seconds:
            self._link.at_least(num_bytes, seconds)
            way.server_takes(seconds)

    def _preferred(self, plans: list[Plan], now: float) -> Plan:
        """What the goal prefers of the ways that have not just failed; of all, where none of those keeps to it."""
        trusted = [plan for plan in plans if not self._trust(plan).held(now)]
        for ways in (trusted, plans):
            with contextlib.suppress(LocalProtocolError):
                return decide(ways, self._goal)
        return decide(plans, _MOST)  # a call's own ``max_bytes`` leaves nothing that keeps to it

    def _way(self, split: str, coding: Coding | None) -> Way:
        """The way that a call took; one that its caller coded otherwise counts as the head's own."""
        return self._ways.get((split, coding)) or self._ways[split, None]

    def _trust(self, plan: Plan) -> Trust:
        return self._local_trust if plan.split is None else self._way(plan.split, plan.coding).trust

    def _worth_a_look(self, plan: Plan, now: float) -> list[tuple[Trust, list[Plan]]]:
        """Ways that have not run for a while, with what may be hoped of them."""
        chosen = self._trust(plan)

        def due(trust: Trust) -> bool:
            return trust is not chosen and trust.due(now) and not trust.held(now)

        line = self._link.line_at_best if plan.place == "local" else self._link.line
        ways = [way for way in self._ways.values() if due(way.trust)]
        found = [(way.trust, self._edge_plans(way, *way.at_best(), line)) for way in ways]
        if self._local.mean is not None and due(self._local_trust):
            found.append((self._local_trust, [self._local_plan(at_best(self._local))]))
        return found

    def _plans(self) -> list[Plan]:
        plans: list[Plan] = []
        for way in self._ways.values():
            plans += self._edge_plans(way, way.head_seconds, way.server_seconds, self._link.line)
        if self._alone:
            plans.append(self._local_plan(math.inf if self._local.mean is None else self._local.mean))
        return plans

    def _edge_plans(self, way: Way, head: float, server: float, line: tuple[float, float]) -> list[Plan]:
        start, slope = line
        start += (self._reply_bytes.mean or 0.0) * slope
        plans: list[Plan] = []
        for quality, figures in enumerate(way.qualities):
            payload = way.payload_bytes(quality)
            link = start + payload * slope
            kept, error = figures.agreement, figures.output_error
            times = (head, link, server)
            plans.append(Plan(way.split, quality, kept, error, payload, *times, "edge", way.measured, way.coding))
        return plans

    def _local_plan(self, seconds: float) -> Plan:
        return Plan(None, None, 1.0, 0.0, 0, seconds, 0.0, 0.0, "local", self._local.mean is not None)


def _within(plans: list[Plan], max_bytes: int | None) -> list[Plan]:
    """The plans whose payloads mostly have no more bytes; where none does, the shortest of each head, cut."""
    if max_bytes is None:
        return plans
    within = [plan for plan in plans if plan.payload_bytes <= max_bytes]
    if any(plan.place == "edge" for plan in within):
        return within
    longest_first = sorted(plans, key=lambda plan: plan.payload_bytes, reverse=True)
    return [*{plan.split: plan for plan in longest_first}.values()]  # the last of each head stays


def no_goal() -> LocalProtocolError:
    """The error of what only a remote with a goal can do."""
    return LocalProtocolError("this remote has no goal to plan for; connect with goal=compoff.Goal(…)")


def check_profiled(keywords: dict[str, object]) -> None:
    """Refuse options of a call where every way is measured.

    Args:
        keywords: What was given by name.

    Raises:
        LocalProtocolError: One of them is such an option.
    """
    given = [name for name in ("split", "quality", "max_bytes", "coding") if name in keywords]
    if given:
        raise LocalProtocolError(f"profile was called with {given[0]}=, but measures every way; leave it out")
