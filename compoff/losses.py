"""The objectives of the paper as pure functions: reconstruction (Eq. 10) and distillation (Eq. 11).

The orthogonality term (Eq. 7) lies with the encoder, the rate with the prior. Knows tensors only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["distillation", "reconstruction", "relative_error", "unit_of"]

# Share of the mean square below which a variance is the rounding of equal numbers, some units in their last place.
_NOTHING = 1e-12
# Of an output's variance. A model whose answer hardly depends on its input would else drown the terms of its blocks.
_LEAST_BETWEEN = 0.01


def reconstruction(y: Tensor, y_hat: Tensor, importance: Tensor | None = None) -> Tensor:
    """Squared distance between a feature and its restored form.

    Args:
        y: The feature.
        y_hat: The restored feature.
        importance: Weight of each sample; None to let them count alike.

    Returns:
        ``‖y − y_hat‖²`` per sample, weighted and averaged over the batch: a scalar.

    Shapes:
        y and y_hat ``(batch, *shape)``; importance ``(batch,)``.

    Examples:
        >>> import torch
        >>> float(reconstruction(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [0, 2, 0]])))
        2.5

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2, Eq. 10 (first term; Eq. 5 with a normalised decoder).
    """
    distances = (y - y_hat).float().square().reshape(len(y), -1).sum(1)
    return distances.mean() if importance is None else (distances * importance).mean()


def unit_of(square: Tensor, whole: Tensor, between: Tensor | None = None) -> Tensor:
    """What the squared error of an element is measured in.

    Args:
        square: The teacher's mean square.
        whole: Its variance over all elements.
        between: Its variance between samples, the mean over the elements of one; None to leave it out.

    Returns:
        The variance between samples if there is any, else that of all elements, else the mean square; 1 for zeros.

    Examples:
        >>> import torch
        >>> square, whole, between = torch.tensor(104.0), torch.tensor(4.0), torch.tensor(1.0)
        >>> float(unit_of(square, whole, between)), float(unit_of(square, whole)), float(unit_of(square, 0 * whole))
        (1.0, 4.0, 104.0)

    Source: this project.
    """
    unit = torch.where(square > 0, square, torch.ones_like(square))
    for variance in (whole, between):
        if variance is not None:
            unit = torch.where(variance > _NOTHING * square, variance, unit)
    return unit


def relative_error(
    teacher: Tensor, student: Tensor, importance: Tensor | None = None, *, between_samples: float | None = None
) -> Tensor:
    """Squared distance in units of the teacher's own variation.

    The paper sums the squared distances of layers whose sizes and scales differ by orders of magnitude and gives no
    weights; this unit lets each of them count, and makes one learning rate fit every network.

    Args:
        teacher: What the model computes.
        student: What it computes from the restored feature.
        importance: Weight of each sample; None to let them count alike.
        between_samples: Not None to take what samples differ by for the unit, but at least this share of the variance
            of all elements. That holds what the elements of one sample differ by, too, which is no answer where the
            columns of an output have means of their own.

    Returns:
        `reconstruction` divided by the teacher's variance per element and by the number of elements: a scalar, 1 for a
        student that always answers the mean. Where the teacher's elements are all alike, their square is the unit.

    Shapes:
        teacher and student ``(batch, *shape)``; importance ``(batch,)``.

    Examples:
        >>> import torch
        >>> teacher = torch.tensor([[1.0], [-1.0]])
        >>> float(relative_error(teacher, torch.zeros(2, 1)))
        1.0

    Source: this project.
    """
    values = teacher.detach().float()
    whole, between = values.var(unbiased=False), None
    if between_samples is not None and len(values) > 1:
        between = torch.maximum(values.var(0).mean(), between_samples * whole)
    unit = unit_of(values.square().mean(), whole, between)
    return reconstruction(teacher, student, importance) / (unit * teacher[0].numel())


def distillation(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    importance: Tensor | None = None,
    *,
    average: bool = False,
    outputs: int = 0,
) -> Tensor:
    """Distance of the student's features from the teacher's, over every later block and the final output.

    Args:
        teacher: Features of the blocks after the split point and the model's output, from the teacher's pass.
        student: The same from the student's pass.
        importance: Weight of each sample; None to let them count alike. A feature with another number of rows than
            there are weights, such as tokens flattened over the batch, counts them alike.
        average: Whether to take the mean over the features instead of the paper's sum, so that one weight of the rate
            fits networks of any depth.
        outputs: How many of the last features are the model's outputs, whose unit is what samples differ by, but at
            least a hundredth of the variance of all their elements.

    Returns:
        The sum or the mean of Eq. 11 over the features, each in the unit of `relative_error`: a scalar.

    Shapes:
        Each pair alike, ``(batch, *shape)``.

    Examples:
        >>> import torch
        >>> float(distillation([torch.tensor([[1.0], [-1.0]])], [torch.tensor([[0.0], [0.0]])]))
        1.0

    Source: DeepCOD (SenSys 2020), Sec. 3.3, Eq. 11.
    """
    terms = [
        relative_error(
            ours,
            theirs,
            importance if importance is None or len(importance) == len(ours) else None,
            between_samples=_LEAST_BETWEEN if place >= len(teacher) - outputs else None,
        )
        for place, (ours, theirs) in enumerate(zip(teacher, student, strict=True))
    ]
    total = sum(terms[1:], start=terms[0])
    return total / len(terms) if average else total
