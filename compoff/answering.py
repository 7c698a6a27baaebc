"""What stands for a model's answer, with and without restored features.

Where several tensors come back, or shapes that depend on values, one that both runs have is chosen. Knows no loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.batch import refusals_named
from compoff.spare import spare_buffers
from compoff.teaching import comparable, float_tensors, incomparable, tapped, teacher_pass

if TYPE_CHECKING:
    from compoff.batch import Batch
    from compoff.cutting.sites import Site
    from compoff.gates import Gate

__all__ = ["answers", "student_output", "telling"]


def telling(base: nn.Module, gate: Gate, batch: Batch, features: list[Tensor], teacher: list[Tensor]) -> int:
    """Which tensor of the output stands for the answer: the first that depends on what is coded.

    An early exit before the split point is the same whatever a codec does.

    Args:
        base: The model.
        gate: The split point's gate.
        batch: A batch.
        features: The features there.
        teacher: Floating-point tensors of the model's output for the batch.

    Returns:
        Its place; 0 where there is only one, or none depends on it.

    Raises:
        FeatureError: The model refused the batch.
    """
    if len(teacher) < 2:
        return 0
    disturbed = [y.flip(-1) + 1 + y.abs().mean() for y in features]
    with torch.no_grad(), gate.replacing(disturbed), spare_buffers(base), refusals_named(batch):
        output = float_tensors(batch.call(base))
    pairs = enumerate(zip(teacher, output, strict=False))
    return next((place for place, (one, other) in pairs if not torch.equal(one, other)), 0)


def student_output(base: nn.Module, gate: Gate, batch: Batch, restored: list[Tensor]) -> Any:
    """What the model returns where restored features go on in place of its own.

    Args:
        base: The model.
        gate: The split point's gate.
        batch: The batch.
        restored: The restored features.

    Returns:
        Its output, nested as it is.

    Raises:
        FeatureError: The model refused the batch.
    """
    # Cloned, because the model may go on to change them in place.
    with gate.replacing([y_hat.clone() for y_hat in restored]), spare_buffers(base), refusals_named(batch):
        return batch.call(base)


def answers(
    base: nn.Module,
    gate: Gate,
    site: Site,
    batch: Batch,
    restored: list[Tensor],
    output: list[Tensor],
    teacher: list[Tensor],
    which: int = 0,
) -> tuple[str, Tensor, Tensor]:
    """What stands for the model's answer with and without restored features.

    That is a tensor of its output; where restored features give that another shape, such as another number of boxes,
    what the last block gives whose shape stays.

    Args:
        base: The model.
        gate: The split point's gate.
        site: The split point's site.
        batch: The batch.
        restored: The restored features.
        output: Floating-point tensors of what the model returns with them.
        teacher: Those of the model's output for the batch.
        which: Which of them it is, as `telling` finds it.

    Returns:
        The path of the block, empty for the output; the teacher's tensor; the student's.

    Raises:
        FeatureError: The model refused the batch.
        FitError: All shapes behind the split point depend on the feature.
    """
    if pairs := comparable(teacher, output):
        return ("", *next((pair for pair in pairs if pair[0] is teacher[which]), pairs[0]))
    blocks: dict[str, list[Tensor]] = {}
    record = teacher_pass(base, {site.path: gate}, {site.path: site}, batch, blocks=True)
    with gate.replacing(restored), tapped(base, site.later, blocks), refusals_named(batch):
        batch.call(base)
    for path in reversed(site.later):
        if pairs := comparable(record.blocks.get(path, []), blocks.get(path, [])):
            return (path, *pairs[-1])
    raise incomparable(site.path)
