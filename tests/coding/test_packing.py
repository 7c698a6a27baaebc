"""Raw packing against bit strings, for every alphabet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import packing
from compoff.errors import FeatureError, PayloadError


def reference(symbols: list[int], num_symbols: int) -> bytes:
    width = math.ceil(math.log2(num_symbols))
    text = "".join(format(symbol, f"0{width}b") for symbol in symbols)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[index : index + 8], 2) for index in range(0, len(text), 8))


messages = st.integers(2, 256).flatmap(
    lambda num_symbols: st.tuples(st.just(num_symbols), st.lists(st.integers(0, num_symbols - 1), max_size=40))
)


@settings(max_examples=300, deadline=None)
@given(messages)
def test_pack_is_the_bit_string_and_unpack_undoes_it(message: tuple[int, list[int]]) -> None:
    num_symbols, symbols = message
    packed = packing.pack(np.array(symbols, np.int32), num_symbols)
    assert packed == reference(symbols, num_symbols)
    assert len(packed) == packing.packed_length(len(symbols), num_symbols)
    unpacked = packing.unpack(packed, len(symbols), num_symbols)
    assert unpacked.dtype == np.uint8
    assert unpacked.tolist() == symbols


@pytest.mark.parametrize("num_symbols", range(2, 257))
def test_every_alphabet(num_symbols: int) -> None:
    symbols = [*range(num_symbols), 0, num_symbols - 1]
    packed = packing.pack(symbols, num_symbols)
    assert packed == reference(symbols, num_symbols)
    assert packing.unpack(packed, len(symbols), num_symbols).tolist() == symbols


@pytest.mark.parametrize(
    ("num_symbols", "symbols", "golden"),
    [
        (2, [1, 0, 1, 1, 0, 0, 0, 1, 1], "b180"),
        (3, [2, 1, 0, 2, 2], "9280"),
        (8, [7, 0, 5, 3], "e2b0"),
        (16, [1, 15, 10], "1fa0"),
        (50, [49, 0, 31], "c407c0"),
        (200, [199, 0], "c700"),
    ],
)
def test_golden(num_symbols: int, symbols: list[int], golden: str) -> None:
    assert packing.pack(symbols, num_symbols).hex() == golden
    assert packing.unpack(bytes.fromhex(golden), len(symbols), num_symbols).tolist() == symbols


@pytest.mark.parametrize("width", [9, 13, 64])
def test_wide_numbers_that_take_several_steps_are_one_bit_string(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_STEP", 8)
    values = np.random.default_rng(0).integers(0, 2**width - 1, 27, np.uint64, endpoint=True)
    packed = packing.pack_width(values, width)
    assert packed == reference(values.tolist(), 2**width)
    assert packing.unpack_width(packed, 27, width).tolist() == values.tolist()


@pytest.mark.parametrize("num_symbols", [2, 3, 4, 5, 11, 16, 100, 256])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_refused(num_symbols: int, change: int) -> None:
    packed = packing.pack([1] * 20, num_symbols)
    data = packed[:-1] if change < 0 else packed + b"\0"
    with pytest.raises(PayloadError, match=f"not {len(data)}"):
        packing.unpack(data, 20, num_symbols)


@pytest.mark.parametrize(("num_symbols", "data"), [(3, "c0"), (5, "a0"), (11, "b0"), (200, "c8")])
def test_a_symbol_out_of_range_is_refused(num_symbols: int, data: str) -> None:
    with pytest.raises(PayloadError, match="expected at most"):
        packing.unpack(bytes.fromhex(data), 1, num_symbols)


@pytest.mark.parametrize(("num_symbols", "count"), [(2, 7), (4, 3), (16, 1), (8, 2), (32, 1), (128, 1)])
def test_filling_bits_that_are_not_zero_are_refused(num_symbols: int, count: int) -> None:
    with pytest.raises(PayloadError, match="not zero"):
        packing.unpack(b"\x01", count, num_symbols)


@pytest.mark.parametrize("symbols", [[0, 4], [-1, 0], [0.5], [True]])
def test_pack_refuses_what_is_no_symbol(symbols: list[float]) -> None:
    with pytest.raises(FeatureError, match="0 to 3"):
        packing.pack(symbols, 4)


@pytest.mark.parametrize("num_symbols", [0, 1, 257])
def test_an_alphabet_that_cannot_be_packed_is_refused(num_symbols: int) -> None:
    with pytest.raises(FeatureError, match="2 to 256"):
        packing.packed_length(3, num_symbols)


@given(num_symbols=st.integers(2, 256), data=st.data())
def test_a_prefix_unpacks_to_its_whole_rows(num_symbols: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(1, 9))
    rows = np.array(
        data.draw(st.lists(st.lists(st.integers(0, num_symbols - 1), min_size=row, max_size=row), max_size=6))
    )
    packed = packing.pack(rows.reshape(-1), num_symbols) if rows.size else b""
    cut = data.draw(st.integers(0, len(packed)))
    found = packing.unpack_prefix(packed[:cut], row, num_symbols)
    assert found[: len(rows)].tolist() == rows.reshape(-1, row)[: len(found)].tolist()
    assert len(found) <= max(len(rows), 8 * cut // row)
