"""The student's pass and the loss: the model run on from restored features, beside what the teacher's pass left.

Knows no optimizer and no loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compoff.batch import refusals_named
from compoff.errors import FitError
from compoff.losses import distillation, relative_error
from compoff.teaching import TeacherRecord, comparable, float_tensors, incomparable, tapped

if TYPE_CHECKING:
    from compoff.batch import Batch
    from compoff.codec import Bottleneck, BottleneckOutput
    from compoff.cutting.sites import Site
    from compoff.gates import Gate
    from compoff.recipe import Recipe

__all__ = ["DistillationTerms", "student_pass"]


@dataclass(frozen=True)
class DistillationTerms:
    """The terms of one step's loss, all scalars.

    Args:
        reconstruction: Eq. 10's first term, in units of the feature's own variance.
        orthogonality: Eq. 7, or None where it counts for nothing.
        distillation: Eq. 11, or None in the first phase.
        estimated_rate: What the symbols are expected to cost, in the bottleneck's own unit; its gradient reaches the
            encoder.
        prior_rate: The same with the symbols held fixed; its gradient reaches the prior only.
        bits: What a sample takes at the rate that a fit is held to, in bits; None where no bottleneck has another.
    """

    reconstruction: Tensor
    orthogonality: Tensor | None
    distillation: Tensor | None
    estimated_rate: Tensor
    prior_rate: Tensor
    bits: Tensor | None = None

    def total(self, recipe: Recipe, rate: float) -> Tensor:
        """The loss.

        Args:
            recipe: Weights of the terms.
            rate: Weight of the rate.

        Returns:
            A scalar.
        """
        loss = recipe.reconstruction * self.reconstruction
        if self.orthogonality is not None:
            loss = loss + recipe.orthogonality * self.orthogonality
        if self.distillation is not None:
            loss = loss + recipe.distillation * self.distillation
        return loss + recipe.prior * self.prior_rate + rate * self.estimated_rate


def student_pass(
    base: nn.Module,
    gate: Gate,
    site: Site,
    record: TeacherRecord,
    batch: Batch,
    recipe: Recipe,
    *,
    distill: bool,
) -> DistillationTerms:
    """Compute the terms of the loss at one split point.

    Args:
        base: The model.
        gate: The split point's gate.
        site: The split point's site.
        record: The teacher's record of the same batch.
        batch: The batch.
        recipe: Whether Eq. 7 counts, and whether Eq. 11 is averaged over the later blocks instead of summed.
        distill: Whether to run the model on from the restored feature (Eq. 11).

    Returns:
        The terms.

    Raises:
        FeatureError: The feature has another shape or dtype than the bottleneck was made for.
        FitError: The model's output holds no floating-point tensor to compare, no gradient of it reaches the
            bottleneck, or nothing behind the split point keeps its shape; or several processes train together and have
            not been calibrated.

    Examples:
        >>> import torch, compoff
        >>> from compoff.batch import Batch
        >>> from compoff.recipe import Recipe
        >>> from compoff.teaching import teacher_pass
        >>> x, net = torch.randn(4, 32), torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU())
        >>> model = compoff.wrap(net, "input", example_input=x, codec="deepcod")
        >>> gate, site, batch = model.gate("input"), model.sites["input"], Batch((x,))
        >>> record = teacher_pass(net, {"input": gate}, model.sites, batch, blocks=False)
        >>> student_pass(net, gate, site, record, batch, Recipe(), distill=False).distillation is None
        True

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2, Eq. 10, and Sec. 3.3, Eq. 11, left-hand term.
    """
    pairs = zip(gate.bottlenecks, record.features[site.path], strict=True)
    outputs = [_through(bottleneck, y, site.path) for bottleneck, y in pairs]
    # Before the model sees y_hat, which it may change in place.
    restored = [relative_error(output.y, output.y_hat, output.importance) for output in outputs]
    adapter = gate.bottleneck.adapter
    if adapter is not None and not distill:
        restored.append(restored.pop() + adapter.nothing())  # DistributedDataParallel wants every parameter reached
    distances = [bottleneck.semi_orthogonality_error() for bottleneck in gate.bottlenecks if recipe.orthogonality]
    return DistillationTerms(
        torch.stack(restored).mean(),
        torch.stack(distances).sum() if distances else None,
        _distilled(base, gate, site, record, batch, outputs, average=recipe.average) if distill else None,
        torch.stack([output.estimated_rate for output in outputs]).mean(),
        torch.stack([output.prior_rate for output in outputs]).mean(),
        torch.stack(bits).sum() if (bits := [output.bits for output in outputs if output.bits is not None]) else None,
    )


def _through(bottleneck: Bottleneck, y: Tensor, split: str) -> BottleneckOutput:
    """One feature through its bottleneck, which learns its units from the first one it sees."""
    bottleneck.geometry.check(y)
    y = y.to(bottleneck.quantizer.centers.dtype)
    if not bottleneck.calibrated:
        _refuse_own_units(split)
        bottleneck.calibrate(y)
    return bottleneck.run(y)


def _refuse_own_units(split: str) -> None:
    """Refuse a first step inside DistributedDataParallel, where each process would measure units of its own."""
    if getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None) is None:
        return
    if torch.distributed.get_world_size() > 1:
        raise FitError(
            f"the bottleneck at '{split}' has seen no data yet, and processes that train together must start from the "
            "same units; call compoff.DistillationLoss(model).calibrate(batch) before the model is handed to "
            "DistributedDataParallel"
        )


def _distilled(
    base: nn.Module,
    gate: Gate,
    site: Site,
    record: TeacherRecord,
    batch: Batch,
    outputs: list[BottleneckOutput],
    *,
    average: bool,
) -> Tensor:
    """Run the model on from restored features and compare what it computes with the teacher's record."""
    if not record.output:
        raise FitError(
            "the model returns no floating-point tensor, so there is nothing to distil; wrap the part of the model "
            "that returns scores or features"
        )
    blocks: dict[str, list[Tensor]] = {}
    restored = [output.y_hat for output in outputs]
    with gate.replacing(restored), tapped(base, site.later, blocks), refusals_named(batch):
        result = float_tensors(batch.call(base))
    if any(y_hat.requires_grad for y_hat in restored) and not any(tensor.requires_grad for tensor in result):
        raise FitError(
            f"no gradient of the model's output reaches the bottleneck at '{site.path}'; a common cause is gradient "
            "checkpointing inside the model with use_reentrant=True: pass use_reentrant=False to it, or turn it off"
        )
    teacher, student, count = _over_blocks(site, record, blocks, result)
    where = outputs[0].y.device  # a model may hand its answer over on the CPU, or go on on another card
    teacher, student = ([tensor.to(where) for tensor in side] for side in (teacher, student))
    weights = [output.importance for output in outputs if output.importance is not None]
    importance = torch.stack(weights).mean(0) if weights else None
    return distillation(teacher, student, importance, average=average, outputs=count)


def _over_blocks(
    site: Site, record: TeacherRecord, blocks: dict[str, list[Tensor]], result: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], int]:
    """What Eq. 11 compares: later blocks, then outputs, and how many of these; a block's tensor that is one is no more.

    Where the last block's tensor is the output, it counts once. Where no output can be compared, the last block's
    tensor stands for it (`compoff.answering.answers`).
    """
    outputs = comparable(record.output, result)
    pairs = [pair for path in site.later for pair in comparable(record.blocks.get(path, []), blocks.get(path, []))]
    pairs = [pair for pair in pairs if not any(pair[0] is teacher for teacher, _ in outputs)] + outputs
    if not pairs:
        raise incomparable(site.path)
    return [teacher for teacher, _ in pairs], [student for _, student in pairs], len(outputs) or 1
