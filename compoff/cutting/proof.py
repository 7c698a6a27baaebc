"""Whether the halves of a model answer as the model does, for one sample as for several, and each sample by itself.

A program holds what the model did with two samples. Code that branches on the size of the batch does something else
with one or with many; a model that mixes the samples of a batch would let an edge mix the answers of several devices.
What torch.export notes of the former is read, the rest is seen by trying. Knows graphs and tensors, no codec.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from compoff.batch import Batch
from compoff.cutting.watching import frozen
from compoff.errors import FeatureError, SplitError
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from compoff.cutting.inputs import ExampleInputs

    Run: TypeAlias = Callable[[ExampleInputs], tuple[Sequence[Tensor], Sequence[Tensor]]]

__all__ = ["answers_alike", "check_sizes", "prove", "require_finite", "tried"]

_log = logging.getLogger("compoff.export")

_MANY = 3  # samples in the larger of the two batches that are tried; a program is made with two samples
# A branch not taken or a neighbor mixed in moves an output by more than this share of what samples differ by, which may
# be far less than the output itself is: a temperature in kelvin is about 300 whatever the picture.
_APART = 0.05
# Shares of its largest value that rounding may move an output by, where kernels take another way for another size.
_ROUNDING = {torch.float16: 0.25, torch.bfloat16: 0.25}
_ROUNDING_CPU = 1e-3
_ROUNDING_OTHERS = 1e-2  # accelerators multiply with ten bits where they are let
_ROUNDING_SAME = 1e-5  # and where the kernels are the same, because the size of the batch is
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
    tail: GraphModule | None = None,
    *,
    source: GraphModule,
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
        source: What the halves were cut from, whose nodes know in which numbers they compute.
        most: Largest number of samples in a batch.
        crossing: For each side tensor, whether its first axis is the batch.
        leaves: For each tensor of the output, likewise.

    Raises:
        SplitError: A half does something else than the model, or one sample's answer depends on the others.
    """
    merged = all((*crossing, *leaves))  # an edge runs several requests as one only where everything has a batch axis
    rounding, spreads = _rounding(source), None
    with torch.random.fork_rng(devices=[]):
        for size in (min(max(most, 2), _MANY), 1):
            found = tried(example.of_size(size), run)
            if found is None:
                if size > 1:
                    _log.warning("%s", _untried(split))
                continue
            given, symbols, outputs = found
            if size > 1:
                spreads = [_spread(output, size) for output in outputs]
            parts = _run(head, given.tensors, size, split)
            same = _all_near(parts, symbols, rounding)
            if same and tail is not None:
                sides = parts[len(symbols) : len(symbols) + len(crossing)]
                arrived = [part.contiguous() for part in (*symbols, *sides)]  # bytes keep no other layout
                answers = _run(tail, arrived, size, split)
                same = _alike(answers, outputs, spreads, rounding)
                if same and merged and 1 < size <= most:
                    alone = _run(tail, [part[:1] for part in arrived], 1, split)
                    first = [answer[:1] for answer in answers]
                    if not _alike(alone, first, spreads, rounding) or _mixes(tail, arrived, len(symbols), answers):
                        raise _together(split)
            if not same and not _random(given, run, symbols, outputs, spreads, rounding):
                raise _otherwise(size, split)


def require_finite(flags: Sequence[Tensor]) -> None:
    """Refuse a run of the model in which no symbol stands for what came to the cut, so that it shows nothing.

    Args:
        flags: For each code, which samples are finite.

    Raises:
        FeatureError: One is not.
    """
    if not all(bool(finite.all()) for finite in flags):
        raise FeatureError("what crosses is not finite")


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
        found = tried(example, lambda given: ((), run(base, given)))
        if found is None:
            return True
        given, _, outputs = found
        try:
            theirs = run(other, given)
        except Exception:
            return False
        spreads = [_spread(output, 2) for output in outputs]
        apart = any(tensor.device.type != "cpu" for tensor in example.tensors)  # the other's kernels are others then
        rounding = max(
            [_ROUNDING.get(output.dtype, _APART if apart else _ROUNDING_CPU) for output in outputs], default=0.0
        )
        same = _alike(theirs, outputs, spreads, rounding)
        return same or not _alike(run(base, given), outputs, spreads, rounding)


