"""Record: what stands for a model's output class where that class is not to be had."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Record"]


class Record:
    """An output of a class that cannot be imported here: fields by attribute, by key and by index. Read-only.

    A device need not have the model's library. Where the class is there, the output is of that very class; where it is
    not, a record answers as it would: iterating gives the values, as of a named tuple, or the keys, as of a mapping.

    Args:
        of: The class, as ``"module:qualname"``.
        fields: Values by name, in order.
        keyed: Whether it is a mapping.
        empty: Names of a mapping's fields that hold nothing: None by attribute, absent by key.

    Raises:
        ArtifactError: `of` is no text, or `fields` no mapping.

    Examples:
        >>> found = Record("shop.models:Detections", {"boxes": [1, 2], "scores": [0.5]})
        >>> found.boxes, found["scores"], found[0]
        ([1, 2], [0.5], [1, 2])
        >>> boxes, scores = found
        >>> found
        Record[Detections](boxes=[1, 2], scores=[0.5])

    Source: this project; the ways of access are those of ``ModelOutput`` in transformers.
    """

    __slots__ = ("_empty", "_keyed", "_of", "_values")

    def __init__(self, of: str, fields: Mapping[Any, Any], keyed: bool = False, empty: Iterable[str] = ()) -> None:
        if not isinstance(of, str) or not isinstance(fields, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArtifactError(f"Record({of!r:.80}, {fields!r:.80}): expected a class's name and a dict")
        object.__setattr__(self, "_of", of)
        object.__setattr__(self, "_values", dict(fields))
        object.__setattr__(self, "_keyed", keyed)
        object.__setattr__(self, "_empty", tuple(empty))

    def __getattribute__(self, name: str) -> Any:
        # Fields first: one may be called "values" or "keys". What Python itself looks for is no field.
        fields = _fields(self)
        hidden = name.startswith("__") or name not in fields
        return object.__getattribute__(self, name) if hidden else fields[name]

    def __getattr__(self, name: str) -> Any:
        of, _, _, empty = _parts(self)
        if name in empty and not name.startswith("__"):
            return None
        raise AttributeError(f"this record of {of} has no '{name}', but {', '.join(map(str, _fields(self)))}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a record is read-only, so '{name}' cannot be set; take its fields into your own object")

    def __getitem__(self, key: Any) -> Any:
        fields = _fields(self)
        by_place = isinstance(key, slice) or (isinstance(key, int) and key not in fields)
        return tuple(fields.values())[key] if by_place else fields[key]

    def __iter__(self) -> Iterator[Any]:
        _, fields, keyed, _ = _parts(self)
        return iter(fields if keyed else fields.values())

    def __len__(self) -> int:
        return len(_fields(self))

    def keys(self) -> list[Any]:
        """Names of the fields.

        Returns:
            The names, in order.
        """
        return list(_fields(self))

    def values(self) -> list[Any]:
        """Values of the fields.

        Returns:
            The values, in order.
        """
        return list(_fields(self).values())

    def items(self) -> list[tuple[Any, Any]]:
        """Names and values of the fields.

        Returns:
            The pairs, in order.
        """
        return list(_fields(self).items())

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, _fields(self)), *_parts(self)[3]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and _parts(self) == _parts(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - its fields are arrays, which cannot be hashed

    def __reduce__(self) -> tuple[type[Record], tuple[Any, ...]]:
        return Record, _parts(self)

    def __repr__(self) -> str:
        of, fields, _, _ = _parts(self)
        return f"Record[{of.rpartition(':')[2]}]({', '.join(f'{name}={value!r}' for name, value in fields.items())})"


# Past the fields, which may be called anything.


def _parts(record: Record) -> tuple[str, dict[Any, Any], bool, tuple[str, ...]]:
    get = functools.partial(object.__getattribute__, record)
    return get("_of"), get("_values"), get("_keyed"), get("_empty")


def _fields(record: Record) -> dict[Any, Any]:
    return object.__getattribute__(record, "_values")
