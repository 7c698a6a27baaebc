"""Cut a functional graph at its markers: what comes before is the head, all the rest is the tail.

Constants are copied to whichever side reads them, sizes of the batch are read off what arrives, and what else the tail
needs of the inputs crosses as side tensors. Knows graphs, not models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from compoff.cutting.flow import SIZED
from compoff.cutting.graph_flow import GraphFlow, drop_copies, has_batch
from compoff.cutting.sizes import Sizes
from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Halves", "cut_at", "head_of"]

_FILLED_WITH: dict[Any, int] = {
    torch.ops.aten.zeros_like.default: 0,
    torch.ops.aten.ones_like.default: 1,
    torch.ops.aten.empty_like.default: 0,
    torch.ops.aten.new_zeros.default: 0,
    torch.ops.aten.new_ones.default: 1,
    torch.ops.aten.new_empty.default: 0,
}


@dataclass(frozen=True)
class Halves:
    """A graph in two.

    Args:
        head: From the tensors among the inputs to the symbols of each code, then the side tensors, then what the
            markers say of each code beside its symbols.
        tail: From symbols and side tensors to the tensors of the output.
        crossing: For each side tensor, whether its first axis is the batch.
        batched: For each tensor of the output, whether its first axis is the batch.
    """

    head: GraphModule
    tail: GraphModule
    crossing: tuple[bool, ...]
    batched: tuple[bool, ...]


def cut_at(source: GraphModule, target: Any, split: str, *, count: int = 1, send: bool = False) -> Halves:
    """Cut at the calls of a marker operator.

    Args:
        source: A functional graph; copies in it are taken out.
        target: The marker operator, whose second argument says which code it marks; a third is for the head alone.
        split: Name of the split point, for messages.
        count: Number of codes.
        send: Whether floating-point tensors of any size may cross as they are.

    Returns:
        Both halves.

    Raises:
        SplitError: A marker is not there exactly once, something else crosses, or the batch is not the first axis of
            what crosses and of what comes out.

    Source: this project.
    """
    drop_copies(source.graph)
    marks = _marks(source, target, split, count)
    for mark in marks:
        _check_batch(source, mark, split)
    plan = _Plan(source, marks, split, send=send)
    beside = [argument for mark in marks for argument in mark.args[2:] if isinstance(argument, Node)]
    head = head_of(source, [mark.all_input_nodes[0] for mark in marks] + plan.sides + beside)
    tail, batched = _tail(source, plan)
    return Halves(head, tail, tuple(has_batch(side) for side in plan.sides), batched)


def _marks(source: GraphModule, target: Any, split: str, count: int) -> list[Node]:
    """The markers, in the order of their codes."""
    found = [node for node in source.graph.nodes if node.op == "call_function" and node.target is target]
    numbers = [node.args[1] if len(node.args) > 1 else 0 for node in found]
    if sorted(map(int, numbers)) != list(range(count)):  # pyright: ignore[reportArgumentType]
        raise SplitError(
            f"the split point '{split}' is passed {len(found)} times in the exported model; expected {count}, once for "
            "each tensor that is coded: choose a block that runs once, and whose input the output depends on"
        )
    return [node for _, node in sorted(zip(numbers, found, strict=True), key=lambda pair: pair[0])]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownLambdaType]


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


class _Plan:
    """What the tail is given, and which nodes it computes itself."""

    def __init__(self, source: GraphModule, marks: list[Node], split: str, *, send: bool) -> None:
        self.marks = marks
        self.split = split
        self.output = next(node for node in source.graph.nodes if node.op == "output")
        self.leaves = [leaf for leaf in pytree.tree_leaves(self.output.args[0]) if isinstance(leaf, Node)]
        self._flow = GraphFlow(source.graph)
        self._before = _ancestors(marks)
        for node in source.graph.nodes:
            if node is marks[0]:
                break
            self._before.add(node)
        self._again: set[Node] = set()  # nodes of the head that the tail had better compute a second time
        self._sizes = Sizes(Graph(), [(mark, mark) for mark in marks])
        self.sides = self._settle(source, send=send)

    def _settle(self, source: GraphModule, *, send: bool) -> list[Node]:
        """Decide what crosses besides the symbols."""
        flow = self._flow
        for node in self._crossing(source):
            if node.op != "placeholder" and flow.flow.cheaper_inputs(flow.number[node]) is not None:
                self._again |= flow.cone(node)
        crossing = self._crossing(source)
        wrong = [
            node
            for node in crossing
            if not isinstance(node.meta.get("val"), Tensor) or not (send or flow.flow.is_light(flow.number[node]))
        ]
        if wrong:
            raise SplitError(_complaint(wrong, self.split))
        return crossing

    def _crossing(self, source: GraphModule) -> list[Node]:
        needed = self.needed()
        return [node for node in source.graph.nodes if node in needed and self.arrives(node) and node not in self.marks]

    def needed(self) -> set[Node]:
        """Nodes that the output is computed from, up to those that arrive."""
        found: set[Node] = set()
        waiting = list(self.leaves)
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            if not self.arrives(node) and not self.is_free(node):
                waiting += node.all_input_nodes
        return found

    def arrives(self, node: Node) -> bool:
        """Whether a node is computed on the device from the model's inputs."""
        if node in self.marks or node.op == "placeholder":
            return True
        return self._flow.depends(node) and node in self._before and node not in self._again

    def is_free(self, node: Node) -> bool:
        """Whether a node needs nothing but sizes: they follow from what arrives."""
        value = node.meta.get("val")
        if node.target in SIZED and isinstance(value, Tensor):
            return all(self._sizes.can_make(size) for size in value.shape)
        return isinstance(value, torch.SymInt) and self._sizes.can_make(value)


