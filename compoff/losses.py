"""The objectives of the paper as pure functions: reconstruction (Eq. 10) and distillation (Eq. 11).

The orthogonality term (Eq. 7) lies with the encoder, the rate with the prior. Knows tensors only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["distillation", "reconstruction", "relative_error"]


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


def relative_error(teacher: Tensor, student: Tensor, importance: Tensor | None = None) -> Tensor:
    """Squared distance in units of the teacher's own variation.

    The paper sums the squared distances of layers whose sizes and scales differ by orders of magnitude and gives no
    weights; this unit lets each of them count, and makes one learning rate fit every network.

    Args:
        teacher: What the model computes.
        student: What it computes from the restored feature.
        importance: Weight of each sample; None to let them count alike.

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
    variance = teacher.float().var(unbiased=False)
    variance = torch.where(variance > 0, variance, teacher.float().square().mean()).clamp_min(1e-12)
    elements = teacher[0].numel()
    return reconstruction(teacher, student, importance) / (variance * elements).detach()


def distillation(
    teacher: Sequence[Tensor], student: Sequence[Tensor], importance: Tensor | None = None, *, average: bool = False
) -> Tensor:
    """Distance of the student's features from the teacher's, over every later block and the final output.

    Args:
        teacher: Features of the blocks after the split point and the model's output, from the teacher's pass.
        student: The same from the student's pass.
        importance: Weight of each sample; None to let them count alike. A feature with another number of rows than
            there are weights, such as tokens flattened over the batch, counts them alike.
        average: Whether to take the mean over the features instead of the paper's sum, so that one weight of the rate
            fits networks of any depth.

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
        relative_error(ours, theirs, importance if importance is None or len(importance) == len(ours) else None)
        for ours, theirs in zip(teacher, student, strict=True)
    ]
    total = sum(terms[1:], start=terms[0])
    return total / len(terms) if average else total
