"""One functionalised export of the model with a marker where it is to be cut.

The marker is an identity operator on the symbols, between encoder and centers. Functionalising first is what makes the
cut sound: an in-place operator on one side would otherwise change what the other side reads. `cut` does the cutting.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from compoff.cutting.cut import cut_at
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.sites import frozen
from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch.export import ExportedProgram

    from compoff.gates import Gate

__all__ = ["Programs", "capture", "marker"]


_CODEC = "_compoff_codec"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@torch.library.custom_op("compoff::cut", mutates_args=())
def marker(symbols: Tensor) -> Tensor:
    """Mark where the symbols cross from the device to the edge; gives them back unchanged.

    Args:
        symbols: The symbols.

    Returns:
        The same symbols.
    """
    return symbols.clone()


@marker.register_fake
def _marker_fake(symbols: Tensor) -> Tensor:
    return torch.empty_like(symbols)


@dataclass(frozen=True)
class Programs:
    """The two halves of a model.

    Args:
        head: Inputs to symbols.
        tail: Symbols to the tensors of the output.
        output: The model's output at the example inputs, for its structure.
        batched: For each tensor of the output, whether its first axis is the batch.
    """

    head: ExportedProgram
    tail: ExportedProgram
    output: Any
    batched: tuple[bool, ...]


def capture(base: nn.Module, gate: Gate, split: str, example: ExampleInputs) -> Programs:
    """Cut a model at a split point into two programs with a free batch size.

    Args:
        base: The model with its hooks.
        gate: The gate of the split point.
        split: Its name, for messages.
        example: Example inputs; of two samples, since the size of a single one would be baked in.

    Returns:
        Head and tail, both on the CPU.

    Raises:
        SplitError: The model cannot be exported, or more than the symbols crosses the cut.

    Source: this project.
    """
    with _marked(base, gate), frozen(base), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations inside export; errors still raise
        output = pytree.tree_map(_detached, base(*example.args, **example.keywords))
        graph = _export(base, example, split)
        halves = cut_at(graph, torch.ops.compoff.cut.default, split)
        symbols: Tensor = halves.head(*example.tensors)
        head = _program(halves.head, example, split)
        tail = _program(halves.tail, ExampleInputs((symbols,), batched=(True,)), split)
        return Programs(head, tail, output, halves.batched)


@contextlib.contextmanager
def _marked(base: nn.Module, gate: Gate) -> Generator[None]:
    """Put a copy of the bottleneck with the marker in its middle at the split point while the block runs."""
    bottleneck = copy.deepcopy(gate.bottleneck).eval().requires_grad_(requires_grad=False)
    for layer in bottleneck.spectral_layers():
        layer.fold()

    def through_marker(y: Tensor) -> Tensor:
        symbols = marker(bottleneck.encode(y.to(bottleneck.quantizer.centers.dtype)))
        return bottleneck.decode(symbols).to(y.dtype)

    before, host = gate.replace, _host(base)
    gate.replace = through_marker
    # Exported as a part of the model, or its parameters would become anonymous constants.
    host.add_module(_CODEC, bottleneck)
    try:
        yield
    finally:
        gate.replace = before
        delattr(host, _CODEC)


def _host(base: nn.Module) -> nn.Module:
    """A module that does not mind a guest: a layer without children, since a container might run the guest as one."""
    childless = [module for module in base.modules() if next(module.children(), None) is None]
    layers = [module for module in childless if next(module.parameters(), None) is not None]
    return (layers or [module for module in childless if type(module) not in _CONTAINERS] or [base])[0]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _export(base: nn.Module, example: ExampleInputs, split: str) -> GraphModule:
    """Export, functionalise, and hand out the graph with the model's own calling convention."""
    with _explained(f"{type(base).__name__} cannot be exported at '{split}'"):
        program = torch.export.export(
            base, example.args, example.keywords, dynamic_shapes=_free_batch(example), strict=False
        )
        program = program.run_decompositions({})
    graph = program.module(check_guards=False)
    assert isinstance(graph, GraphModule)
    return graph


def _program(graph: GraphModule, example: ExampleInputs, split: str) -> ExportedProgram:
    """One half as a program of its own, with no sample of its inputs in it."""
    with _explained(f"what lies on one side of '{split}' cannot be exported"):
        inputs = tuple(example.tensors)
        program = torch.export.export(graph, inputs, dynamic_shapes=_free_batch(example), strict=False)
    program.example_inputs = None  # pyright: ignore[reportAttributeAccessIssue] - the setter takes None
    if any(tensor.device.type != "cpu" for tensor in inputs):
        program = move_to_device_pass(program, "cpu")
    return program


@contextlib.contextmanager
def _explained(what: str) -> Generator[None]:
    """Turn whatever torch.export raises, which is of many types, into what it means to the user."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SplitError(
            f"{what}: {reason[0]} Fitting works, shipping does not; a common cause is control flow that depends on "
            "tensor values (rewrite it with torch.where or torch.cond) or a batch size written into the model"
        ) from error


def _free_batch(example: ExampleInputs) -> Any:
    """Leave the batch axis of the inputs free."""
    shapes = torch.export.ShapesCollection()
    for tensor, batched in zip(example.tensors, example.batched, strict=True):
        if batched:
            shapes[tensor] = {0: torch.export.Dim.DYNAMIC}
    return shapes
