"""What a remote with a goal knows of its ways: each head's time, each tail's, the link's, and the whole model's here.

Learned from the calls themselves. How a way is chosen is for ``partition``; how a call is made, for ``remote``.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from compoff.checks import is_number
from compoff.device.timing import Estimate
from compoff.errors import ArtifactError, LocalProtocolError
from compoff.partition.decide import Goal, Plan, decide
from compoff.partition.link import LinkEstimate

if TYPE_CHECKING:
    from compoff.device.answers import CallReport, Heads
    from compoff.device.calls import Call
    from compoff.device.sender import Sender

__all__ = ["PROFILED", "STAYS", "TRIALS", "Planner", "no_goal"]

STAYS, PROFILED = "the goal prefers the device now", "it is being profiled"  # reasons of answers from the device
TRIALS = 2  # runs of a head before its time is believed: the first of them may hold a warm-up
_EVERY = 16  # calls that the device answers by choice, after which the edge is asked once, since links recover
_GAIN = 1 / 4  # of a new time or size: a way that is seldom taken has few to tell what it takes now


def _time() -> Estimate:
    return Estimate(warm_up=True, gain=_GAIN)


@dataclass(frozen=True)
class _Figures:
    """What the fit measured of one quality."""

    num_bytes: float
    agreement: float | None
    output_error: float


class _Way:
    """One head, and what was learned of it."""

    def __init__(self, head: Sender) -> None:
        self.split = head.split
        self.qualities = _figures(head)
        self.size = Estimate(gain=_GAIN)  # bytes of a payload, against those of one sample when the codec was fitted
        # What is expected now; nothing before it is believed. The quality changes little of a head's time.
        self.head_seconds = self.server_seconds = 0.0
        self.measured = False
        self._runs = 0
        self._head, self._server = _time(), _time()

    def learn(self, report: CallReport) -> None:
        """Take a call that the edge answered into account."""
        self._runs += 1
        self._head.add(report.head_seconds)
        self._server.add(report.server_seconds)
        if report.quality is not None and report.quality < len(self.qualities):
            self.size.add(report.payload_bytes / max(1.0, self.qualities[report.quality].num_bytes))
        if self._runs >= TRIALS:
            self.measured = True
            self.head_seconds, self.server_seconds = self._head.mean or 0.0, self._server.mean or 0.0


class Planner:
    """The ways of a remote's heads, what each takes now, and the one that a goal prefers. Threads share it.

    A head that has not run twice counts as taking no time, so that it is tried; the whole model on the device is only
    chosen once its time is known, from ``profile`` or from a call that the edge did not answer.

    Args:
        heads: The heads.
        goal: What calls shall keep and take.
        alone: Whether the whole model can run on this device.

    Raises:
        ArtifactError: A head's figures are not such as a fit leaves, or it has none.
        LocalProtocolError: No way keeps the agreement that is asked for.

    Source: DeepCOD (SenSys 2020), Sec. 4.2.
    """

    def __init__(self, heads: Heads, goal: Goal, *, alone: bool) -> None:
        """Start without a time."""
        if not isinstance(goal, Goal):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise LocalProtocolError(f"goal is a {type(goal).__name__}; expected a compoff.Goal")
        self._goal = goal
        self._ways = [_Way(head) for head in heads.all]
        self._by_split = {way.split: way for way in self._ways}
        self._alone = alone
        self._local = _time()
        self._link = LinkEstimate()
        self._reply_bytes = Estimate(gain=_GAIN)
        self._stayed = 0  # calls in a row that the device answered by choice
        self._lock = threading.Lock()
        decide(self._plans(None), goal)  # a goal that cannot be reached is refused now

    def plans(self, round_trip: float | None = None) -> tuple[Plan, ...]:
        """Every way with what it is expected to take now, the fastest first.

        Args:
            round_trip: Of next to no bytes, as the link last measured it, in seconds; None where it has not.
        """
        with self._lock:
            return tuple(sorted(self._plans(round_trip), key=lambda plan: plan.seconds))

    def plan(self, round_trip: float | None = None) -> Plan:
        """The way that the goal prefers now.

        Args:
            round_trip: As for `plans`.
        """
        with self._lock:
            return decide(self._plans(round_trip), self._goal)

    def next(self, round_trip: float | None = None) -> Plan:
        """The way that the next call takes: the goal's, or now and then the edge where the device is preferred.

        Args:
            round_trip: As for `plans`.
        """
        with self._lock:
            plans = self._plans(round_trip)
            plan = decide(plans, self._goal)
            if plan.place == "edge":
                self._stayed = 0
                return plan
            self._stayed += 1
            floor = self._goal.agreement
            edge = [one for one in plans if one.place == "edge" and (floor is None or (one.agreement or 0.0) >= floor)]
            return plan if self._stayed % _EVERY or not edge else decide(edge, self._goal)

    def choose(
        self, split: str | None, quality: int | None, round_trip: float | None
    ) -> tuple[str | None, int | None, str | None]:
        """What a call takes: as its caller said, or where nothing was said, as the goal prefers.

        Args:
            split: The split point that the caller named.
            quality: The quality that the caller named.
            round_trip: As for `plans`.

        Returns:
            Split point and quality, and why the edge is not asked at all; None where it is.
        """
        if split is not None or quality is not None:
            return split, quality, None
        plan = self.next(round_trip)
        return plan.split, plan.quality, STAYS if plan.place == "local" else None

    def trials(self) -> list[tuple[str, int]]:
        """Split points and qualities to run so that every way's time is known: few bytes and many, for the link."""
        return [(way.split, quality) for way in self._ways for quality in (0, len(way.qualities) - 1)]

    def answered(self, report: CallReport) -> None:
        """Take an answered call into account, wherever it was answered."""
        with self._lock:
            if report.source == "local":
                self._local.add(report.local_seconds)
                self._at_least(report.payload_bytes, report.remote_seconds)
                return
            self._by_split[report.split].learn(report)
            self._reply_bytes.add(report.reply_bytes)
            if not report.retried:  # else the time of what was lost is in it
                on_link = max(0.0, report.remote_seconds - report.server_seconds)
                self._link.add(report.payload_bytes + report.reply_bytes, on_link)

    def missed(self, call: Call, now: float) -> None:
        """Take a call into account that the edge had not answered by its deadline.

        Args:
            call: The call.
            now: Moment of ``time.monotonic()`` at which it was given up.
        """
        if call.payload is not None:
            with self._lock:
                self._at_least(len(call.payload), now - call.encoded)

    def _at_least(self, payload_bytes: int, seconds: float) -> None:
        """A call that was given up took at least so long, which tells something only where less was expected."""
        num_bytes = payload_bytes + (self._reply_bytes.mean or 0.0)
        if payload_bytes and seconds > (self._link.seconds(num_bytes) or 0.0):
            self._link.add(num_bytes, seconds)

    def _plans(self, round_trip: float | None) -> list[Plan]:
        if round_trip is not None:
            self._link.ping(round_trip)
        start, slope = self._link.line
        reply = self._reply_bytes.mean or 0.0
        plans: list[Plan] = []
        for way in self._ways:
            size, head, server = way.size.mean or 1.0, way.head_seconds, way.server_seconds
            for quality, figures in enumerate(way.qualities):
                payload = figures.num_bytes * size
                link = start + (payload + reply) * slope
                kept, error = figures.agreement, figures.output_error
                plans.append(Plan(way.split, quality, kept, error, payload, head, link, server, "edge", way.measured))
        if self._alone:
            known = self._local.mean is not None
            seconds = math.inf if self._local.mean is None else self._local.mean
            plans.append(Plan(self._ways[0].split, None, 1.0, 0.0, 0, seconds, 0.0, 0.0, "local", known))
        return plans


