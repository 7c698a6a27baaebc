"""Another value in one place of a nested call, and everything around it as it was, class by class. Knows no tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, cast

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from compoff.device.binding import Path

__all__ = ["path_of_leaf", "replaced"]


def replaced(value: Any, path: Path, new: Any) -> Any:
    """A nested value with another one in a place of it; the given one stays as it is.

    Args:
        value: Tuples, lists, mappings and objects.
        path: The place.
        new: What shall be there.

    Returns:
        The same nesting, of the same classes; a mapping that nothing can be put into becomes a dict.

    Raises:
        FeatureError: A class around the place lets nothing be put there.

    Examples:
        >>> replaced(({"x": [1, 2]}, 3), (0, "x", 1), "new")
        ({'x': [1, 'new']}, 3)

    Source: this project.
    """
    if not path:
        return new
    key, rest = path[0], path[1:]
    inner = replaced(_entry(value, key), rest, new)
    try:
        outer = _with(value, key, inner)
        if _entry(outer, key) is inner:
            return outer
        problem = "it does not keep what is put there"
    except (AttributeError, TypeError, ValueError) as error:
        problem = str(error)
    name = type(value).__name__
    raise FeatureError(
        f"the local model needs {key!r} of a {name} normalized, and nothing can be put there ({problem}); give the "
        "picture in a dict"
    )


def path_of_leaf(value: Any, index: int) -> Path | None:
    """The way to a leaf, counted as `input_leaves` goes through them.

    Args:
        value: Tuples, lists and mappings of anything.
        index: The leaf's number.

    Returns:
        The path; None where there are not so many.

    Examples:
        >>> path_of_leaf(([1, None], {"a": 2}), 1)
        (1, 'a')

    Source: this project.
    """
    paths = list(_leaf_paths(value))
    return paths[index] if index < len(paths) else None


def _leaf_paths(value: Any) -> list[Path]:
    if isinstance(value, Mapping):
        pairs = list(cast("Mapping[Any, Any]", value).items())
    elif isinstance(value, (tuple, list)):
        pairs = list(enumerate(cast("list[Any]", value)))
    else:
        return [] if value is None else [()]
    return [(key, *path) for key, entry in pairs for path in _leaf_paths(entry)]


def _entry(value: Any, key: Any) -> Any:
    if isinstance(value, Mapping) or isinstance(key, int):
        return cast("Any", value)[key]
    return getattr(value, key)


def _with(value: Any, key: Any, new: Any) -> Any:
    """A copy of one container with another entry."""
    if isinstance(value, tuple):
        return _tuple_with(cast("tuple[Any, ...]", value), key, new)
    if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
        return {**cast("Mapping[Any, Any]", value), key: new}
    made: Any = copy.copy(cast("Any", value))
    try:
        if isinstance(value, (MutableMapping, list)):
            made[key] = new
        else:
            setattr(made, key, new)
    except AttributeError:  # a frozen dataclass
        object.__setattr__(made, key, new)
    return made


def _tuple_with(value: tuple[Any, ...], key: Any, new: Any) -> tuple[Any, ...]:
    names: tuple[str, ...] | None = getattr(value, "_fields", None)
    place = names.index(key) if names is not None and not isinstance(key, int) else key
    entries = [*value]
    entries[place] = new
    make: Any = getattr(type(value), "_make", None) or type(value)
    return make(entries)
