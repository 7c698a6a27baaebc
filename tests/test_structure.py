"""Nested values, apart and together again."""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from compoff.errors import ArtifactError
from compoff.structure import flatten, unflatten


class Leaf:
    """Something that is no constant."""


def is_leaf(value: Any) -> bool:
    return isinstance(value, Leaf)


constants = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    constants | st.builds(Leaf),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@given(nested)
def test_comes_together_as_it_was_through_json(value: Any) -> None:
    leaves, description = flatten(value, is_leaf)
    again = unflatten(json.loads(json.dumps(description)), leaves)
    assert again == value
    assert repr(again) == repr(value)  # 1 == 1.0 == True, and the order of a dict does not count there


def test_description_is_golden() -> None:
    leaf = Leaf()
    leaves, description = flatten({"b": [leaf, None], "a": (leaf, 1.5, "x", True)}, is_leaf)
    assert leaves == [leaf, leaf]
    assert description == {
        "dict": [
            ["b", {"list": [{"leaf": 0}, {"value": None}]}],
            ["a", {"tuple": [{"leaf": 1}, {"value": 1.5}, {"value": "x"}, {"value": True}]}],
        ]
    }


@pytest.mark.parametrize(
    "value", [{1: 2}, OrderedDict(a=1), namedtuple("Pair", "a b")(1, 2), {1, 2}, b"bytes", 1j, object()]
)
def test_what_cannot_be_described_is_named(value: Any) -> None:
    with pytest.raises(ArtifactError, match=f"the model returns a {type(value).__name__}; expected tensors in tuples"):
        flatten([value], is_leaf)


def test_the_caller_says_where_the_value_is_from() -> None:
    with pytest.raises(ArtifactError, match=r"^the caller gave a set"):
        flatten({1}, is_leaf, "the caller gave")


@pytest.mark.parametrize(
    "description",
    [
        None,
        3,
        "leaf",
        [],
        {},
        {"leaf": 2},
        {"leaf": -1},
        {"leaf": True},
        {"leaf": "0"},
        {"leaf": 0, "value": 1},
        {"value": [1]},
        {"value": object()},
        {"tuple": 3},
        {"list": {"leaf": 0}},
        {"dict": {"a": {"leaf": 0}}},
        {"dict": [["a"]]},
        {"dict": [["a", {"leaf": 0}, 1]]},
        {"dict": [[1, {"leaf": 0}]]},
        {"dict": ["ab"]},
        {"dict": [[["a"], {"leaf": 0}]]},
        {"set": [{"leaf": 0}]},
        {"tuple": [{"leaf": 5}]},
        {1: 2},
        {"leaf" * 1000: 1},
    ],
)
def test_damaged_descriptions_are_errors_of_ours(description: Any) -> None:
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        unflatten(description, ["x", "y"])
    assert len(str(caught.value)) < 200
