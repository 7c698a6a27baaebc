"""Record: answers as the class it stands for would."""

from __future__ import annotations

import copy
import pickle

import pytest

from compoff import Record

PAIR = Record("shop.models:Pair", {"values": [1], "keys": 2})
MAPPING = Record("shop.models:Output", {"logits": 1, "states": (2, 3)}, keyed=True, empty=["loss"])


def test_fields_are_reached_in_every_way_and_before_its_own_names() -> None:
    assert (PAIR.values, PAIR.keys) == ([1], 2)
    assert (PAIR["values"], PAIR[1], PAIR[-1], PAIR[:]) == ([1], 2, 2, ([1], 2))
    values, keys = PAIR
    assert (values, keys, len(PAIR)) == ([1], 2, 2)
    assert {"values", "keys"} <= set(dir(PAIR))


def test_a_mapping_is_iterated_by_key() -> None:
    assert list(MAPPING) == MAPPING.keys() == ["logits", "states"]
    assert dict(MAPPING) == dict(MAPPING.items()) == {"logits": 1, "states": (2, 3)}
    assert MAPPING.values() == [1, (2, 3)]
    assert "logits" in MAPPING
    assert "loss" not in MAPPING
    assert MAPPING.loss is None
    assert "loss" in dir(MAPPING)
    assert MAPPING[0] == 1


def test_what_is_not_there_is_an_error_of_the_usual_kind() -> None:
    with pytest.raises(AttributeError, match=r"record of shop\.models:Pair has no 'boxes', but values, keys"):
        _ = PAIR.boxes
    with pytest.raises(KeyError):
        _ = MAPPING["loss"]
    with pytest.raises(IndexError):
        _ = PAIR[2]
    assert not hasattr(PAIR, "loss")


def test_is_read_only() -> None:
    for name in ("values", "other", "_values"):
        with pytest.raises(AttributeError, match="read-only"):
            setattr(PAIR, name, 1)


def test_whole_numbers_may_be_keys() -> None:
    record = Record("shop:Output", {1: "one", 0: "zero"}, keyed=True)
    assert (record[0], record[1]) == ("zero", "one")


def test_is_copied_pickled_and_compared_by_value() -> None:
    for record in (PAIR, MAPPING, Record("a:b", {})):
        for again in (pickle.loads(pickle.dumps(record)), copy.deepcopy(record), copy.copy(record)):
            assert again == record
            assert repr(again) == repr(record)
            assert list(again) == list(record)
    assert PAIR != MAPPING
    assert Record("shop.models:Pair", {"values": [1], "keys": 3}) != PAIR
    assert PAIR != ([1], 2)
    with pytest.raises(TypeError, match="unhashable"):
        hash(PAIR)


def test_any_name_may_be_a_fields() -> None:
    names = ["_names", "_values", "_of", "__class__", "__reduce__", "__dict__", "keys", "items"]
    record = Record("a:b", dict.fromkeys(names, 7), empty=["__len__", "_empty"])
    assert isinstance(record, Record)
    assert (record._names, record._values, record.keys, record["__class__"], len(record)) == (7, 7, 7, 7, 8)
    assert pickle.loads(pickle.dumps(record)) == record == copy.deepcopy(record)
    assert repr(record).count("=7") == 8
    assert list(record) == [7] * 8


def test_says_what_it_stands_for() -> None:
    assert repr(MAPPING) == "Record[Output](logits=1, states=(2, 3))"