def tried(example: ExampleInputs, run: Run) -> tuple[ExampleInputs, Sequence[Tensor], Sequence[Tensor]] | None:
    """Inputs, and what the model itself makes of them.

    Args:
        example: Example inputs of the size that is asked for.
        run: Runs the model itself.

    Returns:
        Made-up inputs of these shapes, symbols and outputs; None for a size of batch that the model refuses.
    """
    # A model may refuse what no data looks like; a mask of zeros, or of ones, may hide everything.
    found = None
    for fill in (_drawn, _drawn_with_rows, _drawn_with_ones, _drawn_positive, torch.zeros_like):
        given = example.map(fill)
        try:
            symbols, outputs = map(list, run(given))
        except Exception:
            continue  # what the model itself refuses says nothing of its halves
        if not all(bool(torch.isfinite(output).all()) for output in outputs):
            continue  # kernels differ in what they make of NaN
        found = found or (given, symbols, outputs)
        if any(bool((one != one[:1]).any()) for one in symbols) or not symbols or len(symbols[0]) == 1:
            return given, symbols, outputs  # samples that are all alike would show less
    return found


def _run(half: Callable[..., Sequence[Tensor]], given: Sequence[Tensor], size: int, split: str) -> Sequence[Tensor]:
    try:
        return half(*given)
    except Exception as error:
        raise _otherwise(size, split) from error


def _random(
    given: ExampleInputs,
    run: Run,
    symbols: Sequence[Tensor],
    outputs: Sequence[Tensor],
    spreads: Sequence[float] | None,
    rounding: float,
) -> bool:
    """Whether the model itself answers otherwise the second time, so that nothing can be compared."""
    again, repeated = run(given)
    return not (_all_near(again, symbols, rounding) and _alike(repeated, outputs, spreads, rounding))


def _mixes(
    tail: Callable[..., Sequence[Tensor]], arrived: Sequence[Tensor], codes: int, answers: Sequence[Tensor]
) -> bool:
    """Whether a sample's answer changes with the other samples, in a batch of the same size and so by the same kernels.

    The others become copies of the sample itself, their symbols turned upside down.
    """
    size = len(arrived[0])
    for place in (0, size - 1):
        given = [part[[place] * size] for part in arrived]
        for symbols in given[:codes]:
            symbols[torch.arange(size, device="cpu") != place] = symbols.max() + symbols.min() - symbols[0]
        if _differ(tail(*given), answers, place):
            return not _differ(tail(*arrived), answers, place)  # or it answers otherwise every time
    return False


def _differ(ours: Sequence[Tensor], theirs: Sequence[Tensor], place: int) -> bool:
    """Whether one sample's answers differ, each number measured by how far it is from that of other samples."""
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape or not other.is_floating_point():
            return not torch.equal(one[place], other[place])
        both = torch.stack([one, other]).cpu().double().nan_to_num(0.0, 0.0, 0.0)
        spread = both.amax((0, 1)) - both.amin((0, 1))
        ours_here, theirs_here = both[:, place]
        bound = _APART * spread + _ROUNDING_SAME * theirs_here.abs()
        if bool(((ours_here - theirs_here).abs() > bound).any()):
            return True
    return False


def _together(split: str) -> SplitError:
    return SplitError(
        f"behind '{split}', the model's answer to a sample depends on the other samples of its batch, and an edge "
        "answers several devices in one batch; what is taken over the batch (a mean, a maximum, the statistics of "
        "BatchNorm with track_running_stats=False) must be taken per sample, or be kept from training"
    )


