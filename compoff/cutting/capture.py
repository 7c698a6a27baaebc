"""One functionalised export of the model with a marker where it is to be cut.

The marker is an identity operator on the symbols, between encoder and centers. Functionalising first is what makes the
cut sound: an in-place operator on one side would otherwise change what the other side reads. `cut` does the cutting.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from compoff.batch import Batch
from compoff.codec import Bottleneck, trimmed
from compoff.cutting.cut import cut_at
from compoff.cutting.flat import flat_output, require_plain_call
from compoff.cutting.functional import functional
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.lines import fixing_line, users_line
from compoff.cutting.proof import check_sizes, prove, require_finite
from compoff.cutting.watching import frozen
from compoff.errors import CompoffError, SplitError
from compoff.hooks import traced
from compoff.printable import first_line
from compoff.quiet import quiet
from compoff.weights import exchange_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from torch.export import ExportedProgram

    from compoff.gates import Gate

__all__ = [
    "KeepsState",
    "Programs",
    "capture",
    "explained",
    "flat_output",
    "folded",
    "free_batch",
    "marker",
    "program_of",
]


_CODEC = "_compoff_codec"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class KeepsState(SplitError):
    """The model's answers depend on what it was asked before, so no tail of any sort can give them."""


@torch.library.custom_op("compoff::cut", mutates_args=())
def marker(symbols: Tensor, index: int = 0, finite: Tensor | None = None) -> Tensor:
    """Mark where the symbols cross from the device to the edge; gives them back unchanged.

    Args:
        symbols: The symbols.
        index: Which code they are.
        finite: For each sample, whether they stand for finite values; stays on the device.

    Returns:
        The same symbols.
    """
    del index, finite
    return symbols.clone(memory_format=torch.contiguous_format)  # as they arrive, whatever their layout before


