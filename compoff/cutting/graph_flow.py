"""An exported graph as a flow, so that one set of rules says what crosses in a run and in a graph.

Every node is one value; a node that calls an operator is one operator. Knows ATen, not cuts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from compoff.cutting.flow import SIZED, Flow, Operator, Value
from compoff.cutting.macs import count_macs

if TYPE_CHECKING:
    from torch.fx import Graph

__all__ = ["GraphFlow", "drop_copies", "has_batch", "is_size", "same_form"]


class GraphFlow:
    """The flow of a graph.

    Args:
        graph: A functional graph.

    Examples:
        >>> import torch
        >>> program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(2, 4),))
        >>> graph = program.run_decompositions({}).module(check_guards=False).graph
        >>> GraphFlow(graph).flow.macs(0)
        16
    """

    def __init__(self, graph: Graph) -> None:
        self.flow = Flow()
        self.number: dict[Node, int] = {}
        for node in graph.nodes:
            if node.op != "output":
                self._add(node)

    def depends(self, node: Node) -> bool:
        """Whether a node depends on values of the inputs, not on their sizes alone."""
        return self.flow.values[self.number[node]].depends

    def cone(self, node: Node) -> set[Node]:
        """Nodes that a node is computed from, itself included, the inputs excluded."""
        found: set[Node] = set()
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if current not in found and current.op != "placeholder":
                found.add(current)
                waiting += [] if current.target in SIZED or is_size(current) else current.all_input_nodes
        return found

    def _add(self, node: Node) -> None:
        flow, value = self.flow, node.meta.get("val")
        number = len(flow.values)
        parents = [] if node.target in SIZED or is_size(node) else node.all_input_nodes
        is_input = node.op == "placeholder" and isinstance(value, Tensor)
        depends = is_input or any(self.depends(parent) for parent in parents)
        made_by = -1
        if node.op == "call_function":
            made_by = len(flow.operators)
            reads = tuple(self.number[parent] for parent in parents)
            flow.operators.append(
                Operator(made_by, str(node.target), reads, (number,), _macs(node), repeats=_repeats(node))
            )
        shape: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
        dtype = value.dtype if isinstance(value, Tensor) else torch.int64
        named = tuple(size if isinstance(size, int) else str(size) for size in shape)
        flow.values.append(Value(number, named, dtype, made_by, depends))
        if is_input:
            flow.inputs.append(number)
        self.number[node] = number


def is_size(node: Node) -> bool:
    """Whether a node asks a tensor for the length of an axis.

    Args:
        node: The node.

    Returns:
        Whether it does.
    """
    return node.target in (torch.ops.aten.sym_size.int, torch.ops.aten.size.int, torch.ops.aten.sym_numel.default)


def has_batch(node: Node) -> bool:
    """Whether the first axis of a tensor is the batch.

    Args:
        node: A node that is a tensor.

    Returns:
        Whether it is; each input of the model may have a symbol of its own for the one batch.
    """
    inputs = [one.meta.get("val") for one in node.graph.nodes if one.op == "placeholder"]
    lengths = {str(value.shape[0]) for value in inputs if isinstance(value, Tensor) and value.dim()}
    value = node.meta["val"]
    return value.dim() > 0 and not isinstance(value.shape[0], int) and str(value.shape[0]) in lengths


def drop_copies(graph: Graph) -> None:
    """Take out copies into a tensor that is overwritten whole: what is read afterwards is the source itself.

    Args:
        graph: The graph; changed.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.copy.default:
            target, source = node.args[0], node.args[1]
            if same_form(target, source):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


def same_form(one: Any, other: Any) -> bool:
    """Whether two nodes are tensors of the same sizes and type.

    Args:
        one: A node, or anything else.
        other: Another.

    Returns:
        Whether they are.
    """
    left, right = (node.meta.get("val") if isinstance(node, Node) else None for node in (one, other))
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return False
    return [str(size) for size in left.shape] == [str(size) for size in right.shape] and left.dtype == right.dtype


def _repeats(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _macs(node: Node) -> int:
    """Multiply-accumulates of a node, at the batch size that the graph was made with."""

    def plain(value: Any) -> Any:
        value = value.meta.get("val") if isinstance(value, torch.fx.Node) else value
        if isinstance(value, Tensor):
            return torch.empty([_hint(size) for size in value.shape], dtype=value.dtype, device="meta")
        return _hint(value) if isinstance(value, torch.SymInt) else value

    args: Any = pytree.tree_map(plain, tuple(node.args))
    return count_macs(node.target, args, pytree.tree_map(plain, node.meta.get("val")))


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 1
