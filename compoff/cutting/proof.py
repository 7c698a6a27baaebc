"""Whether the halves of a model answer as the model does, for one sample as for several, and each sample by itself.

A program holds what the model did with two samples. Code that branches on the size of the batch does something else
with one or with many; a model that mixes the samples of a batch would let an edge mix the answers of several devices.
What torch.export notes of the former is read, the rest is seen by trying. Knows graphs and tensors, no codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from compoff.batch import Batch
from compoff.cutting.trace import frozen
from compoff.errors import SplitError
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.export import ExportedProgram

    from compoff.cutting.inputs import ExampleInputs

    Run: TypeAlias = Callable[[ExampleInputs], tuple[Sequence[Tensor], Sequence[Tensor]]]

__all__ = ["answers_alike", "check_sizes", "prove"]

_SIZES = (1, 3)  # of the batches that are tried; a program is made with two samples
# Rounding, and kernels that take another way for another size, move an output by far less than these shares of its
# largest value; a branch not taken or a neighbor mixed in moves it by more.
_CLOSE = {torch.float16: 0.25, torch.bfloat16: 0.25}
_CLOSE_OTHERS = 0.05
_FAR = 0.02  # share of the symbols that may be off by more than one step


def check_sizes(program: ExportedProgram, most: int, split: str) -> None:
    """Refuse a program that is known to hold for some sizes of a batch only.

    Args:
        program: The whole model as a program.
        most: Largest number of samples in a batch.
        split: Name of the split point, for messages.

    Raises:
        SplitError: There is a size that it was not made for.
    """
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    axes = [value.shape[0] for value in inputs if isinstance(value, Tensor) and value.dim()]
    batches: list[Any] = [axis.node for axis in axes if isinstance(axis, torch.SymInt)]
    conditions: list[Any] = [guard.expr for guard in batches[0].shape_env.guards] if batches else []
    for size in range(2, most + 1) if conditions else ():
        values = {batch.expr: size for batch in batches}
        if any(condition.subs(values) == False for condition in conditions):  # noqa: E712 - SymPy's own false
            raise _otherwise(size, split)


def prove(
    split: str,
    example: ExampleInputs,
    run: Run,
    head: Callable[..., Sequence[Tensor]],
    tail: Callable[..., Sequence[Tensor]] | None = None,
    *,
    most: int,
    crossing: Sequence[bool] = (),
    leaves: Sequence[bool] = (),
) -> None:
    """Try both halves beside the model itself.

    Args:
        split: Name of the split point, for messages.
        example: Example inputs.
        run: Runs the model itself; returns its symbols at the cut and the tensors of its output.
        head: Inputs to symbols, side tensors, and what else there is.
        tail: Symbols and side tensors to the tensors of the output; None where that is no program.
        most: Largest number of samples in a batch.
        crossing: For each side tensor, whether its first axis is the batch.
        leaves: For each tensor of the output, likewise.

    Raises:
        SplitError: A half does something else than the model, or one sample's answer depends on the others.
    """
    merged = all((*crossing, *leaves))  # an edge runs several requests as one only where everything has a batch axis
    with torch.random.fork_rng(devices=[]):
        for size in (one for one in _SIZES if one <= most):
            found = _tried(example.of_size(size), run)
            if found is None:
                continue
            given, symbols, outputs = found
            parts = _run(head, given.tensors, size, split)
            same = all(map(_near, parts, symbols))
            if same and tail is not None:
                arrived = [*symbols, *parts[len(symbols) : len(symbols) + len(crossing)]]
                answers = _run(tail, arrived, size, split)
                same = len(answers) == len(outputs) and all(map(_close, answers, outputs))
                if same and merged and size > 1:
                    for place in (0, size - 1):
                        here = slice(place, place + 1)
                        alone = _run(tail, [part[here] for part in arrived], 1, split)
                        _check_alone(alone, [answer[here] for answer in answers], split)
            if not same and not _random(given, run, symbols, outputs):
                raise _otherwise(size, split)


def answers_alike(base: nn.Module, other: nn.Module, example: ExampleInputs) -> bool:
    """Whether two models answer alike, as far as one batch of made-up inputs shows.

    Args:
        base: A model.
        other: Another, on whatever device.
        example: Inputs of both.

    Returns:
        Whether all tensors of their outputs are alike; also where the model refuses such inputs, or answers otherwise
        every time, so that nothing can be compared.
    """

    def run(model: nn.Module, given: ExampleInputs) -> list[Tensor]:
        first = next(model.parameters(), None)
        here = given if first is None else given.map(lambda tensor: tensor.to(first.device))
        return [tensor.cpu() for tensor in tensors_of(Batch(here.args, here.keywords).call(model))]

    with torch.random.fork_rng(devices=[]), frozen(base), frozen(other):
        found = _tried(example, lambda given: ((), run(base, given)))
        if found is None:
            return True
        given, _, outputs = found
        try:
            theirs = run(other, given)
        except Exception:
            return False
        same = len(theirs) == len(outputs) and all(map(_close, theirs, outputs))
        return same or not all(map(_close, run(base, given), outputs))


def _tried(example: ExampleInputs, run: Run) -> tuple[ExampleInputs, Sequence[Tensor], Sequence[Tensor]] | None:
    """Inputs, and what the model itself makes of them; None for a size of batch that it refuses."""
    # A model may refuse what no data looks like; and a mask of zeros, or of ones, may hide everything.
    for fill in (_drawn, _drawn_with_ones, torch.zeros_like):
        given = example.map(fill)
        try:
            symbols, outputs = run(given)
        except Exception:
            continue  # what the model itself refuses says nothing of its halves
        if all(bool(torch.isfinite(output).all()) for output in outputs):  # kernels differ in what they make of NaN
            return given, list(symbols), list(outputs)
    return None


def _run(half: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], size: int, split: str) -> Sequence[Tensor]:
    try:
        return half(*given)
    except Exception as error:
        raise _otherwise(size, split) from error


def _check_alone(alone: Sequence[Tensor], among_others: Sequence[Tensor], split: str) -> None:
    if not all(map(_close, alone, among_others)):
        raise SplitError(
            f"behind '{split}', the model's answer to a sample depends on the other samples of its batch, and an edge "
            "answers several devices in one batch; what is taken over the batch (a mean, a maximum, the statistics of "
            "BatchNorm with track_running_stats=False) must be taken per sample, or be kept from training"
        )


def _random(given: ExampleInputs, run: Run, symbols: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether the model itself answers otherwise the second time, so that nothing can be compared."""
    again, repeated = run(given)
    return not (all(map(_near, again, symbols)) and all(map(_close, repeated, outputs)))