def _ancestors(nodes: Iterable[Node]) -> set[Node]:
    """Everything that some nodes depend on, themselves included."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += current.all_input_nodes
    return found


def head_of(source: GraphModule, results: list[Node]) -> GraphModule:
    """The part of a graph that some of its nodes depend on, with every tensor of the model's inputs.

    Args:
        source: The graph.
        results: The nodes.

    Returns:
        From the tensors among the inputs to a tuple of the results.
    """
    graph, made, nodes = Graph(), dict[Node, Node](), _ancestors(results)
    for node in source.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            made[node] = graph.placeholder(node.name)
        elif node in nodes:
            made[node] = graph.node_copy(node, made.__getitem__)
        else:
            continue
        made[node].meta = {}
    graph.output(tuple(made[result] for result in results))
    return _module(source, graph)


def _tail(source: GraphModule, plan: _Plan) -> tuple[GraphModule, tuple[bool, ...]]:
    """The graph from what arrives on."""
    graph = Graph()
    parts = [*plan.marks, *plan.sides]
    made = {part: graph.placeholder(f"part_{index}") for index, part in enumerate(parts)}
    batched = tuple(_output_has_batch(leaf) for leaf in plan.leaves)
    sizes, needed = Sizes(graph, list(made.items())), plan.needed()
    for node in source.graph.nodes:
        if node not in needed or node in made:
            continue
        if not plan.is_free(node):
            made[node] = graph.node_copy(node, made.__getitem__)
            made[node].meta = {}
        elif node.target in SIZED:
            made[node] = _filled(graph, sizes, node, made)
        else:
            made[node] = sizes.make(node.meta["val"])
    graph.output(tuple(made[leaf] for leaf in plan.leaves))
    return _module(source, graph), batched


def _filled(graph: Graph, sizes: Sizes, node: Node, made: dict[Node, Node]) -> Node:
    """What an operator makes that looks at a shape only, without the tensor whose shape it was."""
    value = node.meta["val"]
    fill: Any = _FILLED_WITH.get(node.target, node.args[-1])
    fill = made[fill] if isinstance(fill, Node) else fill
    shape = [sizes.make(size) for size in value.shape]
    return graph.call_function(
        torch.ops.aten.full.default, (shape, fill), {"dtype": value.dtype, "device": value.device}
    )


def _output_has_batch(leaf: Node) -> bool:
    """Whether an output's first axis is the batch; a batch anywhere else could not be put together again."""
    value = leaf.meta.get("val")
    if not isinstance(value, Tensor):
        raise SplitError(
            f"the model returns {leaf.name}, a number that depends on the batch; return a tensor, or leave it out"
        )
    free = [axis for axis, size in enumerate(_shape(value)) if isinstance(size, str)]
    if free and (free != [0] or not has_batch(leaf)):
        raise SplitError(
            f"the model returns {leaf.name} of shape {_shape(value)}, where the batch is not the first axis as it "
            "came in; return it batch first"
        )
    return bool(free)


def _complaint(crossing: list[Node], split: str) -> str:
    """What crosses besides the symbols, how large it is, and what to do."""
    told = "; ".join(_told(node) for node in crossing)
    return (
        f"besides the symbols, {len(crossing)} more tensor(s) would cross the cut at '{split}': {told}. "
        "Choose a split point that one tensor enters and no skip connection passes, such as the start of the block "
        "around it, or send them as they are with skips='send'"
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
