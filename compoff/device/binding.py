"""A call of the model ─► the tensors that a head takes, in its order.

What is given by position, by keyword and nested is put where the example call of the export had it. Knows no tensors:
what stands in a tensor's place is checked by the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from compoff.errors import FeatureError
from compoff.structure import CONSTANTS, entry_of, leaf_places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.manifest import TensorSpec

__all__ = ["CallForm", "Path"]

Path: TypeAlias = "tuple[Any, ...]"
"""Positions, keys and names of attributes, from the outside in."""

_Description = dict[str, Any]
_BY_NAME = frozenset({"dict", "dataclass", "namedtuple", "mapping"})  # kinds whose parts a dict may give


class CallForm:
    """How a model was called when it was exported, and so how its head is called.

    Args:
        call: The manifest's ``call``, which is checked.
        inputs: The tensors in it.

    Examples:
        >>> from compoff.manifest import TensorSpec
        >>> nested = {"list": [{"list": [{"leaf": 0}, {"value": True}]}, {"dict": [["mask", {"leaf": 1}]]}]}
        >>> inputs = [TensorSpec((3,), "float32"), TensorSpec((), "bool")]
        >>> form = CallForm({"parameters": ["x", "train"], "call": nested}, inputs)
        >>> form
        (x: float32 of (batch, 3), train=True, *, mask: bool of (batch,))
        >>> form.bind(("x",), {"mask": "m"})
        ['x', 'm']

    Source: the binding of arguments is Python's own.
    """

    def __init__(self, call: dict[str, Any], inputs: Sequence[TensorSpec]) -> None:
        positional, keywords = (entry_of(part)[1] for part in entry_of(call["call"])[1])
        names = [*call["parameters"], *(f"*{index}" for index in range(len(positional)))]
        self._inputs = inputs
        self._positional: dict[str, _Description] = dict(zip(names, positional, strict=False))
        self._keywords: dict[str, _Description] = dict(keywords)
        self._parameters: list[str] = call["parameters"]

    @property
    def names(self) -> frozenset[str]:
        """The names that an input may be given by."""
        return frozenset((*self._positional, *self._keywords))

    @property
    def needed(self) -> frozenset[str]:
        """Those of them that stand for tensors, without which there is no call."""
        return frozenset(name for name in self.names if self._is_needed(name))

    def _is_needed(self, name: str) -> bool:
        described = self._positional.get(name) or self._keywords[name]
        return any(True for _ in leaf_places(described))

    def bind(self, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> list[Any]:
        """Find the tensors of a call.

        Args:
            inputs: What is given by position: as the model takes it, or its tensors only, in order, unless the model
                itself would take one of them for another of its parameters.
            keywords: What is given by keyword.

        Returns:
            What stands in the place of each tensor, in order.

        Raises:
            FeatureError: The model was not called so.
        """
        if self._flat(inputs, keywords):
            self._refuse_other_places(len(inputs))
            return list(inputs)
        found: dict[int, Any] = {}
        self._refuse_dict(inputs, keywords)
        given = self._by_name(inputs, keywords)
        missing: list[str] = []
        for name, description in {**self._positional, **self._keywords}.items():
            if name in given:
                self._match(description, given[name], f"'{name}'", found)
            elif self._is_needed(name):
                missing.append(f"'{name}'")
        if missing:
            raise self._refusal(f"{' and '.join(missing)} must be given")
        return [found[index] for index in range(len(self._inputs))]

    def path(self, index: int, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Path:
        """Find where a tensor stands in a call that ``bind`` takes.

        Args:
            index: Its place among the tensors.
            inputs: What is given by position.
            keywords: What is given by keyword.

        Returns:
            The way to it through ``(inputs, keywords)``.
        """
        if self._flat(inputs, keywords):
            return (0, index)
        places = {**self._positional, **self._keywords}
        name = next(name for name, description in places.items() if index in leaf_places(description))
        first: Path = (1, name) if name in keywords else (0, list(places).index(name))
        return (*first, *_path_in(places[name], index))

    def _flat(self, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
        """Whether these are the tensors alone."""
        containers = (tuple, list, Mapping, *CONSTANTS)
        alone = len(inputs) == len(self._inputs) and not any(isinstance(value, containers) for value in inputs)
        return alone and not keywords

    def _refuse_other_places(self, count: int) -> None:
        """Tensors alone, of which the model, called so, would take one for something else than this order does."""
        names = [*self._parameters, *(name for name in self._positional if name not in self._parameters)]
        places = {**self._positional, **self._keywords}
        found = [entry_of(places.get(name)) for name in names[:count]]
        if count > len(names) or not all(kind in (None, "leaf", "value") for kind, _ in found):
            return  # the model cannot be called so
        for index, (name, place) in enumerate(zip(names, found, strict=False)):
            if place != ("leaf", index):
                problem = f"by position the model takes tensor {index} for '{name}', which is another; give it by name"
                raise self._refusal(problem)

    def _refuse_dict(self, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """A dict of inputs by name, which a loader gives and `fit` takes, is no input of the model."""
        named = len(inputs) == 1 and not keywords and isinstance(inputs[0], Mapping)
        names = set(cast("Sequence[Mapping[Any, Any]]", inputs)[0] if named else ())
        first = next(iter(self._positional.values()), {})  # pyright: ignore[reportUnknownArgumentType]
        if names and names <= self.names and first.keys().isdisjoint(_BY_NAME):
            raise self._refusal("these inputs by name were given in one dict: call it with two stars, head(**inputs)")

    def _by_name(self, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        if len(inputs) > len(self._positional):
            raise self._refusal(f"{len(inputs)} were given by position")
        given = dict(zip(self._positional, inputs, strict=False))
        unknown = [name for name in keywords if name not in self._positional and name not in self._keywords]
        if unknown:
            raise self._refusal(f"there is no {' and no '.join(map(repr, unknown))}")
        twice = [name for name in keywords if name in given]
        if twice:
            raise self._refusal(f"{' and '.join(map(repr, twice))} cannot be given twice")
        return {**given, **keywords}

    def _match(self, description: _Description, value: Any, name: str, found: dict[int, Any]) -> None:
        """Take the tensors out of one input; what is no tensor has to be what it was at the export."""
        kind, content = entry_of(description)
        if kind == "leaf":
            found[content] = value
        elif kind == "value":
            if type(value) is not type(content) or value != content:
                raise self._refusal(
                    f"{name} is {value!r:.80} and became the constant {content!r} at the export; export again with it"
                )
        elif kind in ("tuple", "list"):
            if not isinstance(value, (tuple, list)) or len(cast("Sequence[Any]", value)) != len(content):
                raise self._refusal(f"{name} is {_told(value)}, expected {len(content)} in a {kind}")
            for index, (part, entry) in enumerate(zip(content, cast("Sequence[Any]", value), strict=True)):
                self._match(part, entry, f"{name}[{index}]", found)
        else:
            fields = content if kind == "dict" else content["fields"]
            values = _fields(value, [key for key, _ in fields])
            if values is None:
                raise self._refusal(f"{name} is {_told(value)}, expected {', '.join(str(key) for key, _ in fields)}")
            for key, part in fields:
                self._match(part, values[key], f"{name}[{key!r}]", found)

    def _refusal(self, problem: str) -> FeatureError:
        return FeatureError(f"the head takes {self!r}, or its tensors alone in this order; {problem}")

    def __repr__(self) -> str:
        parts = [self._parameter(name, description) for name, description in self._positional.items()]
        if self._keywords:
            parts += ["*", *(self._parameter(name, description) for name, description in self._keywords.items())]
        return f"({', '.join(parts)})"

    def _parameter(self, name: str, description: _Description) -> str:
        return f"{name}={self._text(description)}" if "value" in description else f"{name}: {self._text(description)}"

    def _text(self, description: _Description) -> str:
        kind, content = entry_of(description)
        if kind == "leaf":
            spec = self._inputs[int(content)]
            sizes = spec.sized("batch")
            return f"{spec.dtype} of ({', '.join(map(str, sizes))}{',' * (len(sizes) == 1)})"
        if kind == "value":
            return repr(content)
        if kind in ("tuple", "list"):
            inner = ", ".join(map(self._text, content))
            return f"({inner})" if kind == "tuple" else f"[{inner}]"
        fields = content if kind == "dict" else content["fields"]
        return "{" + ", ".join(f"{key!r}: {self._text(part)}" for key, part in fields) + "}"


def _path_in(description: _Description, index: int) -> Path:
    """The way to a leaf through what a description, which has it, describes."""
    kind, content = entry_of(description)
    if kind == "leaf":
        return ()
    parts = enumerate(content) if kind in ("tuple", "list") else content if kind == "dict" else content["fields"]
    return next((key, *_path_in(part, index)) for key, part in parts if index in leaf_places(part))


def _fields(value: Any, names: list[Any]) -> Mapping[Any, Any] | None:
    """The values under exactly these keys, or of these attributes; None where it has others."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[Any, Any]", value)
        return mapping if set(mapping) == set(names) else None
    if isinstance(value, CONSTANTS) or not all(isinstance(name, str) and hasattr(value, name) for name in names):
        return None
    return {name: getattr(value, name) for name in names}


def _told(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {name} of {', '.join(map(str, cast('Mapping[Any, Any]', value))) or 'nothing'}"
    return f"a {name} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {name}"  # pyright: ignore[reportUnknownArgumentType]
