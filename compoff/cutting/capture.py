"""One functionalised export of the model with a marker where it is to be cut.

The marker is an identity operator on the symbols, between encoder and centers. Functionalising first is what makes the
cut sound: an in-place operator on one side would otherwise change what the other side reads. `cut` does the cutting.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from compoff.cutting.cut import cut_at
from compoff.cutting.sites import frozen
from compoff.errors import SplitError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

    from compoff.gates import Gate

__all__ = ["Programs", "capture", "marker"]


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
        tail: Symbols to the leaves of the output.
        output: The model's output at the example inputs, for its structure.
    """

    head: ExportedProgram
    tail: ExportedProgram
    output: Any


def capture(base: nn.Module, gate: Gate, split: str, inputs: tuple[Any, ...]) -> Programs:
    """Cut a model at a split point into two programs with a free batch size.

    Args:
        base: The model with its hooks.
        gate: The gate of the split point.
        split: Its name, for messages.
        inputs: Example inputs; the batch must hold two samples or more, or its size would be baked in.

    Returns:
        Head and tail.

    Raises:
        SplitError: The model cannot be exported, or more than the symbols crosses the cut.

    Source: this project.
    """
    bottleneck = copy.deepcopy(gate.bottleneck).eval()
    for layer in bottleneck.spectral_layers():
        layer.fold()

    def marked(y: Tensor) -> Tensor:
        symbols = marker(bottleneck.encode(y.to(bottleneck.quantizer.centers.dtype)))
        return bottleneck.decode(symbols).to(y.dtype)

    # Exported as a submodule of the model, or its parameters would become anonymous constants.
    before = gate.replace
    gate.replace = marked
    base.add_module("_compoff_codec", bottleneck)
    try:
        with frozen(base), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own deprecations inside export; errors still raise
            output = base(*inputs)
            graph = _export(base, inputs, split)
            head, tail, symbols = cut_at(graph, torch.ops.compoff.cut.default, inputs, split)
            return Programs(
                _program(head, inputs), _program(tail, (symbols,)), pytree.tree_map(_detached, output)
            )
    finally:
        gate.replace = before
        del base._modules["_compoff_codec"]  # add_module's counterpart; nothing public takes a module out


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _export(base: nn.Module, inputs: tuple[Any, ...], split: str) -> GraphModule:
    """Export, functionalise, and hand out the graph with the model's own calling convention."""
    try:
        program = torch.export.export(base, inputs, dynamic_shapes=_free_batch(inputs), strict=False)
        program = program.run_decompositions({})
    except Exception as error:  # noqa: BLE001 - torch.export raises many types, all meaning the same to the user
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SplitError(
            f"{type(base).__name__} cannot be exported at '{split}': {reason[0]} Fitting works, shipping does not; a "
            "common cause is control flow that depends on tensor values: rewrite it with torch.where or torch.cond"
        ) from error
    return program.module(check_guards=False)  # pyright: ignore[reportReturnType]


def _program(graph: GraphModule, inputs: tuple[Any, ...]) -> ExportedProgram:
    """One half as a program of its own."""
    return torch.export.export(graph, inputs, dynamic_shapes=_free_batch(inputs), strict=False)


def _free_batch(inputs: tuple[Any, ...]) -> Any:
    """Leave the first axis of every input tensor free."""
    shapes = torch.export.ShapesCollection()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            shapes[leaf] = {0: torch.export.Dim.DYNAMIC}
    return shapes
