"""Record: what stands for a model's output class where that class is not to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
        object.__setattr__(self, "_of", of)
        object.__setattr__(self, "_values", dict(fields))
        object.__setattr__(self, "_keyed", keyed)
        object.__setattr__(self, "_empty", tuple(empty))

    def __getattribute__(self, name: str) -> Any:
        # Fields first: one may be called "values" or "keys".
        values = cast("dict[Any, Any]", object.__getattribute__(self, "_values"))
        return values[name] if name in values else object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "_empty"):
            return None
        own = object.__getattribute__(self, "_of")
        raise AttributeError(f"this record of {own} has no '{name}', but {', '.join(map(str, self._names()))}")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"a record is read-only; '{name}' cannot be set: take its fields into an object of your own"
        )

    def __getitem__(self, key: Any) -> Any:
        values = cast("dict[Any, Any]", object.__getattribute__(self, "_values"))
        return (
            tuple(values.values())[key] if isinstance(key, (int, slice)) and key not in self._names() else values[key]
        )

    def __iter__(self) -> Iterator[Any]:
        values = cast("dict[Any, Any]", object.__getattribute__(self, "_values"))
        return iter(values if object.__getattribute__(self, "_keyed") else values.values())

    def __len__(self) -> int:
        return len(self._names())

    def keys(self) -> list[Any]:
        """Names of the fields.

        Returns:
            The names, in order.
        """
        return self._names()

    def values(self) -> list[Any]:
        """Values of the fields.

        Returns:
            The values, in order.
        """
        return list(object.__getattribute__(self, "_values").values())

    def items(self) -> list[tuple[Any, Any]]:
        """Names and values of the fields.

        Returns:
            The pairs, in order.
        """
        return list(object.__getattribute__(self, "_values").items())

    def _names(self) -> list[Any]:
        return list(object.__getattribute__(self, "_values"))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self._names()), *object.__getattribute__(self, "_empty")]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # pyright: ignore[reportAssignmentType] - its fields are arrays, which cannot be hashed

    def __reduce__(self) -> tuple[type[Record], tuple[Any, ...]]:
        parts = ("_of", "_values", "_keyed", "_empty")
        return Record, tuple(object.__getattribute__(self, part) for part in parts)

    def __repr__(self) -> str:
        of: str = object.__getattribute__(self, "_of")
        values = cast("dict[Any, Any]", object.__getattribute__(self, "_values"))
        return f"Record[{of.rpartition(':')[2]}]({', '.join(f'{name}={value!r}' for name, value in values.items())})"
