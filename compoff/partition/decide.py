"""The decision: of all ways to answer a call, the one that a goal prefers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from compoff.checks import NEARLY, is_number
from compoff.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compoff.coding import Coding

__all__ = ["Goal", "Place", "Plan", "decide"]

Place: TypeAlias = Literal["edge", "local"]
"""Where an answer is made: on the edge, or by the whole model on the device."""


@dataclass(frozen=True)
class Goal:
    """What calls shall keep of the answers, and how long they may take.

    - ``Goal(agreement=0.95)``: the fastest way that keeps 95 % of the answers.
    - ``Goal(seconds=0.05)``: within 50 ms, the way that keeps most; where nothing is so fast, the fastest.
    - Both: of the ways that keep 95 %, the best within 50 ms, or the fastest of them.

    Args:
        agreement: Share of the samples, from 0 to 1, whose answer is to be that of the model itself, as it was measured
            when the codec was fitted (`SplitReport.agreement`).
        seconds: Time that a call may take, in seconds. No deadline: `timeout` of `compoff.connect` is one.

    Raises:
        LocalProtocolError: Neither was given, or one is out of its range.

    Examples:
        >>> Goal(agreement=0.95)
        Goal(agreement=0.95, seconds=None)
        >>> Goal()
        Traceback (most recent call last):
        ...
        compoff.errors.LocalProtocolError: a goal of nothing: expected agreement=, seconds= or both

    Source: DeepCOD (SenSys 2020), Sec. 3.4.2, Eq. 14: the fastest way; agreement and time as limits are this project's.
    """

    agreement: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.agreement is None and self.seconds is None:
            raise LocalProtocolError("a goal of nothing: expected agreement=, seconds= or both")
        if self.agreement is not None and not (is_number(self.agreement) and 0 <= self.agreement <= 1):
            raise LocalProtocolError(f"agreement={self.agreement!r} was given; expected a share from 0 to 1")
        if self.seconds is not None and not (is_number(self.seconds) and self.seconds > 0):
            raise LocalProtocolError(f"seconds={self.seconds!r} was given; expected a time above 0")


class Plan(NamedTuple):
    """One way to answer a call, and what it is expected to take now.

    Attributes:
        split: Where to split; None of the whole model on the device.
        quality: Index of the quality; None of the whole model on the device.
        agreement: Share of the answers that it keeps, as measured when the codec was fitted; None where that model has
            no scores to agree in.
        output_error: What the codec changes of the output, as measured then (`SplitReport.output_error`).
        payload_bytes: Bytes to send.
        head_seconds: Time of the head on this device, or of the whole model, in seconds.
        link_seconds: Time of the link, in seconds.
        server_seconds: Time inside the server, in seconds.
        place: ``"edge"``, or ``"local"`` for the whole model on the device.
        measured: Whether the device has run this head, and the server its tail, so that no time is missing: else what
            is missing counts as nothing, and of the whole model on the device as infinite.
        coding: ``"static"`` where the payload does without context models that the export has; None for the shortest.

    Examples:
        >>> plan = Plan("layer2", 3, 0.95, 0.02, 600.0, 0.010, 0.015, 0.005)
        >>> round(plan.seconds, 3)
        0.03

    Source: DeepCOD (SenSys 2020), Sec. 3.4.2, Eq. 14.
    """

    split: str | None
    quality: int | None
    agreement: float | None
    output_error: float
    payload_bytes: float
    head_seconds: float
    link_seconds: float
    server_seconds: float
    place: Place = "edge"
    measured: bool = True
    coding: Coding | None = None

    @property
    def seconds(self) -> float:
        """What a call takes from end to end: the sum that Eq. 14 minimizes."""
        return self.head_seconds + self.link_seconds + self.server_seconds


def decide(plans: Iterable[Plan], goal: Goal) -> Plan:
    """Choose the plan that a goal prefers.

    Args:
        plans: All ways, with what each is expected to take.
        goal: What is wanted.

    Returns:
        One of the plans.

    Raises:
        LocalProtocolError: None of them keeps the agreement that is asked for, or has been measured for it.

    Examples:
        >>> near = Plan("layer1", 0, 0.90, 0.05, 900.0, 0.005, 0.020, 0.005)
        >>> good = Plan("layer1", 1, 0.97, 0.02, 2000.0, 0.005, 0.044, 0.005)
        >>> alone = Plan(None, None, 1.0, 0.0, 0.0, 0.200, 0.0, 0.0, place="local")
        >>> ways = [near, good, alone]
        >>> [decide(ways, Goal(seconds=limit)).quality for limit in (0.01, 0.04, 0.06, 0.3)]
        [0, 0, 1, None]
        >>> decide(ways, Goal(agreement=0.95)).quality, decide(ways, Goal(agreement=0.99)).place
        (1, 'local')

    Source: DeepCOD (SenSys 2020), Sec. 3.4.2, Eq. 14.
    """
    ways, floor = [*plans], goal.agreement
    kept = [way for way in ways if not floor or (way.agreement is not None and way.agreement >= floor - NEARLY)]
    if not kept:
        raise LocalProtocolError(_too_much(ways, goal))
    kept = [way for way in kept if way.seconds < math.inf] or kept  # what takes how long nobody knows is no choice
    in_time = [way for way in kept if goal.seconds is not None and way.seconds <= goal.seconds]
    if not in_time:
        return min(kept, key=lambda way: (way.seconds, *_lost(way)))
    return min(in_time, key=lambda way: (*_lost(way), way.seconds))


def _lost(way: Plan) -> tuple[float, float]:
    """What a way loses of the answers, the less the better; where none has an agreement the error decides."""
    return -(1.0 if way.agreement is None else way.agreement), way.output_error


def _too_much(ways: list[Plan], goal: Goal) -> str:
    known = [way.agreement for way in ways if way.agreement is not None]
    if not known:
        return (
            "these heads have no agreement measured, which takes a model with scores for output, or agreement= of the "
            "fit; give seconds="
        )
    return (
        f"no way keeps an agreement of {goal.agreement:g}; the best has {_down(max(known)):g}. Ask for less, or fit "
        "for more bytes"
    )


def _down(share: float) -> float:
    """A share in four digits that it does not fall below, so that it can be asked for."""
    return math.floor((share + NEARLY) * 1e4) / 1e4
