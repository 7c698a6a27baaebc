"""LEB128 against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.coding.numbers import leb128, read_leb128
from compoff.errors import PayloadError


@given(st.integers(0, 2**70), st.binary(max_size=3), st.binary(max_size=3))
def test_seven_bits_a_byte_lowest_first(value: int, before: bytes, after: bytes) -> None:
    data = leb128(value)
    assert sum((byte & 127) << 7 * index for index, byte in enumerate(data)) == value
    assert [byte >= 128 for byte in data] == [True] * (len(data) - 1) + [False]
    assert read_leb128(before + data + after, len(before), 11, "number") == (value, len(before) + len(data))


@given(st.binary(max_size=12), st.integers(0, 12), st.integers(1, 10))
def test_any_bytes_are_a_number_in_its_only_form_or_refused(data: bytes, start: int, most: int) -> None:
    try:
        value, end = read_leb128(data, start, most, "number")
    except PayloadError:
        return
    assert data[start:end] == leb128(value)
    assert end - start <= most


@pytest.mark.parametrize(
    ("data", "words"), [("", "does not end"), ("80", "does not end"), ("8000", "too many"), ("ff" * 5, "not end")]
)
def test_refusals_name_the_number(data: str, words: str) -> None:
    with pytest.raises(PayloadError, match=f"payload's size .*{words.replace('too many', 'a byte too many')}"):
        read_leb128(bytes.fromhex(data), 0, 5, "size")
