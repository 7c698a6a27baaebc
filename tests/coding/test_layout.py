"""The bytes of docs/reference/coding.md: written and read as the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compoff.coding.side import decode_side, encode_side
from tests.coding.test_payload_parts import GOLDEN_FORMAT, GOLDEN_SIDES, GOLDEN_SYMBOLS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "coding.md").read_text(encoding="utf-8")
BLOCKS: list[str] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
_LINE = re.compile(r"((?:[0-9a-f]{2} +)+)(.*)")


def lines(block: str) -> list[tuple[bytes, str]]:
    """The bytes of each line, and what is said of them."""
    return [(bytes.fromhex(match[1]), match[2]) for match in map(_LINE.fullmatch, block.splitlines()) if match]


@pytest.mark.parametrize(("block", "coding"), [(0, "range"), (1, "raw")])
def test_the_payloads_of_the_page(block: int, coding: Any) -> None:
    data = b"".join(part for part, _ in lines(BLOCKS[block]))
    assert GOLDEN_FORMAT.encode(GOLDEN_SYMBOLS, GOLDEN_SIDES, coding=coding).data == data
    decoded = GOLDEN_FORMAT.decode(data)
    assert [one.tolist() for one in decoded.symbols] == GOLDEN_SYMBOLS
    assert all(map(np.array_equal, decoded.sides, GOLDEN_SIDES))


def test_the_side_tensors_of_the_page() -> None:
    assert len(lines(BLOCKS[2])) == len(BLOCKS[2].splitlines()) == 4
    for data, told in lines(BLOCKS[2]):
        dtype, size, values = re.fullmatch(r"(\w+) \((\d+),\): (.*)", told).groups()  # type: ignore[union-attr]
        numbers = [float(value) if dtype.startswith("f") else int(value) for value in values.split()]
        tensor = np.array(numbers, dtype)
        assert np.array_equal(decode_side(data, (int(size),), dtype), tensor)
        assert encode_side(tensor)[0] == data[0]
        assert data[0] & 0x80 or encode_side(tensor) == data  # a DEFLATE stream depends on what writes it
