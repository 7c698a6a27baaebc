"""Arrays as bytes: golden bytes, round trips, and every way in which they can be damaged."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from compoff.errors import FeatureError, RemoteProtocolError
from compoff.wire.tensors import pack, unpack

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
GOLDEN = [
    ([], "00"),
    ([np.array(1.5, np.float32)], "01" + "0100" + "0000c03f"),
    ([np.array([[1, 2, 3]], np.uint8)], "01" + "0302" + "0103" + "010203"),
    ([np.array([True, False])], "01" + "0801" + "02" + "0100"),
    ([np.zeros((0, 300), np.int64)], "01" + "0702" + "00ac02"),
    (
        [np.array([-2], np.int16), np.array([1, -1], np.int32)],
        "02" + "0501" + "01" + "feff" + "0601" + "02" + "01000000ffffffff",
    ),
]
shapes = stn.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)
arrays = st.lists(stn.arrays(st.sampled_from(DTYPES), shapes), max_size=4)


@pytest.mark.parametrize(("values", "golden"), GOLDEN)
def test_golden_bytes(values: list[np.ndarray[Any, Any]], golden: str) -> None:
    assert pack(values).hex() == golden
    for value, back in zip(values, unpack(bytes.fromhex(golden)), strict=True):
        np.testing.assert_array_equal(back, value, strict=True)


@given(arrays)
def test_round_trip(values: list[np.ndarray[Any, Any]]) -> None:
    back = unpack(pack(values))
    for one, other in zip(values, back, strict=True):
        np.testing.assert_array_equal(other, one, strict=True)
        assert other.flags.writeable
        assert other.flags.owndata or other.base.flags.owndata


@given(stn.arrays(st.sampled_from([">f4", ">i8", ">u1", ">f2"]), shapes))
def test_byte_order_and_memory_order_do_not_matter(value: np.ndarray[Any, Any]) -> None:
    native = value.astype(value.dtype.newbyteorder("="))
    assert pack([value]) == pack([native]) == pack([native.copy(order="F")])
    np.testing.assert_array_equal(unpack(pack([value.T]))[0], native.T, strict=True)


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "uint32", "U3", "O", "M8[s]", "m8[s]", "S2"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    value = np.zeros(3, dtype)
    with pytest.raises(FeatureError, match="cannot be sent"):
        pack([value])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "they end"),
        ("01", "do not fit"),
        ("0103", "they end"),
        ("010301", "they end"),
        ("01030105" + "00" * 4, "does not fit"),
        ("01030105" + "00" * 6, "1 bytes follow"),
        ("0109010100", "unknown"),
        ("01ff010100", "unknown"),
        ("0103210100", "unknown"),
        ("8000", "shortest form"),
        ("01030180ffffffff7f", "too large"),
        ("0103018000", "shortest form"),
        ("0108010102", "neither 0 nor 1"),
        ("0103018080808010", "does not fit"),
        ("ffffffff0f", "do not fit"),
    ],
)
def test_damaged_bytes_say_what_is_wrong(data: str, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        unpack(bytes.fromhex(data))


def test_an_empty_array_of_an_absurd_shape_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="no array has the shape"):
        unpack(b"\x01\x02\x06\x00" + b"\xff\xff\xff\xff\x7f" * 5)


def test_the_number_of_arrays_can_be_asked_for() -> None:
    data = pack([np.zeros(0, np.uint8)] * 3)
    assert len(unpack(data, 3)) == 3
    with pytest.raises(RemoteProtocolError, match="3 arrays, expected 2"):
        unpack(data, 2)


def test_mutated_bytes_never_crash_nor_allocate_more_than_they_hold() -> None:
    rng = random.Random(0)
    good = pack([np.arange(60, dtype=np.float32).reshape(3, 4, 5), np.ones((2, 0, 3), bool), np.array(7)])
    tracemalloc.start()
    for _ in range(5000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randrange(len(data)) :]
        if rng.random() < 0.5:
            data += good[len(data) :]
        try:
            total = sum(array.nbytes for array in unpack(bytes(data)))
        except RemoteProtocolError:
            continue
        assert total <= len(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
