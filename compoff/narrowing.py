"""A head's program that computes only the first channels of its codes: what a quality does not send costs nothing.

Works on the graph of a program whose encoders are one layer each, their scale folded in. Knows no files.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["narrowed"]

_ATEN = torch.ops.aten
_LAYERS = {
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.convolution.default,
    _ATEN.linear.default,
}
_VALUE_BY_VALUE = {
    _ATEN.round.default,
    _ATEN.clamp.default,
    _ATEN.add.Tensor,
    _ATEN._to_copy.default,
    _ATEN.to.dtype,
}
_SUM = _ATEN.sum.dim_IntList  # says whether all values are finite; channels that are not sent need not be


def narrowed(program: nn.Module, channels: Sequence[int]) -> nn.Module | None:
    """The same program with fewer channels in its first outputs; the weights are shared, not copied.

    Args:
        program: A graph with its weights; its first outputs are symbols.
        channels: Number of channels of each of these outputs.

    Returns:
        The program, or None where no output has a layer of its own right before the rounding.

    Examples:
        >>> import torch
        >>> class Code(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Conv1d(2, 8, 1)
        ...     def forward(self, x):
        ...         return (self.layer(x).round().clamp(-3, 3) + 3).to(torch.uint8)
        >>> x = torch.randn(1, 2, 4)
        >>> whole = torch.export.export(Code(), (x,)).run_decompositions({}).module(check_guards=False)
        >>> part = narrowed(whole, [3])
        >>> torch.equal(part(x), whole(x)[:, :3])
        True

    Source: this project.
    """
    if not isinstance(program, GraphModule):
        return None
    made = GraphModule(program, copy.deepcopy(program.graph))
    output = next(node for node in made.graph.nodes if node.op == "output")
    leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, Node)]
    found = [_narrow(made, leaf, count) for leaf, count in zip(leaves, channels, strict=False)]
    if not any(found):
        return None
    made.recompile()
    return made


def _narrow(module: GraphModule, symbols: Node, channels: int) -> bool:
    """Let the layer that symbols come from compute its first channels only, if it is theirs alone."""
    layer = symbols
    while layer.target in _VALUE_BY_VALUE and len(layer.all_input_nodes) == 1 and _used_once(layer):
        layer = layer.all_input_nodes[0]
    tensors = [argument for argument in layer.args[1:3] if isinstance(argument, Node)]
    if (
        layer.target not in _LAYERS
        or not _used_once(layer, but_for=_SUM)
        or any(node.op != "get_attr" for node in tensors)
    ):
        return False
    for node in tensors:
        name = f"{node.name}_first_{channels}"
        module.register_buffer(name, _attribute(module, str(node.target))[:channels], persistent=False)
        with module.graph.inserting_before(layer):
            layer.replace_input_with(node, module.graph.get_attr(name))
    return True


def _used_once(node: Node, but_for: object = None) -> bool:
    # A check of its own makes nothing that another node reads.
    users = [user for user in node.users if user.op == "output" or user.users]
    return sum(1 for user in users if user.target is not but_for) == 1


def _attribute(module: nn.Module, path: str) -> Tensor:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found.detach()
