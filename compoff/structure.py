"""Nested values ◄─► a flat list of leaves and a description that JSON can hold.

So that the device returns what the model returns, without torch, and without the model's class where it is not to be
had. Builds no object by calling a class that a description names. Knows no tensors.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, cast

from compoff.errors import ArtifactError
from compoff.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "CONSTANTS",
    "LABELS",
    "entry_of",
    "flatten",
    "importable",
    "imported",
    "input_leaves",
    "leaf_places",
    "unflatten",
]

CONSTANTS = (bool, int, float, str, type(None))
"""What a description holds as it is."""

LABELS = frozenset({"label", "labels", "target", "targets"})
"""Names under which loaders give what a model is not called with here, though it may have parameters of these names.

Unless it was wrapped with them."""

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def flatten(
    value: Any, is_leaf: Callable[[Any], bool], what: str = "the model returns"
) -> tuple[list[Any], dict[str, Any]]:
    """Take a nested value apart.

    Args:
        value: Tuples, lists, dicts, named tuples, dataclasses and ordered dicts of leaves and of plain constants.
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
        if kind in CONSTANTS:
            return {"value": part}
        if kind in (tuple, list):
            return {kind.__name__: [describe(entry) for entry in part]}
        if kind is dict and _are_keys(part):
            return {"dict": [[key, describe(entry)] for key, entry in part.items()]}
        form, fields, empty = _fields(part)
        if form is None:
            raise ArtifactError(
                f"{what} a {kind.__name__}; expected tensors and plain constants in tuples, lists, dicts with string "
                "or whole-number keys, named tuples, dataclasses and OrderedDicts that hold nothing else: wrap the "
                "model in a module that keeps to these"
            )
        parts = [[name, describe(entry)] for name, entry in fields.items()]
        return {form: {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": parts, "empty": empty}}

    try:
        return leaves, describe(value)
    except RecursionError as error:
        raise ArtifactError(f"{what} values nested without end; keep to a few levels") from error


def importable(path: str) -> type | None:
    """Find the class of a name, importing its module if need be; for names in an artifact that one trusts.

    Args:
        path: ``"module:qualname"``.

    Returns:
        The class, or None where there is none.

    Examples:
        >>> importable("collections:OrderedDict"), importable("no.such:Thing")
        (<class 'collections.OrderedDict'>, None)
    """
    found = imported(path)
    if found is None and _PATH.fullmatch(path):  # asked anew each time: what is not there now may come
        try:
            import_module(path.partition(":")[0])
        except Exception:  # whatever a module raises on import, there is no class to be had from it
            return None
        found = imported(path)
    return found


def imported(path: str) -> type | None:
    """Find the class of a name among the modules that are loaded; for names that come from another machine.

    Args:
        path: ``"module:qualname"``.

    Returns:
        The class, or None where there is none.

    Examples:
        >>> imported("collections:OrderedDict"), imported("os:system")
        (<class 'collections.OrderedDict'>, None)
    """
    module, _, names = path.partition(":")
    found: object = sys.modules.get(module)
    for name in names.split("."):
        # Not getattr: a module may have one of its own, that imports.
        found = cast("dict[str, object]", getattr(found, "__dict__", {})).get(name)
    return found if isinstance(found, type) else None


def leaf_places(description: Any) -> Iterator[int]:
    """Go through the numbers of the leaves in a description, in order.

    Args:
        description: What `flatten` described, and `unflatten` has read without an error.

    Yields:
        The numbers.

    Examples:
        >>> list(leaf_places({"tuple": [{"leaf": 1}, {"value": None}, {"dict": [["a", {"leaf": 0}]]}]}))
        [1, 0]
    """
    kind, content = entry_of(description)
    if kind == "leaf":
        yield content
    elif kind in ("tuple", "list"):
        for part in content:
            yield from leaf_places(part)
    elif kind != "value":
        for _, part in content if kind == "dict" else content["fields"]:
            yield from leaf_places(part)


def entry_of(description: Any) -> tuple[Any, Any]:
    """The one key of a description and what stands under it.

    Args:
        description: What `flatten` described.

    Returns:
        The kind and the content, or twice None where it is no description.
    """
    pairs: list[tuple[Any, Any]] = list(description.items()) if isinstance(description, dict) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return pairs[0] if len(pairs) == 1 else (None, None)


def unflatten(description: Any, leaves: Sequence[Any], find: Callable[[str], type | None] = imported) -> Any:
    """Put a nested value together again.

    Args:
        description: What `flatten` described.
        leaves: The leaves in order.
        find: Gives the class of a name, or None: `imported`, or `importable` where the description is to be trusted.
            Where there is none, or it does not fit, a `Record` stands for the object.

    Returns:
        The nested value.

    Raises:
        ArtifactError: The description is damaged, or does not fit the leaves.

    Examples:
        >>> unflatten({"list": [{"leaf": 1}, {"leaf": 0}]}, ["x", "y"])
        ['y', 'x']
    """
    kind, content = entry_of(description)
    if kind == "leaf" and type(content) is int and 0 <= content < len(leaves):
        return leaves[content]
    if kind == "value" and type(content) in CONSTANTS:
        return content
    if kind in ("tuple", "list"):
        parts = [unflatten(part, leaves, find) for part in _list(content)]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return _pairs(content, leaves, find)
    if kind in _BUILDERS and isinstance(content, dict) and content.keys() == {"class", "fields", "empty"}:  # pyright: ignore[reportUnknownMemberType]
        return _object(kind, cast("dict[str, Any]", content), leaves, find)
    raise ArtifactError(f"structure {_short(description)} is damaged, or does not fit {len(leaves)} tensors")


# ── objects: what they hold, and how they are built without calling their class ──


def _fields(value: Any) -> tuple[str | None, dict[Any, Any], list[str]]:
    """Form, fields and names of empty fields of an object; no form where it is none, or holds more than its fields."""
    kind = cast("type[Any]", type(value))
    own = set[str](getattr(value, "__dict__", ()))
    names = _field_names(kind)
    if isinstance(value, OrderedDict):
        fields = dict(cast("OrderedDict[Any, Any]", value))
        right = _are_keys(fields) and own <= set(names) and (not names or fields.keys() <= set(names))
        return ("mapping" if right else None), fields, [name for name in names if name not in fields]
    if isinstance(value, tuple):
        entries = cast("tuple[Any, ...]", value)
        right = len(_tuple_names(kind)) == len(entries) > 0 and not own
        return ("namedtuple" if right else None), dict(zip(_tuple_names(kind), entries, strict=False)), []
    right = bool(names) and own <= set(names) and all(hasattr(value, name) for name in names)
    return ("dataclass", {name: getattr(value, name) for name in names}, []) if right else (None, {}, [])


def _field_names(kind: type) -> list[str]:
    return [entry.name for entry in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _is_kind_of(kind: type, base: type) -> bool:
    return issubclass(kind, base)


def _are_keys(mapping: dict[Any, Any]) -> bool:
    return all(type(key) in (str, int) for key in mapping)


def _tuple_names(kind: type) -> tuple[str, ...]:
    """Names of the fields of a named tuple, or of one of torch's own, such as ``max`` returns."""
    names: object = getattr(kind, "__match_args__" if kind.__module__ == "torch.return_types" else "_fields", ())
    right = isinstance(names, tuple) and all(isinstance(name, str) for name in cast("tuple[object, ...]", names))
    return cast("tuple[str, ...]", names) if right else ()


def _object(form: str, content: dict[str, Any], leaves: Sequence[Any], find: Callable[[str], type | None]) -> Any:
    path, empty = content["class"], _list(content["empty"])
    if not isinstance(path, str) or not all(isinstance(name, str) for name in empty):
        raise ArtifactError(f"structure names a class {_short(path)} with empty fields {_short(empty)}; it is damaged")
    fields = _pairs(content["fields"], leaves, find)
    made = _made(form, find(path), fields, empty)
    return Record(path, fields, form == "mapping", empty) if made is None else made


def _made(form: str, kind: type | None, fields: dict[Any, Any], empty: list[str]) -> Any:
    """The object, or None where the class is not one of this form with these fields."""
    # A tuple's values are in it, nothing is set.
    if kind is None or (form != "namedtuple" and any(_has_setter(kind, name) for name in (*fields, *empty))):
        return None
    try:
        return _BUILDERS[form](kind, fields, empty)
    except Exception:  # an abstract class, a metaclass of its own: there is no end to what a class may refuse
        return None


def _has_setter(kind: type, name: Any) -> bool:
    """Whether setting an attribute runs code of the class, as with a property; a slot's setter is Python's own."""
    found: object = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return hasattr(type(found), "__set__") and not isinstance(found, MemberDescriptorType)


def _dataclass(kind: type, fields: dict[Any, Any], empty: list[str]) -> Any:
    names = _field_names(kind)
    if not names or names != list(fields) or empty:
        return None
    made = cast("Any", object.__new__(kind))
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _namedtuple(kind: type, fields: dict[Any, Any], empty: list[str]) -> Any:
    if not _is_kind_of(kind, tuple) or _tuple_names(kind) != tuple(fields) or empty or not fields:
        return None
    if kind.__module__ == "torch.return_types":  # these are made by their class only, which is C and does no more
        return kind(tuple(fields.values()))
    return tuple.__new__(cast("Any", kind), fields.values())


def _mapping(kind: type, fields: dict[Any, Any], empty: list[str]) -> Any:
    names = set(_field_names(kind))
    if not _is_kind_of(kind, OrderedDict) or {*fields, *empty} != (names or set(fields)):
        return None
    ordered: Any = OrderedDict
    made = ordered.__new__(kind)
    for name, value in fields.items():
        ordered.__setitem__(made, name, value)  # its own, not one that the class has
    for name in names:
        object.__setattr__(made, name, fields.get(name))
    return made


_BUILDERS: dict[str, Callable[[type, dict[Any, Any], list[str]], Any]] = {
    "dataclass": _dataclass,
    "namedtuple": _namedtuple,
    "mapping": _mapping,
}


# ── reading a description ──


def _pairs(content: Any, leaves: Sequence[Any], find: Callable[[str], type | None]) -> dict[Any, Any]:
    pairs = _list(content)
    if not all(len(_list(pair)) == 2 and type(pair[0]) in (str, int) for pair in pairs):
        raise ArtifactError(f"structure holds {_short(content)} where names and values belong; it is damaged")
    result = {key: unflatten(part, leaves, find) for key, part in pairs}
    if len(result) != len(pairs):
        raise ArtifactError(f"structure names a key twice in {_short(content)}; it is damaged")
    return result


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
        value: Tuples, lists and mappings of anything.

    Yields:
        What is in them, but for None, which a model may take for "not given".

    Examples:
        >>> list(input_leaves(({"a": 1, "b": [2, None]}, 3)))
        [1, 2, 3]
    """
    if isinstance(value, (tuple, list)):
        for entry in value:  # pyright: ignore[reportUnknownVariableType]
            yield from input_leaves(entry)
    elif isinstance(value, Mapping):
        yield from input_leaves(list(value.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    elif value is not None:
        yield value
