"""The teacher's pass: the model as it is, and what it leaves for a student to be compared with.

Knows no codec; how features are put in the place of others is the gates'.
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
from compoff.spare import spare_buffers
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from compoff.batch import Batch
    from compoff.cutting.sites import Site
    from compoff.gates import Gate

__all__ = ["TeacherRecord", "comparable", "float_tensors", "incomparable", "tapped", "teacher_pass"]


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
    before = {path: gate.replace for path, gate in gates.items()}
    for path, gate in gates.items():
        gate.replace = keep(path)
    try:
        taken = tapped(base, later, record.blocks)
        with torch.no_grad(), taken, refusals_named(batch, base), contextlib.suppress(_Enough):
            record.output = float_tensors(batch.call(base))
    finally:
        for path, gate in gates.items():
            gate.replace = before[path]
    for path in gates:
        if path not in record.features:
            raise SplitError(
                f"this batch did not pass the split point '{path}'; choose one that every input passes, such as the "
                "block around it"
            )
    return record


@contextlib.contextmanager
def tapped(base: nn.Module, paths: tuple[str, ...], taken: dict[str, list[Tensor]]) -> Generator[None]:
    """Collect what modules return while the block runs, which leaves the model's buffers alone.

    Args:
        base: The model.
        paths: Paths of the modules.
        taken: Where to, by path.

    Yields:
        Nothing.
    """

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


def comparable(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of tensors, where both passes give the same shapes: a detector may find another number of boxes.

    Args:
        teacher: Tensors of the teacher's pass.
        student: Those of the student's.

    Returns:
        The pairs that hold anything; none where the shapes differ.

    Examples:
        >>> import torch
        >>> len(comparable([torch.ones(2)], [torch.ones(2)])), len(comparable([torch.ones(2)], [torch.ones(3)]))
        (1, 0)
    """
    if [one.shape for one in teacher] != [other.shape for other in student]:
        return []
    return [(one, other) for one, other in zip(teacher, student, strict=True) if one.numel()]


def incomparable(split: str) -> FitError:
    """The error for a split point behind which no shape stays.

    Args:
        split: The split point.
    """
    return FitError(
        f"whatever the model computes behind '{split}' is empty or has another shape when the feature there is "
        "restored, so there is nothing to compare; take a split point before a block whose shapes do not depend on "
        "values, or wrap the part of the model that returns scores"
    )