def no_goal() -> LocalProtocolError:
    """The error of what only a remote with a goal can do."""
    return LocalProtocolError("this remote has no goal to plan for; connect with goal=compoff.Goal(…)")


def _figures(head: Sender) -> list[_Figures]:
    """What the fit measured of each quality, from the manifest; of the one quality where a codec serves only one.

    Raises:
        ArtifactError: It says nothing of them, or nothing that can be right.
    """
    report, count = head.manifest.report, len(head.manifest.codes[0].qualities) if head.manifest.codes else 0
    curve: Any = report.get("curve") or [report]
    if not isinstance(curve, list) or len(cast("list[Any]", curve)) != count:
        raise ArtifactError(
            f"the head of '{head.split}' has no figures of its {count} qualities, so no goal can choose among them; "
            "export it after compoff.fit or compoff.finish, which measure them"
        )
    return [_of_quality(head.split, point) for point in cast("list[Any]", curve)]


def _of_quality(split: str, point: Any) -> _Figures:
    values = cast("dict[str, Any]", point) if isinstance(point, dict) else {}
    num_bytes, agreement, error = (values.get(name) for name in ("bytes", "agreement", "output_error"))
    kept = agreement is None or (_at_least_zero(agreement) and agreement <= 1)
    if not (kept and _at_least_zero(num_bytes) and (error is None or _at_least_zero(error))):
        raise ArtifactError(
            f"the head of '{split}' says that a quality takes {num_bytes} bytes, keeps {agreement} of the answers and "
            f"changes {error}, which cannot be; export it again"
        )
    return _Figures(float(cast("float", num_bytes)), agreement, float(error or 0.0))


def _at_least_zero(value: Any) -> bool:
    return is_number(value) and 0 <= value < math.inf