@marker.register_fake
def _marker_fake(symbols: Tensor, index: int = 0, finite: Tensor | None = None) -> Tensor:
    del index, finite
    return torch.empty_like(symbols, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Programs:
    """The two halves of a model.

    Args:
        head: Inputs to the symbols of each code, then the side tensors, then for each code which samples are finite.
        tail: Symbols and side tensors to the tensors of the output.
        sides: The side tensors at the example inputs, and for each whether its first axis is the batch.
        leaves: Tensors of the model's output at the example inputs, and for each whether its first axis is the batch.
        structure: How they are nested; see `compoff.structure`.
    """

    head: ExportedProgram
    tail: ExportedProgram
    sides: tuple[tuple[Tensor, bool], ...]
    leaves: tuple[tuple[Tensor, bool], ...]
    structure: dict[str, Any]


def capture(
    base: nn.Module, gate: Gate, split: str, example: ExampleInputs, *, most: int, send: bool = False
) -> Programs:
    """Cut a model at a split point into two programs with a free batch size.

    Args:
        base: The model with its hooks.
        gate: The gate of the split point.
        split: Its name, for messages.
        example: Example inputs; of two samples, since the size of a single one would be baked in.
        most: Largest number of samples in a batch.
        send: Whether floating-point tensors of any size may cross as they are.

    Returns:
        Head and tail, both on the CPU.

    Raises:
        SplitError: The model refuses zeros or cannot be exported, something crosses that cannot, or the halves would
            not answer as the model does.
        ArtifactError: The model returns something that cannot be described.

    Source: this project.
    """
    require_plain_call(base, example)
    with (
        _marked(base, gate) as crossed,
        flat_output(base) as structures,
        frozen(base),
        quiet("torch", contextlib.redirect_stderr),
    ):
        leaves = tuple(leaf.detach() for leaf in _answer_to_zeros(base, example, split))
        structure = structures[-1]
        graph = _export(base, example, split, most)
        count = len(gate.bottlenecks)
        halves = cut_at(graph, torch.ops.compoff.cut.default, split, count=count, send=send)

        def run(given: ExampleInputs) -> tuple[list[Tensor], tuple[Tensor, ...]]:
            outputs: tuple[Tensor, ...] = Batch(given.args, given.keywords).call(base)
            require_finite([finite for _, finite in crossed])
            return [symbols for symbols, _ in crossed], outputs

        prove(
            split,
            example,
            run,
            halves.head,
            halves.tail,
            source=graph,
            most=most,
            crossing=halves.crossing,
            leaves=halves.batched,
        )
        parts: tuple[Tensor, ...] = halves.head(*example.tensors)
        head = program_of(halves.head, example, split)
        crossing = parts[: count + len(halves.crossing)]
        given = ExampleInputs(crossing, batched=(True,) * count + halves.crossing)
        tail = program_of(halves.tail, given, split)
        sides = tuple(zip(crossing[count:], halves.crossing, strict=True))
        return Programs(head, tail, sides, tuple(zip(leaves, halves.batched, strict=True)), structure)


def _answer_to_zeros(base: nn.Module, example: ExampleInputs, split: str) -> tuple[Tensor, ...]:
    """What the model answers to inputs of zeros, of which nothing is kept but the form."""
    try:
        return Batch(example.args, example.keywords).call(base)
    except (CompoffError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        place, reason = _told(error)
        raise SplitError(
            f"{type(base).__name__} refuses what export tries it with at '{split}', two samples of zeros in the shapes "
            f"that it was wrapped with{place}: {reason}. Fitting works; leave out what looks at the values of its "
            "inputs, such as a check of a mask or of lengths"
        ) from error


@contextlib.contextmanager
def _marked(base: nn.Module, gate: Gate) -> Generator[list[tuple[Tensor, Tensor]]]:
    """Put a copy of the bottleneck with the marker in its middle at the split point while the block runs.

    Yields a list that holds the symbols of the last pass, and for each sample whether they stand for finite values.
    """
    bottlenecks = nn.ModuleList(folded(bottleneck) for bottleneck in gate.bottlenecks)
    crossed: list[tuple[Tensor, Tensor]] = []

    def through_markers(features: list[Tensor]) -> list[Tensor]:
        restored: list[Tensor] = []
        crossed.clear()
        for index, (bottleneck, y) in enumerate(zip(_bottlenecks(bottlenecks), features, strict=True)):
            symbols, finite = bottleneck.encode_checked(y.to(bottleneck.quantizer.centers.dtype))
            crossed.append((symbols, finite))
            restored.append(bottleneck.decode(marker(symbols, index, finite)).to(y.dtype))
        return restored

    before, host = (gate.replace, gate.bottlenecks), _host(base)
    gate.replace, gate.bottlenecks = through_markers, tuple(_bottlenecks(bottlenecks))
    # Exported as a part of the model, or its parameters would become anonymous constants.
    host.add_module(_CODEC, bottlenecks)
    try:
        yield crossed
    finally:
        gate.replace, gate.bottlenecks = before
        delattr(host, _CODEC)


def folded(bottleneck: Bottleneck) -> Bottleneck:
    """A copy of a bottleneck as it is exported: trimmed, fixed, and folded into its weights what can be.

    Args:
        bottleneck: The bottleneck.

    Returns:
        The copy.
    """
    copied = trimmed(bottleneck).eval().requires_grad_(requires_grad=False)
    copied.fold()
    return copied


def _bottlenecks(modules: nn.ModuleList) -> list[Bottleneck]:
    return [module for module in modules if isinstance(module, Bottleneck)]


def _host(base: nn.Module) -> nn.Module:
    """A module that does not mind a guest: a layer without children, since a container might run the guest as one."""
    childless = [module for module in base.modules() if next(module.children(), None) is None]
    layers = [module for module in childless if next(module.parameters(), None) is not None]
    return (layers or [module for module in childless if type(module) not in _CONTAINERS] or [base])[0]


def _export(base: nn.Module, example: ExampleInputs, split: str, most: int) -> GraphModule:
    """Export, functionalise, and hand out the graph with the model's own calling convention."""

    def export() -> ExportedProgram:
        with traced(base):
            program = torch.export.export(
                base, example.args, example.keywords, dynamic_shapes=free_batch(example), strict=False
            )
            return functional(program)

    with explained(f"{type(base).__name__} cannot be exported at '{split}'", export):
        program = export()
    if changed := list(program.graph_signature.buffers_to_mutate.values()):
        raise KeepsState(
            f"{type(base).__name__} changes its own buffer '{changed[0]}' with every batch, but a head and a tail keep "
            "nothing from one call to the next, and an edge answers several devices; let eval mode leave it as it is"
        )
    check_sizes(program, most, split)
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def program_of(graph: nn.Module, example: ExampleInputs, split: str) -> ExportedProgram:
    """Export one half as a program of its own, with no sample of its inputs in it.

    Args:
        graph: The half.
        example: What it takes.
        split: The split point, for messages.

    Returns:
        The program, on the CPU.

    Raises:
        SplitError: It cannot be exported.
    """
    with explained(f"what lies on one side of '{split}' cannot be exported"):
        inputs = tuple(example.tensors)
        program = torch.export.export(graph, inputs, dynamic_shapes=free_batch(example), strict=False)
    program.example_inputs = None  # pyright: ignore[reportAttributeAccessIssue] - the setter takes None
    _own_weights(program)
    if any(tensor.device.type != "cpu" for tensor in inputs):
        program = move_to_device_pass(program, "cpu")
    return program


def _own_weights(program: ExportedProgram) -> None:
    """Give a program weights of its own: the model's may be trained on, and what is exported is what was."""
    copies: dict[int, Tensor] = {}

    def copy_of(value: Tensor) -> Tensor:
        if id(value) not in copies:  # tied ones stay so
            copied = value.detach().clone()
            copies[id(value)] = nn.Parameter(copied, False) if isinstance(value, nn.Parameter) else copied
        return copies[id(value)]

    exchange_weights(program, copy_of)


@contextlib.contextmanager
def explained(what: str, export: Callable[[], object] | None = None) -> Generator[None]:
    """Turn whatever torch.export raises, which is of many types, into what it means to the user.

    Args:
        what: Start of the message.
        export: Does the same once more, where that is to be searched for the line that PyTorch does not know.

    Yields:
        Nothing.

    Raises:
        SplitError: Something was raised inside the block; the message says where in the user's own code.
    """
    try:
        yield
    except CompoffError:
        raise
    except Exception as error:
        place, reason = _told(error)
        if "Constraints violated" in reason:
            line = "" if export is None else fixing_line(export)
            raise SplitError(
                f"{what}{f' ({line})' if line else place}: the size of the batch becomes a fixed number on the way, by "
                "a loop over the samples (for, zip, list(x), x.unbind()), by len(x), by int(x.shape[0]), or by a batch "
                "size written into it; use x.shape[0] as it is, and what computes all samples at once. Or the first "
                "axis of the model's first tensor is not the batch (but time, say), as it has to be"
            ) from error
        if reason.startswith("quantized.") or "'QuantizedMeta'" in reason:  # the newest torch, and older ones
            raise SplitError(
                f"{what}: a part of it runs on PyTorch's quantized integers, which no program can "
                f"({reason}); export the model in floating-point"
            ) from error
        raise SplitError(
            f"{what}{place}: {reason}. Fitting works; a common cause is control flow that "
            "depends on tensor values (rewrite it with torch.where) or a batch size written into it"
        ) from error


def _told(error: BaseException) -> tuple[str, str]:
    """Where in the user's code something was raised, in brackets if that is known, and what it says first."""
    place = users_line(error)
    return f" ({place})" if place else "", first_line(error)


def free_batch(example: ExampleInputs) -> Any:
    """Leave the batch axis of the inputs free.

    Args:
        example: The inputs.

    Returns:
        What torch.export takes as dynamic shapes.
    """
    shapes = torch.export.ShapesCollection()
    for tensor, batched in zip(example.tensors, example.batched, strict=True):
        if batched:
            shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    return shapes
