"""One teacher pass and one student pass: what a step of label-free fitting computes.

The teacher's pass records the features at the split points and after every later block; the student's pass runs the
same model from the restored feature. Knows no optimizer and no loop.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.batch import refusals_named
from compoff.errors import FitError, SplitError
from compoff.hooks import uncompiled
from compoff.losses import distillation, relative_error
from compoff.spare import spare_buffers
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from compoff.batch import Batch
    from compoff.codec import Bottleneck, BottleneckOutput
    from compoff.cutting.sites import Site
    from compoff.gates import Gate
    from compoff.recipe import Recipe

__all__ = [
    "DistillationTerms",
    "TeacherRecord",
    "answers",
    "float_tensors",
    "student_pass",
    "teacher_pass",
]


class _Enough(Exception):
    """Ends a pass that has shown all that is needed; not an error."""


@dataclass
class TeacherRecord:
    """What the teacher's pass leaves for the student's.

    Args:
        features: Features that cross at each split point, in the codec's layout: the one that enters it first.
        blocks: Tensors that each later block returned.
        output: Floating-point tensors of the model's output.
    """

    features: dict[str, list[Tensor]] = field(default_factory=dict[str, "list[Tensor]"])
    blocks: dict[str, list[Tensor]] = field(default_factory=dict[str, "list[Tensor]"])
    output: list[Tensor] = field(default_factory=list[Tensor])


@dataclass(frozen=True)
class DistillationTerms:
    """The terms of one step's loss, all scalars.

    Args:
        reconstruction: Eq. 10's first term, in units of the feature's own variance.
        orthogonality: Eq. 7.
        distillation: Eq. 11, or None in the first phase.
        estimated_rate: What the symbols are expected to cost, in the bottleneck's own unit; its gradient reaches the
            encoder.
        prior_rate: The same with the symbols held fixed; its gradient reaches the prior only.
    """

    reconstruction: Tensor
    orthogonality: Tensor
    distillation: Tensor | None
    estimated_rate: Tensor
    prior_rate: Tensor

    def total(self, recipe: Recipe, rate: float) -> Tensor:
        """The loss.

        Args:
            recipe: Weights of the terms.
            rate: Weight of the rate.

        Returns:
            A scalar.
        """
        loss = recipe.reconstruction * self.reconstruction + recipe.orthogonality * self.orthogonality
        if self.distillation is not None:
            loss = loss + recipe.distillation * self.distillation
        return loss + recipe.prior * self.prior_rate + rate * self.estimated_rate


@contextlib.contextmanager
def _tapped(base: nn.Module, paths: tuple[str, ...], taken: dict[str, list[Tensor]]) -> Generator[None]:
    """Collect what the modules at `paths` return while the block runs, which leaves the model's buffers alone."""

    def tap(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            taken.setdefault(path, []).extend(float_tensors(output))

        return hook

    handles = [base.get_submodule(path).register_forward_hook(tap(path)) for path in paths]
    try:
        with uncompiled(base), spare_buffers(base):
            yield
    finally:
        for handle in handles:
            handle.remove()


def float_tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of a nested output that hold something for each sample, in order.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.

    Returns:
        The tensors; scalars, such as a loss that the model computes itself, are left out.

    Raises:
        FitError: One of them is sparse or ragged, so that it cannot be compared.

    Examples:
        >>> import torch
        >>> len(float_tensors({"logits": torch.zeros(1), "ids": torch.zeros(1, dtype=torch.long)}))
        1
    """
    found = [tensor for tensor in tensors_of(value) if tensor.is_floating_point() and tensor.dim() > 0]
    for tensor in found:
        if tensor.layout is not torch.strided or tensor.is_nested:
            layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise FitError(
                f"the model, or a block of it, returns a tensor of layout {layout}, which cannot be compared; let it "
                "return a dense one, as .to_dense() gives"
            )
    return found


def _comparable(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of tensors, where both passes give the same shapes: a detector may find another number of boxes."""
    if [one.shape for one in teacher] != [other.shape for other in student]:
        return []
    return [(one, other) for one, other in zip(teacher, student, strict=True) if one.numel()]


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
    if pairs := _comparable(teacher, output):
        return ("", *next((pair for pair in pairs if pair[0] is teacher[which]), pairs[0]))
    blocks: dict[str, list[Tensor]] = {}
    record = teacher_pass(base, {site.path: gate}, {site.path: site}, batch, blocks=True)
    with gate.replacing(restored), _tapped(base, site.later, blocks), refusals_named(batch):
        batch.call(base)
    for path in reversed(site.later):
        if pairs := _comparable(record.blocks.get(path, []), blocks.get(path, [])):
            return (path, *pairs[-1])
    raise _incomparable(site.path)


def _incomparable(split: str) -> FitError:
    return FitError(
        f"whatever the model computes behind '{split}' is empty or has another shape when the feature there is "
        "restored, so there is nothing to compare; take a split point before a block whose shapes do not depend on "
        "values, or wrap the part of the model that returns scores"
    )


def teacher_pass(
    base: nn.Module, gates: Mapping[str, Gate], sites: Mapping[str, Site], batch: Batch, *, blocks: bool
) -> TeacherRecord:
    """Run the model as it is and record what the student is compared with.

    Args:
        base: The model.
        gates: Gates of the split points to record, by path.
        sites: Sites of the same split points.
        batch: One batch.
        blocks: Whether later blocks and the output are needed; without them the pass ends at the last split point.

    Returns:
        The record.

    Raises:
        FeatureError: The model refused the batch.
        SplitError: The pass did not come by a split point.

    Examples:
        >>> import torch, compoff
        >>> from compoff.batch import Batch
        >>> x = torch.randn(4, 32)
        >>> model = compoff.wrap(torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU()), "input", example_input=x)
        >>> gates = {"input": model.gate("input")}
        >>> record = teacher_pass(model.base, gates, model.sites, Batch((x,)), blocks=True)
        >>> list(record.blocks), record.output[0].shape
        (['0'], torch.Size([4, 8]))

    Source: DeepCOD (SenSys 2020), Sec. 3.3, Eq. 11, right-hand term.
    """
    record = TeacherRecord()

    def keep(path: str) -> Any:
        def replace(features: list[Tensor]) -> list[Tensor]:
            # Cloned, because the model may go on to change them in place.
            record.features[path] = [feature.detach().clone() for feature in features]
            if not blocks and len(record.features) == len(gates):
                raise _Enough
            return features

        return replace

    later = tuple(dict.fromkeys(path for name in gates for path in sites[name].later)) if blocks else ()
    for path, gate in gates.items():
        gate.replace = keep(path)
    try:
        with torch.no_grad(), _tapped(base, later, record.blocks), refusals_named(batch), contextlib.suppress(_Enough):
            record.output = float_tensors(batch.call(base))
    finally:
        for gate in gates.values():
            gate.replace = None
    for path in gates:
        if path not in record.features:
            raise SplitError(
                f"this batch did not pass the split point '{path}'; choose one that every input passes, such as the "
                "block around it"
            )
    return record


def student_pass(
    base: nn.Module,
    gate: Gate,
    site: Site,
    record: TeacherRecord,
    batch: Batch,
    *,
    distill: bool,
    average: bool = False,
) -> DistillationTerms:
    """Compute the terms of the loss at one split point.

    Args:
        base: The model.
        gate: The split point's gate.
        site: The split point's site.
        record: The teacher's record of the same batch.
        batch: The batch.
        distill: Whether to run the model on from the restored feature (Eq. 11).
        average: Whether to average Eq. 11 over the later blocks instead of summing it.

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
        >>> x, net = torch.randn(4, 32), torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU())
        >>> model = compoff.wrap(net, "input", example_input=x, codec="deepcod")
        >>> gate, site, batch = model.gate("input"), model.sites["input"], Batch((x,))
        >>> record = teacher_pass(net, {"input": gate}, model.sites, batch, blocks=False)
        >>> student_pass(net, gate, site, record, batch, distill=False).distillation is None
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
    return DistillationTerms(
        torch.stack(restored).mean(),
        torch.stack([bottleneck.semi_orthogonality_error() for bottleneck in gate.bottlenecks]).sum(),
        _distilled(base, gate, site, record, batch, outputs, average=average) if distill else None,
        torch.stack([output.estimated_rate for output in outputs]).mean(),
        torch.stack([output.prior_rate for output in outputs]).mean(),
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
    with gate.replacing(restored), _tapped(base, site.later, blocks), refusals_named(batch):
        result = float_tensors(batch.call(base))
    if any(y_hat.requires_grad for y_hat in restored) and not any(tensor.requires_grad for tensor in result):
        raise FitError(
            f"no gradient of the model's output reaches the bottleneck at '{site.path}'; a common cause is gradient "
            "checkpointing inside the model with use_reentrant=True: pass use_reentrant=False to it, or turn it off"
        )
    teacher, student, count = _over_blocks(site, record, blocks, result)
    weights = [output.importance for output in outputs if output.importance is not None]
    importance = torch.stack(weights).mean(0) if weights else None
    return distillation(teacher, student, importance, average=average, outputs=count)


def _over_blocks(
    site: Site, record: TeacherRecord, blocks: dict[str, list[Tensor]], result: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], int]:
    """What Eq. 11 compares: later blocks, then outputs, and how many of these; a block's tensor that is one is no more.

    Where the last block's tensor is the output, it counts once.
    """
    outputs = _comparable(record.output, result)
    pairs = [pair for path in site.later for pair in _comparable(record.blocks.get(path, []), blocks.get(path, []))]
    pairs = [pair for pair in pairs if not any(pair[0] is teacher for teacher, _ in outputs)] + outputs
    if not pairs:
        raise _incomparable(site.path)
    return [teacher for teacher, _ in pairs], [student for _, student in pairs], len(outputs)
