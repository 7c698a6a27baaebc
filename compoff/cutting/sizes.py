"""Sizes in the part behind a cut: the batch is read off what arrives, and what follows from it is computed again."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv, Mod

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Graph, Node

__all__ = ["Sizes"]


_FUNCTIONS: dict[Any, Any] = {
    sympy.Add: operator.add,
    sympy.Mul: operator.mul,
    FloorDiv: operator.floordiv,
    Mod: operator.mod,
}


class Sizes:
    """Makes nodes for sizes that depend on the batch.

    Args:
        graph: Where the nodes go.
        parts: What arrives: the node of the whole graph, and its placeholder in `graph`.
    """

    def __init__(self, graph: Graph, parts: Sequence[tuple[Node, Node]]) -> None:
        self.graph = graph
        self.known: dict[str, tuple[Node, int]] = {}
        self._made: dict[str, Node] = {}
        for original, placeholder in parts:
            value = original.meta["val"]
            sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
            for axis, size in enumerate(sizes):
                if not isinstance(size, int):
                    self.known.setdefault(str(size), (placeholder, axis))

    def can_make(self, size: Any) -> bool:
        """Whether a size follows from what arrives.

        Args:
            size: The size.

        Returns:
            Whether `make` can be asked for it.
        """
        return isinstance(size, int) or self._follows(_expression(size))

    def make(self, size: Any) -> Any:
        """The size as the graph's own.

        Args:
            size: A size for which `can_make` holds.

        Returns:
            A number, or the node that computes it.
        """
        return size if isinstance(size, int) else self._node(_expression(size))

    def _follows(self, expression: Any) -> bool:
        if str(expression) in self.known or isinstance(expression, sympy.Integer):
            return True
        if type(expression) in _FUNCTIONS:
            return all(self._follows(part) for part in expression.args)
        return False

    def _node(self, expression: Any) -> Any:
        name = str(expression)
        if isinstance(expression, sympy.Integer):
            return int(expression)
        if name in self._made:
            return self._made[name]
        if name in self.known:
            node = self.graph.call_function(torch.ops.aten.sym_size.int, self.known[name])
        else:
            parts = [self._node(part) for part in expression.args]
            node = parts[0]
            for part in parts[1:]:
                node = self.graph.call_function(_FUNCTIONS[type(expression)], (node, part))
        self._made[name] = node
        return node


def _expression(size: Any) -> Any:
    return size.node.expr
