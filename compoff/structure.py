"""Nested outputs ◄─► a flat list of arrays and a description that JSON can hold.

So that the device returns what the model returns without torch and without the model's class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["flatten", "unflatten"]

_CONSTANTS = (bool, int, float, str, type(None))


def flatten(value: Any, is_leaf: Callable[[Any], bool]) -> tuple[list[Any], dict[str, Any]]:
    """Take a nested value apart.

    Args:
        value: Tuples, lists and dicts of leaves and of plain constants.
        is_leaf: Whether a value is a leaf, such as a tensor.

    Returns:
        The leaves in order, and the description.

    Raises:
        ArtifactError: The value holds something that cannot be described.

    Example:
        >>> flatten({"a": 1.5, "b": (2.5, None)}, lambda value: isinstance(value, float))
        ([1.5, 2.5], {'dict': [['a', {'leaf': 0}], ['b', {'tuple': [{'leaf': 1}, {'value': None}]}]]})
    """
    leaves: list[Any] = []

    def describe(part: Any) -> dict[str, Any]:
        if is_leaf(part):
            leaves.append(part)
            return {"leaf": len(leaves) - 1}
        if type(part) is tuple:
            return {"tuple": [describe(entry) for entry in part]}
        if type(part) is list:
            return {"list": [describe(entry) for entry in part]}
        if type(part) is dict and all(isinstance(key, str) for key in part):
            return {"dict": [[key, describe(entry)] for key, entry in part.items()]}
        if isinstance(part, _CONSTANTS):
            return {"value": part}
        raise ArtifactError(
            f"the model returns a {type(part).__name__}; expected tensors in tuples, lists and dicts with string keys: "
            "wrap the model in a module that returns one of these"
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

    Example:
        >>> unflatten({"list": [{"leaf": 1}, {"leaf": 0}]}, ["x", "y"])
        ['y', 'x']
    """
    if isinstance(description, dict) and len(description) == 1:  # pyright: ignore[reportUnknownArgumentType]
        kind, content = next(iter(description.items()))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if kind == "leaf" and type(content) is int and 0 <= content < len(leaves):
            return leaves[content]
        if kind == "value" and isinstance(content, _CONSTANTS):
            return content
        if kind in ("tuple", "list") and isinstance(content, list):
            parts = [unflatten(entry, leaves) for entry in content]  # pyright: ignore[reportUnknownVariableType]
            return tuple(parts) if kind == "tuple" else parts
        if kind == "dict" and isinstance(content, list):
            return {str(key): unflatten(entry, leaves) for key, entry in content}  # pyright: ignore[reportUnknownVariableType]
    raise ArtifactError(f"output structure {description!r} is damaged, or does not fit {len(leaves)} leaves")
