"""The ways that a remote with a goal can take, and what calls told of each: times, sizes, whether to trust it.

Which of them is taken is for ``planner``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from compoff.checks import is_number
from compoff.device.timing import Estimate
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.coding import Coding
    from compoff.device.answers import CallReport
    from compoff.device.sender import Sender

__all__ = ["GAIN", "TRIALS", "Figures", "Trust", "Way", "at_best", "ways_of"]

TRIALS = 2  # runs of a head before its time is believed: the first of them may hold a warm-up
GAIN = 1 / 4  # of a new time or size: a way that is seldom taken has few to tell what it takes now
_HOLD, _LONGEST_HOLD = 1.0, 60.0  # seconds that a way is left out after a failure, twice as long after each further one
_LOOK, _LONGEST_LOOK = 30.0, 300.0  # seconds without a run after which a way is looked at again, if it could be better
_AROUND = 7.5  # bytes of a payload that no symbol takes: header, checksum, and half a byte to the next whole one
_HOPE = 4  # times shorter than it was last that a way may be hoped to take


@dataclass(frozen=True)
class Figures:
    """What the fit measured of one quality.

    Args:
        num_bytes: Mean bytes of a payload of one sample.
        agreement: Share of the answers that it keeps; None where there are no scores.
        output_error: What it changes of the output.
    """

    num_bytes: float
    agreement: float | None
    output_error: float


class Trust:
    """When a way is taken: not for a while after it failed, and once for a look when it has not run for a while.

    Examples:
        >>> trust = Trust()
        >>> trust.learned(now=0.0)
        >>> trust.due(now=29.0), trust.due(now=31.0)
        (False, True)
        >>> trust.failed(now=40.0)
        >>> trust.held(now=40.9), trust.held(now=41.1)
        (True, False)

    Source: this project.
    """

    __slots__ = ("_hold", "_look", "_told", "_until", "looking")

    def __init__(self) -> None:
        """Start trusted, and worth a look."""
        self.looking = False  # what it takes now counts alone
        self._told = -math.inf
        self._look = _LOOK
        self._until = -math.inf
        self._hold = _HOLD

    def learned(self, now: float) -> None:
        """Note that it answered, at a moment of a clock in seconds."""
        self._told, self._until, self._hold, self.looking = now, -math.inf, _HOLD, False

    def failed(self, now: float) -> None:
        """Note that it did not."""
        self._until, self._told = now + self._hold, now
        self._hold = min(2 * self._hold, _LONGEST_HOLD)

    def held(self, now: float) -> bool:
        """Whether it is left out because it has just failed."""
        return now < self._until

    def release(self) -> None:
        """Forget failures: what they were due to may be gone, as with a connection."""
        self._until, self._hold = -math.inf, _HOLD

    def due(self, now: float) -> bool:
        """Whether it has not run for so long that it is worth a look."""
        return now - self._told >= self._look

    def looked(self, now: float) -> None:
        """Note a look, after which the next takes twice as long to come."""
        self._told, self._look, self.looking = now, min(2 * self._look, _LONGEST_LOOK), True

    def preferred(self) -> None:
        """Note that it is what the goal prefers: when it no longer is, a look comes soon again."""
        self._look = _LOOK


class Way:
    """One head with one way to code what it sends, and what calls told of it.

    Args:
        head: The head.
        coding: How it codes; None for the shortest.
        samples: How large its symbols are, against those of one sample; None to learn it anew.

    Raises:
        ArtifactError: Its figures are not such as a fit leaves, or it has none.

    Source: this project.
    """

    def __init__(self, head: Sender, coding: Coding | None = None, samples: Estimate | None = None) -> None:
        self.split = head.split
        self.coding: Coding | None = coding
        self.qualities = _figures(head, "bytes" if coding is None else f"{coding}_bytes")
        self.trust = Trust()
        # Bytes of symbols, against those of one sample when the codec was fitted.
        self._samples = samples or Estimate(gain=GAIN)
        # What is expected now; nothing before it is believed. The quality changes little of a head's time.
        self.head_seconds = self.server_seconds = 0.0
        self.measured = False
        self._runs = 0
        self._head, self._server = Estimate(warm_up=True, gain=GAIN), Estimate(warm_up=True, gain=GAIN)

    def payload_bytes(self, quality: int) -> float:
        """What a payload of a quality is expected to have.

        Args:
            quality: Index of the quality.

        Returns:
            Bytes.
        """
        figures, samples = self.qualities[quality], self._samples.mean
        return figures.num_bytes if samples is None else _AROUND + max(0.0, figures.num_bytes - _AROUND) * samples

    def learn(self, report: CallReport, now: float) -> None:
        """Take a call that the edge answered into account.

        Args:
            report: Its report.
            now: Moment of a clock, in seconds.
        """
        if self.trust.looking:
            self._head, self._server = Estimate(gain=GAIN), Estimate(gain=GAIN)
        self._runs += 1
        self._head.add(report.head_seconds)
        self._server.add(report.server_seconds)
        known = report.quality is not None and report.quality < len(self.qualities)
        if report.quality is not None and known and not report.cut and report.coding in (self.coding, "range"):
            of_one = self.qualities[report.quality].num_bytes - _AROUND
            self._samples.add(max(0.0, report.payload_bytes - _AROUND) / max(0.1, of_one))
        self.trust.learned(now)
        self._believe()

    def server_takes(self, seconds: float) -> None:
        """Take into account that the server had not answered after so long, if that is longer than was expected."""
        if seconds > self.server_seconds:
            self._runs = max(self._runs, TRIALS)
            self._server.add(seconds)
            self._believe()

    def at_best(self) -> tuple[float, float]:
        """Seconds of the head and of the server that may be hoped for, where neither has run for a while."""
        return at_best(self._head), at_best(self._server)

    def _believe(self) -> None:
        if self._runs >= TRIALS:
            self.measured = True
            self.head_seconds, self.server_seconds = self._head.mean or 0.0, self._server.mean or 0.0


def at_best(estimate: Estimate) -> float:
    """What may be hoped for of a time that was not measured for a while: the best there was, or a part of the last.

    Args:
        estimate: The time.

    Returns:
        Seconds.
    """
    return min(estimate.best, (estimate.mean or 0.0) / _HOPE)


def ways_of(head: Sender) -> list[Way]:
    """The ways of a head: the shortest, and without contexts where it has some, which may be quicker.

    Args:
        head: The head.

    Raises:
        ArtifactError: As for `Way`.
    """
    curve = _curve(head)
    points: list[Any] = [*cast("Sequence[Any]", curve)] if isinstance(curve, (list, tuple)) else []
    known = bool(points) and all(isinstance(point, dict) and "static_bytes" in point for point in points)
    samples = Estimate(gain=GAIN)  # a call's, however it is coded
    return [Way(head, None, samples), *([Way(head, "static", samples)] if known else [])]


def _figures(head: Sender, key: str) -> list[Figures]:
    """What the fit measured of each quality, from the manifest; of the one quality where a codec serves only one.

    Raises:
        ArtifactError: It says nothing of them, or nothing that can be right.
    """
    curve, count = _curve(head), len(head.manifest.codes[0].qualities) if head.manifest.codes else 0
    if not isinstance(curve, list) or len(cast("list[Any]", curve)) != count:
        raise ArtifactError(
            f"the head of '{head.split}' has no figures of its {count} qualities, so no goal can choose among them; "
            "export it after compoff.fit or compoff.finish, which measure them"
        )
    return [_of_quality(head.split, point, key) for point in cast("list[Any]", curve)]


def _curve(head: Sender) -> Any:
    """What the manifest says of each quality, right or wrong."""
    report = head.manifest.report
    return report.get("curve") or ([report] if "bytes" in report else [])


def _of_quality(split: str, point: Any, key: str) -> Figures:
    values = cast("dict[str, Any]", point) if isinstance(point, dict) else {}
    num_bytes, agreement, error = (values.get(name) for name in (key, "agreement", "output_error"))
    kept = agreement is None or (_at_least_zero(agreement) and agreement <= 1)
    if not (kept and _at_least_zero(num_bytes) and (error is None or _at_least_zero(error))):
        raise ArtifactError(
            f"the head of '{split}' says that a quality takes {num_bytes} bytes, keeps {agreement} of the answers and "
            f"changes {error}, which cannot be; export it again"
        )
    return Figures(float(cast("float", num_bytes)), agreement, float(error or 0.0))


def _at_least_zero(value: Any) -> bool:
    return is_number(value) and 0 <= value < math.inf