def _otherwise(size: int, split: str) -> SplitError:
    return SplitError(
        f"cut at '{split}', the model would answer a batch of {size} otherwise than it does as a whole; a common cause "
        "is code that looks at the size of the batch (if len(x) == 1), which a program made from one batch cannot: "
        "treat every size alike, or export with a max_batch below that size"
    )


def _drawn(tensor: Tensor) -> Tensor:
    """Values of the sort that a network takes; whole numbers may be indices, and stay zero."""
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor)


def _drawn_with_ones(tensor: Tensor) -> Tensor:
    return _drawn(tensor) if tensor.is_floating_point() else torch.ones_like(tensor)


def _near(ours: Tensor, theirs: Tensor) -> bool:
    """Whether symbols are the same but for rounding."""
    if ours.shape != theirs.shape:
        return False
    return float(((ours.int() - theirs.int()).abs() > 1).double().mean()) <= _FAR


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether tensors are alike but for rounding; of whole numbers, which may be places in an order, only the form."""
    if ours.shape != theirs.shape or not theirs.is_floating_point() or not theirs.numel():
        return ours.shape == theirs.shape
    share = _CLOSE.get(theirs.dtype, _CLOSE_OTHERS)
    ours, theirs = ours.double(), theirs.double()
    if not torch.equal(ours.isfinite(), theirs.isfinite()):
        return False
    ours, theirs = ours.nan_to_num(0.0, 0.0, 0.0), theirs.nan_to_num(0.0, 0.0, 0.0)
    return float((ours - theirs).abs().max()) <= share * float(theirs.abs().max()) + 1e-6