def _untried(split: str) -> str:
    return (
        f"what is exported at '{split}' could not be tried with several samples: the model refuses every such batch "
        "that was made up, or gives NaN for it. See for yourself that each sample is answered as if it came alone"
    )


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
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(tensor)


def _drawn_with_rows(tensor: Tensor) -> Tensor:
    """The same with zeros and ones by turns, otherwise in each sample."""
    if tensor.is_floating_point() or not tensor.dim():
        return _drawn(tensor)
    rows, columns = (torch.arange(size, device="cpu") for size in (len(tensor), tensor[0].numel()))
    return ((rows[:, None] + columns) % 2).reshape(tensor.shape).to(tensor)


def _drawn_with_ones(tensor: Tensor) -> Tensor:
    return _drawn(tensor) if tensor.is_floating_point() else torch.ones_like(tensor)


def _drawn_positive(tensor: Tensor) -> Tensor:
    return _drawn(tensor).abs() + 0.1 if tensor.is_floating_point() else torch.ones_like(tensor)


def _all_near(ours: Sequence[Tensor], theirs: Sequence[Tensor], rounding: float) -> bool:
    """Whether the symbols of all codes are the same but for rounding; what else there is of ours is not looked at."""
    return all(_near(*both, rounding) for both in zip(ours, theirs, strict=False))


def _near(ours: Tensor, theirs: Tensor, rounding: float) -> bool:
    """Whether symbols are the same but for rounding: a step, or in half precision a share of what they vary by."""
    if ours.shape != theirs.shape:
        return False
    varies = float(theirs.max()) - float(theirs.min()) if theirs.numel() else 0.0
    most = max(1.0, rounding * varies / 2 if rounding in _ROUNDING.values() else 0.0)
    return float(((ours.int() - theirs.int()).abs() > most).cpu().double().mean()) <= _FAR


def _alike(ours: Sequence[Tensor], theirs: Sequence[Tensor], spreads: Sequence[float] | None, rounding: float) -> bool:
    """Whether outputs are the same but for rounding, where samples differ by so much; None where that is not known."""
    if len(ours) != len(theirs):
        return False
    known = [_largest(output) for output in theirs] if spreads is None else spreads
    return all(_close(*both, rounding) for both in zip(ours, theirs, known, strict=True))


def _close(ours: Tensor, theirs: Tensor, spread: float, rounding: float) -> bool:
    """Whether tensors are alike; of whole numbers, which may be places in an order, only the form."""
    if ours.shape != theirs.shape or not theirs.is_floating_point() or not theirs.numel():
        return ours.shape == theirs.shape
    if not torch.equal(ours.isfinite(), theirs.isfinite()):
        return False
    gap = _largest(ours.cpu().double().nan_to_num(0.0, 0.0, 0.0) - theirs.cpu().double().nan_to_num(0.0, 0.0, 0.0))
    return gap <= max(_APART * spread, rounding * _largest(theirs)) + 1e-6


def _largest(tensor: Tensor) -> float:
    """The largest absolute value."""
    finite = tensor.cpu().double().nan_to_num(0.0, 0.0, 0.0)
    return float(finite.abs().max()) if finite.numel() else 0.0


def _spread(output: Tensor, size: int) -> float:
    """How far samples are from their mean at most, or the largest value where an output has no batch axis."""
    here = output.cpu()  # not every device has float64
    return _largest(here - here.double().mean(0) if here.is_floating_point() and size in here.shape[:1] else here)


def _rounding(source: GraphModule) -> float:
    """The share of an output that rounding may move it by, in the coarsest numbers that a graph computes with."""
    values = [value for node in source.graph.nodes for value in tensors_of(node.meta.get("val"))]
    coarse = [_ROUNDING[value.dtype] for value in values if value.dtype in _ROUNDING]
    if coarse:
        return max(coarse)
    return _ROUNDING_OTHERS if any(value.device.type != "cpu" for value in values) else _ROUNDING_CPU
