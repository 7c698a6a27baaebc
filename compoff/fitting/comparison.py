"""How far the student's answers are from the teacher's over many batches, in units of what answers differ by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compoff.losses import unit_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Comparison", "is_scores"]


def is_scores(output: Tensor) -> bool:
    """Whether an output is a table of scores, whose largest is the answer.

    Args:
        output: The output.

    Returns:
        Whether it is.
    """
    return output.dim() == 2 and output.shape[1] > 1


class _Sums:
    """Sums over the samples of one tensor."""

    def __init__(self) -> None:
        self.total = self.square = self.distance = 0.0
        self.samples = self.elements = 0
        self.places: Tensor | None = None  # sums of the teacher for each element of a sample, where samples are alike

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Count what teacher and student give for one batch."""
        places = ours.sum(0)
        if not self.samples:
            self.places = places
        elif self.places is not None:
            self.places = self.places + places if self.places.shape == places.shape else None
        self.total += float(ours.sum())
        self.square += float(ours.square().sum())
        self.distance += float((ours - theirs).square().sum())
        self.samples += len(ours)
        self.elements += ours.numel()

    @property
    def error(self) -> float:
        """Squared distance in units of what the teacher varies by."""
        square, mean = self.square / self.elements, self.total / self.elements
        between = None
        if self.places is not None:
            between = _number(square - float((self.places / self.samples).square().mean()))
        return self.distance / self.elements / float(unit_of(_number(square), _number(square - mean * mean), between))


class Comparison:
    """Teacher against student over many batches.

    Examples:
        >>> import torch
        >>> comparison, teacher = Comparison(), torch.tensor([[11.0, 1.0], [9.0, -1.0]])
        >>> comparison.add("", teacher, torch.tensor([[10.0, 0.0]]).expand(2, 2))
        >>> comparison.error, comparison.agreement
        (1.0, 1.0)
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}  # by block
        self._agreed: list[Tensor] = []
        self._other = 0  # outputs that are no table of scores

    def add(self, block: str, teacher: Tensor, student: Tensor) -> None:
        """Compare what a block, or with an empty name the model, gives for one batch.

        Args:
            block: Path of the block; empty for the model's output.
            teacher: What the model gives.
            student: What it gives from restored features.
        """
        ours, theirs = teacher.detach().cpu().double(), student.detach().cpu().double()
        self._sums.setdefault(block, _Sums()).add(ours, theirs)
        if not block and is_scores(teacher):
            self._agreed.append(ours.argmax(1) == theirs.argmax(1))
        elif not block:
            self._other += 1

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same class; None where the output is no table of scores, or not always."""
        scores = bool(self._agreed) and not self._other and list(self._sums) == [""]
        return float(torch.cat(self._agreed).double().mean()) if scores else None

    @property
    def error(self) -> float:
        """Squared distance in units of what samples differ by; the mean over what was compared."""
        return sum(sums.error for sums in self._sums.values()) / len(self._sums)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")
