"""Nested outputs ◄─► a flat list of arrays and a description that JSON can hold.

So that the device returns what the model returns without torch and without the model's class. Knows no tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["flatten", "input_leaves", "unflatten"]

_CONSTANTS = (bool, int, float, str, type(None))


def flatten(
    value: Any, is_leaf: Callable[[Any], bool], what: str = "the model returns"
) -> tuple[list[Any], dict[str, Any]]:
    """Take a nested value apart.

    Args:
        value: Tuples, lists and dicts of leaves and of plain constants.
        is_leaf: Whether a value is a leaf, such as a tensor.
        what: Start of the message about a value that cannot be described.

    Returns:
        The leaves in order, and the description.

    Raises:
        ArtifactError: The value holds something that cannot be described.

    Examples:
        >>> flatten({"a": 1.5, "b": (2.5, None)}, lambda value: isinstance(value, float))
        ([1.5, 2.5], {'dict': [['a', {'leaf': 0}], ['b', {'tuple': [{'leaf': 1}, {'value': None}]}]]})
    """
    leaves: list[Any] = []

    def describe(part: Any) -> dict[str, Any]:
        if is_leaf(part):
            leaves.append(part)
            return {"leaf": len(leaves) - 1}
        kind = cast("type[Any]", type(part))
        if kind in (tuple, list):
            return {kind.__name__: [describe(entry) for entry in part]}
        if kind is dict and all(isinstance(key, str) for key in part):
            return {"dict": [[key, describe(entry)] for key, entry in part.items()]}
        if kind in _CONSTANTS:
            return {"value": part}
        raise ArtifactError(
            f"{what} a {kind.__name__}; expected tensors in tuples, lists and dicts with string keys: wrap the model "
            "in a module that keeps to these"
        )

    return leaves, describe(value)


def unflatten(description: Any, leaves: Sequence[Any]) -> Any:
    """Put a nested value together again.

    Args:
        description: What `flatten` described.
        leaves: The leaves in order.

    Returns:
        The nested value.

    Raises:
        ArtifactError: The description is damaged, or does not fit the leaves.

    Examples:
        >>> unflatten({"list": [{"leaf": 1}, {"leaf": 0}]}, ["x", "y"])
        ['y', 'x']
    """
    kind, content = _entry(description)
    if kind == "leaf" and type(content) is int and 0 <= content < len(leaves):
        return leaves[content]
    if kind == "value" and type(content) in _CONSTANTS:
        return content
    if kind == "dict" and all(len(_list(pair)) == 2 and isinstance(pair[0], str) for pair in _list(content)):
        return {key: unflatten(part, leaves) for key, part in _list(content)}
    if kind in ("tuple", "list"):
        parts = [unflatten(part, leaves) for part in _list(content)]
        return tuple(parts) if kind == "tuple" else parts
    raise ArtifactError(f"structure {_short(description)} is damaged, or does not fit {len(leaves)} tensors")


def _entry(description: Any) -> tuple[Any, Any]:
    """The one key of a description and what stands under it."""
    pairs: list[tuple[Any, Any]] = list(description.items()) if isinstance(description, dict) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return pairs[0] if len(pairs) == 1 else (None, None)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ArtifactError(f"structure holds {_short(value)} where a list belongs; it is damaged")
    return value  # pyright: ignore[reportUnknownVariableType]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def input_leaves(value: Any) -> Iterator[Any]:
    """Go through the tensors of nested inputs, in order.

    Args:
        value: Tuples, lists and dicts of anything.

    Yields:
        What is in them, but for None, which a model may take for "not given".

    Examples:
        >>> list(input_leaves(({"a": 1, "b": [2, None]}, 3)))
        [1, 2, 3]
    """
    if isinstance(value, (tuple, list)):
        for entry in value:  # pyright: ignore[reportUnknownVariableType]
            yield from input_leaves(entry)
    elif isinstance(value, dict):
        yield from input_leaves(list(value.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    elif value is not None:
        yield value
