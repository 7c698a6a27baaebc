"""One place of a nested call replaced: its classes stay, what was given stays, and what cannot be replaced says so."""

from __future__ import annotations

import types
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from compoff.device.replacing import path_of_leaf, replaced
from compoff.errors import FeatureError


class Pair(NamedTuple):
    left: Any
    right: Any


class Batch(UserDict[str, Any]):
    """As the processors of Transformers give it."""


class Words(list[Any]):
    """A list with a name."""


@dataclass
class Plain:
    left: Any
    right: Any


@dataclass(frozen=True)
class Frozen:
    left: Any
    right: Any


class Stubborn:
    """Says always the same."""

    left = property(lambda self: "old", lambda self, value: None)


@pytest.mark.parametrize(
    ("value", "key", "expected"),
    [
        ((1, 2), 0, ("new", 2)),
        ([1, 2], 1, [1, "new"]),
        (Words([1, 2]), 1, Words([1, "new"])),
        ({"a": 1, "b": 2}, "a", {"a": "new", "b": 2}),
        ({0: 1, "b": 2}, 0, {0: "new", "b": 2}),
        (OrderedDict(a=1, b=2), "a", OrderedDict(a="new", b=2)),
        (Batch(a=1, b=2), "a", Batch(a="new", b=2)),
        (types.MappingProxyType({"a": 1, "b": 2}), "a", {"a": "new", "b": 2}),
        (Pair(1, 2), "left", Pair("new", 2)),
        (Pair(1, 2), 0, Pair("new", 2)),
        (Plain(1, 2), "left", Plain("new", 2)),
        (Frozen(1, 2), "left", Frozen("new", 2)),
        (types.SimpleNamespace(left=1, right=2), "left", types.SimpleNamespace(left="new", right=2)),
    ],
)
def test_what_is_around_a_place_stays(value: Any, key: Any, expected: Any) -> None:
    before = repr(value)
    for nested, path, wanted in (
        (value, (key,), expected),
        ({"x": [value, 3]}, ("x", 0, key), {"x": [expected, 3]}),
    ):
        found = replaced(nested, path, "new")
        assert found == wanted
    inner = found["x"][0]
    assert type(inner) is type(expected)
    assert repr(value) == before


def test_what_cannot_be_replaced_says_so() -> None:
    with pytest.raises(FeatureError, match="'left' of a Stubborn normalized, and nothing can be put there"):
        replaced(({"x": Stubborn()},), (0, "x", "left"), "new")


def test_the_way_to_a_leaf() -> None:
    nested = (1, [None, {"a": 2}], Batch(b=(3, None, 4)))
    assert [path_of_leaf(nested, index) for index in range(5)] == [
        (0,),
        (1, 1, "a"),
        (2, "b", 0),
        (2, "b", 2),
        None,
    ]
