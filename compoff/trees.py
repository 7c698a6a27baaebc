"""Tensors in nested containers: found in order or by their place, and one of them replaced.

Knows the containers that PyTorch knows, and dataclasses; not what the tensors mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "KNOWN_CONTAINERS",
    "Place",
    "closed_in",
    "map_tensors",
    "places_of",
    "tensor_at",
    "tensors_of",
    "with_tensor",
]

KNOWN_CONTAINERS = (
    "tuples, lists, dicts, OrderedDicts, named tuples, dataclasses, and classes that are registered with "
    "torch.utils._pytree; not in other objects, nor in subclasses of list and dict"
)
"""Where tensors are found, in words."""

Place = tuple[str | int, ...]
"""The way to a tensor in nested containers: keys of dictionaries, names of fields, numbers of entries."""


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


def closed_in(value: Any) -> str | None:
    """The class of the first thing in nested containers that may hold tensors, but is not looked into.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.

    Returns:
        Its name; None where there are tensors and plain constants only.

    Examples:
        >>> from collections import UserDict
        >>> closed_in((1, UserDict(a=2))), closed_in({"a": [1.5, None, "b"]})
        ('UserDict', None)
    """
    for leaf in pytree.tree_leaves(value):
        found = None
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found = closed_in([getattr(leaf, entry.name) for entry in dataclasses.fields(leaf)])
        elif not isinstance(leaf, (Tensor, bool, int, float, complex, str, bytes, type(None))):
            found = type(leaf).__name__
        if found is not None:
            return found
    return None


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Replace every tensor in nested containers.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.
        function: What to do with each, in order.

    Returns:
        The same nesting, in containers of its own.

    Examples:
        >>> import torch
        >>> map_tensors({"a": [torch.zeros(1)], "b": None}, lambda tensor: tensor + 1.0)
        {'a': [tensor([1.])], 'b': None}
    """

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return function(leaf)
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        entries = {entry.name: getattr(leaf, entry.name) for entry in dataclasses.fields(leaf) if entry.init}
        return dataclasses.replace(leaf, **{name: map_tensors(part, function) for name, part in entries.items()})

    return pytree.tree_map(mapped, value)


def places_of(value: Any) -> list[Place]:
    """Where the tensors of `tensors_of` are, in the same order.

    Unlike its number, a tensor's place stays the same where an optional tensor before it is there or not.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.

    Returns:
        The places.

    Examples:
        >>> import torch
        >>> places_of({"boxes": [torch.zeros(1), torch.ones(1)], "size": (3, None), "mask": torch.ones(1)})
        [('boxes', 0), ('boxes', 1), ('mask',)]
    """
    if isinstance(value, Tensor):
        return [()]
    return [(key, *place) for key, part in _parts(value) for place in places_of(part)]


def _parts(value: Any) -> Iterator[tuple[str | int, Any]]:
    """What a container holds, each with its name in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not _is_node(value):
        for entry in dataclasses.fields(value):
            yield entry.name, getattr(value, entry.name)
    elif isinstance(value, Mapping) and _is_node(value):
        for number, (key, part) in enumerate(cast("Mapping[Any, Any]", value).items()):
            yield (key if isinstance(key, (str, int)) else number), part
    elif _is_node(value):
        yield from enumerate(pytree.tree_leaves(value, is_leaf=lambda part: part is not value))


def _is_node(value: Any) -> bool:
    """Whether PyTorch looks into it."""
    return not pytree.tree_is_leaf(value)


def tensor_at(value: Any, place: Place | int) -> Tensor:
    """The tensor at a place in nested containers.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.
        place: Where the tensor is, or which of the tensors it is, counted in order.

    Returns:
        The tensor.

    Raises:
        LookupError: There is none.

    Examples:
        >>> import torch
        >>> tensor_at((1, [torch.zeros(1), torch.ones(1)]), (1, 1))
        tensor([1.])
    """
    if isinstance(place, int):
        return tensors_of(value)[place]
    for key in place:
        value = dict(_parts(value))[key]
    if not isinstance(value, Tensor):
        raise LookupError(f"there is no tensor, but {value!r:.80}")
    return value


def with_tensor(value: Any, old: Tensor, new: Tensor) -> Any:
    """The same nesting with one tensor in the place of another, wherever in it the same object stands.

    Args:
        value: Any nesting of containers that PyTorch knows, and of dataclasses.
        old: The tensor that is in it.
        new: What shall stand in its place.

    Returns:
        The nesting; `value` itself where the tensor stays the same object.

    Examples:
        >>> import torch
        >>> old = torch.ones(1)
        >>> with_tensor((1, [torch.zeros(1), old]), old, old + 1.0)
        (1, [tensor([0.]), tensor([2.])])
    """
    if new is old:
        return value

    def exchanged(leaf: Any) -> Any:
        if leaf is old:
            return new
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        entries = {entry.name: getattr(leaf, entry.name) for entry in dataclasses.fields(leaf)}
        changed = {name: with_tensor(part, old, new) for name, part in entries.items()}
        changed = {name: part for name, part in changed.items() if part is not entries[name]}
        return dataclasses.replace(leaf, **changed) if changed else leaf

    leaves, spec = pytree.tree_flatten(value)
    exchange = [exchanged(leaf) for leaf in leaves]
    same = all(ours is theirs for ours, theirs in zip(leaves, exchange, strict=True))
    return value if same else pytree.tree_unflatten(exchange, spec)
