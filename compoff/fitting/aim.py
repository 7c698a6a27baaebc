"""What a fit is aimed at: bytes, one number or one for each split point, or a share of answers that may change.

Chooses the default quality among measured ones. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compoff.checks import NEARLY, check_number, plain
from compoff.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Aim"]

_BYTES = "a number of bytes above 0"
_TOLERANCE = 1.02


@dataclass(frozen=True)
class Aim:
    """What the default quality is chosen by.

    Args:
        target_bytes: Mean length of a payload that it shall not exceed, in bytes; by split point where they differ,
            which leaves those that are not named without an aim.
        max_drop: Share of answers that it may change.

    Examples:
        >>> curve = [
        ...     {"bytes": 50.0, "agreement": 0.95, "output_error": 0.02},
        ...     {"bytes": 90.0, "agreement": 0.995, "output_error": 0.004},
        ... ]
        >>> Aim(max_drop=0.01).choose("layer1", curve), Aim({"layer1": 60}).choose("layer1", curve)
        (1, 0)
    """

    target_bytes: float | Mapping[str, float] | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        target = self.target_bytes
        if isinstance(target, Mapping):
            target = {split: plain(count) for split, count in target.items()}
        object.__setattr__(self, "target_bytes", plain(target))  # reports and states of a fit are JSON
        object.__setattr__(self, "max_drop", plain(self.max_drop))

    def check(self, codec: str) -> None:
        """Refuse aims that cannot be meant, or that a codec does not have.

        Args:
            codec: Name of the codec that the model was wrapped with.

        Raises:
            FitError: A number is out of range, both are given, or the codec has only one rate.

        Examples:
            >>> Aim(target_bytes=60).check("transform")
        """
        if codec == "deepcod" and self != Aim():
            raise FitError(
                'target_bytes and max_drop need a codec with several rates; wrap with codec="transform", or set the '
                'bytes of "deepcod" by channels'
            )
        if self.target_bytes is not None and self.max_drop is not None:
            raise FitError(f"target_bytes is {self.target_bytes} and max_drop is {self.max_drop}; give one of them")
        if isinstance(self.target_bytes, Mapping):
            if not self.target_bytes:
                raise FitError("target_bytes is empty; name a split point with its bytes, or leave it out")
            for split, count in self.target_bytes.items():
                _check_bytes(f"target_bytes of {split!r:.80}", count)
        elif self.target_bytes is not None:
            _check_bytes("target_bytes", self.target_bytes)
        check_number("max_drop", self.max_drop, FitError, "a share between 0 and 1, such as 0.01", or_none=True)
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise FitError(f"max_drop is {self.max_drop}; expected a share between 0 and 1, such as 0.01")

    def check_points(self, split_points: Sequence[str]) -> None:
        """Refuse bytes for a split point that there is not.

        Args:
            split_points: All there are.

        Raises:
            FitError: Another one is named.

        Examples:
            >>> Aim({"layer9": 60}).check_points(["layer1", "layer2"])
            Traceback (most recent call last):
            compoff.errors.FitError: target_bytes names 'layer9', which is no split point of this model; ...
        """
        for split in self.target_bytes if isinstance(self.target_bytes, Mapping) else ():
            if split not in split_points:
                known = ", ".join(f"'{path}'" for path in split_points)
                raise FitError(
                    f"target_bytes names {split!r:.80}, which is no split point of this model; it has {known}"
                )

    def bytes_at(self, split: str) -> float | None:
        """The bytes to aim at.

        Args:
            split: A split point.

        Returns:
            The bytes of a payload there; None without an aim of bytes.
        """
        return self.target_bytes.get(split) if isinstance(self.target_bytes, Mapping) else self.target_bytes

    def asked(self, split: str) -> str | None:
        """How a user asked for it.

        Args:
            split: A split point.

        Returns:
            The argument and its value there; None where there is no aim.

        Examples:
            >>> Aim({"layer1": 60}).asked("layer1"), Aim({"layer1": 60}).asked("layer2")
            ('target_bytes=60', None)
        """
        if self.max_drop is not None:
            return f"max_drop={self.max_drop}"
        target = self.bytes_at(split)
        return None if target is None else f"target_bytes={target}"

    def choose(self, split: str, curve: list[dict[str, Any]]) -> int:
        """The quality that keeps to the aim.

        Args:
            split: The split point.
            curve: Points from the fewest bytes to the most, with ``bytes``, ``agreement`` and ``output_error``.

        Returns:
            Index of the one within `target_bytes` (with 2 % of tolerance) that changes the output least, of the
            cheapest one within `max_drop`, or without an aim of the last. Where none keeps to the aim, the nearest.
        """
        if self.bytes_at(split) is not None:
            within = [index for index, point in enumerate(curve) if self.met(split, point)]
            return min(within, key=lambda index: (curve[index]["output_error"], -index), default=0)
        if self.max_drop is not None:
            return next((index for index, point in enumerate(curve) if self.met(split, point)), len(curve) - 1)
        return len(curve) - 1

    def met(self, split: str, point: dict[str, Any]) -> bool:
        """Whether a quality keeps to the aim.

        Args:
            split: The split point.
            point: A point of the curve.

        Returns:
            Whether it does; where the output is no table of scores, no share of changed answers is known to be small.
        """
        target = self.bytes_at(split)
        if target is not None:
            return point["bytes"] <= _TOLERANCE * target
        if self.max_drop is None:
            return True
        return point["agreement"] is not None and 1 - point["agreement"] <= self.max_drop + NEARLY


def _check_bytes(name: str, count: Any) -> None:
    check_number(name, count, FitError, _BYTES)
    if not (math.isfinite(count) and count > 0):
        raise FitError(f"{name} is {count}; expected {_BYTES}")
