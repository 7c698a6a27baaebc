"""Answers that say their own structure: there and back, and every way in which they can be damaged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff import Record
from compoff.errors import FeatureError, RemoteProtocolError
from compoff.structure import flatten
from compoff.wire.nested import MOST_LEAVES, nested_arrays, restore_nested
from compoff.wire.tensors import pack, unpack


@dataclass
class Found:
    boxes: Any
    names: Any


def sent(value: Any, most_bytes: int = 10_000) -> list[Any]:
    leaves, description = flatten(value, lambda part: isinstance(part, np.ndarray))
    arrays = nested_arrays(description, leaves, most_bytes)
    body = pack(arrays)
    assert len(body) <= most_bytes
    return unpack(body, most_arrays=1 + MOST_LEAVES)


def as_lists(array: Any) -> Any:
    return array.tolist()


def test_golden_bytes() -> None:
    arrays = nested_arrays({"list": [{"leaf": 0}]}, [np.array([1.5], np.float32)], 100)
    assert pack(arrays) == bytes.fromhex("02" + "030115") + b'{"list":[{"leaf":0}]}' + bytes.fromhex("0101010000c03f")


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3),
        [Found(np.zeros((0, 4)), ["cat", None]), Found(np.ones((2, 4)), {"é": 1.5, 3: ()})],
        None,
        [],
        {"a": [[[np.array(True)]]]},
    ],
)
def test_an_answer_comes_back(value: Any) -> None:
    again = restore_nested(sent(value), lambda array: array)
    assert type(again) is type(value)
    assert repr(again) == repr(value)


nested = st.recursive(
    st.builds(np.arange, st.integers(0, 3)) | st.none() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
)


@given(nested)
def test_any_answer_comes_back(value: Any) -> None:
    assert repr(restore_nested(sent(value, 1 << 20), lambda array: array)) == repr(value)


def test_a_class_that_is_not_loaded_is_not_imported() -> None:
    description = {"dataclass": {"class": "antigravity:Thing", "fields": [["a", {"leaf": 0}]], "empty": []}}
    again = restore_nested(nested_arrays(description, [np.ones(2)], 1000), as_lists)
    assert type(again) is Record
    assert again.a == [1.0, 1.0]


@pytest.mark.parametrize(
    ("value", "most_bytes", "words"),
    [
        (np.zeros(1000), 8000, "1 tensors in 80.. bytes"),
        ("x" * 1_100_000, 1 << 24, "for their nesting"),
        ([np.zeros(0)] * (MOST_LEAVES + 1), 1 << 24, f"{MOST_LEAVES + 1} tensors"),
    ],
)
def test_an_answer_that_is_too_long_is_refused_where_it_is_made(value: Any, most_bytes: int, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        sent(value, most_bytes)


def text(value: Any) -> Any:
    return np.frombuffer(value if isinstance(value, bytes) else json.dumps(value).encode(), np.uint8)


LEAF = np.ones(2)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([], "does not begin with its structure"),
        ([LEAF], "does not begin"),
        ([np.zeros((2, 2), np.uint8)], "does not begin"),
        ([np.array(7, np.uint8)], "does not begin"),
        ([np.zeros((1 << 20) + 1, np.uint8)], "does not begin"),
        ([text(b"")], "Expecting value"),
        ([text(b"{")], "Expecting property name"),
        ([text(b"\xff\xfe")], "can't decode|Expecting value"),
        ([text(b"[" * 100_000)], "recursion"),
        ([text(b'{"value":' + b"9" * 5000 + b"}")], "digits"),
        ([text(b'{"list":[' * 4000 + b"]}" * 4000)], "recursion|damaged"),
        ([text({"leaf": 0})], "does not fit 0 tensors"),
        ([text({"value": [1]})], "does not fit"),
        ([text({"value": 1}), LEAF], "does not hold each of 1 tensors once"),
        ([text({"list": [{"leaf": 0}, {"leaf": 0}]}), LEAF], "does not hold each of 1 tensors once"),
        ([text({"list": [{"leaf": 1}, {"leaf": 0}]}), LEAF, LEAF], "once, in order"),
        ([text({"dict": [["a", {"leaf": 0}], ["a", {"leaf": 1}]]}), LEAF, LEAF], "key twice"),
        ([text(3), LEAF], "damaged"),
    ],
)
def test_each_refusal_says_what_is_wrong(arrays: list[Any], words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        restore_nested(arrays, as_lists)
    assert len(str(caught.value)) < 400


def test_more_arrays_than_any_answer_has_are_refused_before_any_is_made() -> None:
    body = pack([np.zeros(0)] * 20)
    assert len(unpack(body, most_arrays=20)) == 20
    with pytest.raises(RemoteProtocolError, match="there are 20 arrays, expected at most 19"):
        unpack(body, most_arrays=19)


VALUE = [{"boxes": np.arange(8, dtype=np.float32).reshape(2, 4), "name": "cat", 3: (np.array([True]), None)}]


def test_3000_mutations_are_refused_or_an_answer() -> None:
    generator = np.random.default_rng(0)
    body = pack(sent(VALUE))
    refused = 0
    for index in range(3000):
        bad, place = bytearray(body), int(generator.integers(0, len(body)))
        if index % 3 == 0:
            bad[place] ^= 1 << int(generator.integers(0, 8))
        elif index % 3 == 1:
            bad[place : place + 1] = generator.bytes(int(generator.integers(0, 4)))
        else:
            bad[place] = int(generator.choice(list(b'{}[]",:0123456789einflots')))
        try:
            restore_nested(unpack(bytes(bad), most_arrays=MOST_LEAVES), lambda array: array)
        except RemoteProtocolError:
            refused += 1
    assert refused > 1500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.sampled_from(["leaf", "list", "a", "os:system"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["leaf", "value", "tuple", "list", "dict", "dataclass", "namedtuple", "mapping", "class"]),
            inner,
            max_size=3,
        )
    ),
)


@settings(max_examples=500, deadline=None)
@given(json_values, st.integers(0, 2))
def test_any_json_is_refused_or_an_answer(value: Any, number: int) -> None:
    try:
        restore_nested([text(value), *[LEAF] * number], as_lists)
    except RemoteProtocolError:
        return
    assert json.dumps(value).count('"leaf"') >= number
