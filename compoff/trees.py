"""Tensors in nested containers: found in order, and one of them replaced.

Knows the containers that PyTorch knows, and dataclasses; not what the tensors mean.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["map_tensor", "tensors_of"]


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested containers, in order.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.

    Returns:
        The tensors.

    Examples:
        >>> import torch
        >>> len(tensors_of({"boxes": [torch.zeros(1), torch.ones(1)], "size": (3, None)}))
        2
    """
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_of([getattr(leaf, entry.name) for entry in dataclasses.fields(leaf)])
    return found


def map_tensor(value: Any, leaf: int, function: Callable[[Tensor], Tensor]) -> Any:
    """Replace one tensor in nested containers, wherever in them the same object stands.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.
        leaf: Which of the tensors, counted in order.
        function: What to do with it.

    Returns:
        The same nesting; `value` itself where the tensor stays the same object.

    Examples:
        >>> import torch
        >>> map_tensor((1, [torch.zeros(1), torch.ones(1)]), 1, lambda tensor: tensor + 1.0)
        (1, [tensor([0.]), tensor([2.])])
    """
    if isinstance(value, Tensor):
        return function(value) if leaf == 0 else value
    tensors = tensors_of(value)
    if leaf >= len(tensors):
        return value
    old = tensors[leaf]
    new = function(old)
    return value if new is old else _with(value, old, new)


def _with(value: Any, old: Tensor, new: Tensor) -> Any:
    """The same nesting with one object in place of another."""

    def exchanged(leaf: Any) -> Any:
        if leaf is old:
            return new
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        entries = {entry.name: getattr(leaf, entry.name) for entry in dataclasses.fields(leaf)}
        changed = {name: _with(part, old, new) for name, part in entries.items()}
        changed = {name: part for name, part in changed.items() if part is not entries[name]}
        return dataclasses.replace(leaf, **changed) if changed else leaf

    leaves, spec = pytree.tree_flatten(value)
    exchange = [exchanged(leaf) for leaf in leaves]
    same = all(ours is theirs for ours, theirs in zip(leaves, exchange, strict=True))
    return value if same else pytree.tree_unflatten(exchange, spec)
