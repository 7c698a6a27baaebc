"""Cut a functional graph at its marker: what leads to it is the head, all the rest is the tail.

Constants are copied to whichever side reads them, sizes of the batch are read off the symbols, and anything else that
crosses is an error that names it. Knows graphs, not models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["cut_at"]

_SYMBOLS = "symbols"


def cut_at(
    graph_module: GraphModule, target: Any, inputs: tuple[Any, ...], split: str
) -> tuple[GraphModule, GraphModule, Tensor]:
    """Cut at the one call of a marker operator.

    Args:
        graph_module: A functional graph.
        target: The marker operator.
        inputs: Example inputs of the graph.
        split: Name of the split point, for messages.

    Returns:
        Head, tail, and the example tensor that crosses between them.

    Raises:
        SplitError: The marker is not there exactly once, or something else crosses.
    """
    marks = [node for node in graph_module.graph.nodes if node.op == "call_function" and node.target is target]
    if len(marks) != 1:
        raise SplitError(
            f"the split point '{split}' is passed {len(marks)} times in the exported model; expected once: choose a block "
            "that runs once"
        )
    mark = marks[0]
    head_nodes = _ancestors(mark)
    head = _head(graph_module, mark, head_nodes)
    with torch.no_grad():
        crossing: Tensor = head(*pytree.tree_leaves(inputs))
    tail = _Tail(graph_module, mark, head_nodes, split).build()
    return head, tail, crossing


def _ancestors(node: Node) -> set[Node]:
    """Everything that a node depends on, the node itself included."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _head(source: GraphModule, mark: Node, nodes: set[Node]) -> GraphModule:
    """The graph up to the marker, with every input of the model."""
    graph, made = Graph(), dict[Node, Node]()
    for node in source.graph.nodes:
        if node.op == "placeholder" or node in nodes:
            made[node] = graph.placeholder(node.name) if node.op == "placeholder" else graph.node_copy(
                node, made.__getitem__
            )
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
        self.from_input = _descendants(source)
        self.crossing: list[Node] = []

    def build(self) -> GraphModule:
        """Copy what is not in the head, and what the tail needs of constants and sizes."""
        output = next(node for node in self.source.graph.nodes if node.op == "output")
        needed = _ancestors_until(output, self._stops)
        for node in self.source.graph.nodes:
            if node in needed and node not in self.made and node is not output:
                self._place(node)
        if self.crossing:
            raise SplitError(self._complaint())
        leaves = [self.made[leaf] if isinstance(leaf, Node) else leaf for leaf in pytree.tree_leaves(output.args[0])]
        self.graph.output(tuple(leaves))
        return _module(self.source, self.graph)

    def _stops(self, node: Node) -> bool:
        """Whether the walk back from the output ends at this node."""
        return node is self.mark or self._size_axis(node) is not None or self._crosses(node)

    def _crosses(self, node: Node) -> bool:
        """Whether the node is computed on the device from the model's inputs."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return node.op == "placeholder"
        return node in self.from_input and (node in self.head or node.op == "placeholder")

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
        elif self._crosses(node):
            self.crossing.append(node)
            self.made[node] = self.graph.placeholder(node.name)
        else:
            self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
            self.made[node].meta = {}

    def _complaint(self) -> str:
        """What crosses besides the symbols, how large it is, and what to do."""
        told: list[str] = []
        for node in self.crossing:
            value = node.meta.get("val")
            if isinstance(value, Tensor):
                shape = [size if isinstance(size, int) else "batch" for size in value.shape]
                count = 1
                for size in value.shape[1:]:
                    count *= size if isinstance(size, int) else 1
                told.append(f"{node.name} {shape}, {count * value.element_size()} bytes a sample")
            else:
                told.append(f"{node.name} ({type(value).__name__})")
        return (
            f"besides the symbols, {len(told)} more tensor(s) would cross the cut at '{self.split}': {'; '.join(told)}. Choose "
            "a split point that one tensor enters and no skip connection passes, such as the start of the block around it"
        )


def _ancestors_until(node: Node, stops: Callable[[Node], bool]) -> set[Node]:
    """Everything that a node depends on, not looking behind nodes where the walk stops."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            if current is node or not stops(current):
                waiting.extend(current.all_input_nodes)
    return found


def _descendants(source: GraphModule) -> set[Node]:
    """Nodes that depend on an input of the model; the others are constants, free to stand on both sides."""
    found: set[Node] = set()
    for node in source.graph.nodes:
        if node.op == "placeholder" or any(parent in found for parent in node.all_input_nodes):
            found.add(node)
    return found


def _module(source: GraphModule, graph: Graph) -> GraphModule:
    """A module around a graph, holding only the parameters and constants that it reads."""
    graph.eliminate_dead_code()
    graph.lint()
    module = GraphModule(source, graph)  # copies just what the graph's get_attr nodes name
    module.recompile()
    return module
