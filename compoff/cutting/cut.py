"""Cut a functional graph at its marker: what leads to it is the head, all the rest is the tail.

Constants are copied to whichever side reads them, sizes of the batch are read off the symbols, and anything else that
crosses is an error that names it. Knows graphs, not models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Halves", "cut_at"]

_SYMBOLS = "symbols"


@dataclass(frozen=True)
class Halves:
    """A graph in two.

    Args:
        head: From the tensors among the inputs to the symbols.
        tail: From the symbols to the tensors of the output.
        batched: For each tensor of the output, whether its first axis is the batch.
    """

    head: GraphModule
    tail: GraphModule
    batched: tuple[bool, ...]


def cut_at(source: GraphModule, target: Any, split: str) -> Halves:
    """Cut at the one call of a marker operator.

    Args:
        source: A functional graph.
        target: The marker operator.
        split: Name of the split point, for messages.

    Returns:
        Both halves.

    Raises:
        SplitError: The marker is not there exactly once, something else crosses, or the batch is not the first axis of
            what crosses and of what comes out.

    Source: this project.
    """
    marks = [node for node in source.graph.nodes if node.op == "call_function" and node.target is target]
    if len(marks) != 1:
        raise SplitError(
            f"the split point '{split}' is passed {len(marks)} times in the exported model; expected once: choose a "
            "block that runs once"
        )
    mark = marks[0]
    head_nodes = _ancestors([mark], lambda _: False)
    _check_batch(source, mark, split)
    tail = _Tail(source, mark, head_nodes, split)
    return Halves(_head(source, mark, head_nodes), tail.build(), tail.batched)


def _ancestors(nodes: Iterable[Node], stops: Callable[[Node], bool]) -> set[Node]:
    """Everything that some nodes depend on, themselves included, not looking behind nodes where the walk stops."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            if not stops(current):
                waiting.extend(current.all_input_nodes)
    return found


def _check_batch(source: GraphModule, mark: Node, split: str) -> None:
    """The symbols must come in the model's own batch, or a payload could not say how many samples it holds."""
    inputs = [node.meta.get("val") for node in source.graph.nodes if node.op == "placeholder"]
    lengths = {str(value.shape[0]) for value in inputs if isinstance(value, Tensor) and value.dim()}
    found = _shape(mark.meta["val"])
    if str(found[0]) not in lengths:
        raise SplitError(
            f"the symbols at '{split}' have shape {found}, but the model's inputs have the batch {sorted(lengths)} as "
            "their first axis; choose a split point where the batch is still as it was"
        )


def _head(source: GraphModule, mark: Node, nodes: set[Node]) -> GraphModule:
    """The graph up to the marker, with every tensor of the model's inputs."""
    graph, made = Graph(), dict[Node, Node]()
    for node in source.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            made[node] = graph.placeholder(node.name)
        elif node in nodes and node is not mark:
            made[node] = graph.node_copy(node, made.__getitem__)
        else:
            continue
        made[node].meta = {}
    graph.output(made[mark.all_input_nodes[0]])
    return _module(source, graph)


class _Tail:
    """Builds the graph from the marker on."""

    def __init__(self, source: GraphModule, mark: Node, head: set[Node], split: str) -> None:
        self.source = source
        self.mark = mark
        self.head = head
        self.split = split
        self.graph = Graph()
        self.made: dict[Node, Node] = {mark: self.graph.placeholder(_SYMBOLS)}
        self.from_input = self._descendants()
        self.batched: tuple[bool, ...] = ()

    def build(self) -> GraphModule:
        """Copy what is not in the head, and what the tail needs of constants and sizes."""
        output = next(node for node in self.source.graph.nodes if node.op == "output")
        leaves = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, Node)]
        needed = _ancestors(leaves, self._stops)
        crossing = [node for node in self.source.graph.nodes if node in needed and self._crosses(node)]
        if crossing:
            raise SplitError(self._complaint(crossing))
        self.batched = tuple(self._has_batch(leaf) for leaf in leaves)
        for node in self.source.graph.nodes:
            if node in needed and node not in self.made:
                self._place(node)
        self.graph.output(tuple(self.made[leaf] for leaf in leaves))
        return _module(self.source, self.graph)

    def _stops(self, node: Node) -> bool:
        """Whether the walk back from the output ends at this node."""
        return node is self.mark or self._size_axis(node) is not None or self._crosses(node)

    def _crosses(self, node: Node) -> bool:
        """Whether the node is computed on the device from the model's inputs."""
        if node is self.mark or node.op == "placeholder":
            return node is not self.mark
        return node in self.from_input and node in self.head and isinstance(node.meta.get("val"), Tensor)

    def _descendants(self) -> set[Node]:
        """Nodes that depend on values of the inputs, not on their sizes alone; all others may stand on both sides."""
        found: set[Node] = set()
        for node in self.source.graph.nodes:
            depends = any(parent in found for parent in node.all_input_nodes)
            if node.op == "placeholder" or (depends and self._size_axis(node) is None):
                found.add(node)
        return found

    def _size_axis(self, node: Node) -> int | None:
        """Axis of the symbols whose size this symbolic integer is, if it is one."""
        value = node.meta.get("val")
        if not isinstance(value, torch.SymInt):
            return None
        symbols = self.mark.meta["val"]
        return next((axis for axis, size in enumerate(symbols.shape) if str(size) == str(value)), None)

    def _place(self, node: Node) -> None:
        """Copy one node into the tail."""
        axis = self._size_axis(node)
        if axis is not None:
            size = torch.ops.aten.sym_size.int
            self.made[node] = self.graph.call_function(size, (self.made[self.mark], axis))
        else:
            self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
            self.made[node].meta = {}

    def _has_batch(self, leaf: Node) -> bool:
        """Whether an output's first axis is the batch; a batch anywhere else could not be put together again."""
        value = leaf.meta.get("val")
        if not isinstance(value, Tensor):
            raise SplitError(
                f"the model returns {leaf.name}, a number that depends on the batch; return a tensor, or leave it out"
            )
        free = [axis for axis, size in enumerate(_shape(value)) if isinstance(size, str)]
        if free and (free != [0] or str(value.shape[0]) != str(self.mark.meta["val"].shape[0])):
            raise SplitError(
                f"the model returns {leaf.name} of shape {_shape(value)}, where the batch is not the first axis as it "
                "came in; return it batch first"
            )
        return bool(free)

    def _complaint(self, crossing: list[Node]) -> str:
        """What crosses besides the symbols, how large it is, and what to do."""
        told = "; ".join(_told(node) for node in crossing)
        return (
            f"besides the symbols, {len(crossing)} more tensor(s) would cross the cut at '{self.split}': {told}. "
            "Choose a split point that one tensor enters and no skip connection passes, such as the start of the block "
            "around it"
        )


def _told(node: Node) -> str:
    """One crossing tensor in words."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return f"{node.name} ({type(value).__name__})"
    count = math.prod(size for size in _shape(value)[1:] if not isinstance(size, str))
    return f"{node.name} {_shape(value)}, {count * value.element_size()} bytes a sample"


def _shape(value: Tensor) -> list[int | str]:
    """A shape for people: free sizes by their symbol."""
    sizes: list[Any] = list(value.shape)  # in a graph they may be symbols, whatever their annotation says
    return [size if isinstance(size, int) else str(size) for size in sizes]


def _module(source: GraphModule, graph: Graph) -> GraphModule:
    """A module around a graph, holding only the parameters and constants that it reads."""
    graph.eliminate_dead_code()
    graph.lint()
    module = GraphModule(source, graph)  # copies just what the graph's get_attr nodes name
    module.recompile()
    return module
