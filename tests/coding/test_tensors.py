"""What is given for the tensors of a batch, and becomes no array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compoff.coding import Code, PayloadFormat, Side, SymbolTables
from compoff.errors import FeatureError

PAYLOADS = PayloadFormat(bytes(32), [Code(SymbolTables([[2**23, 2**23]] * 2), (2, 2))], [Side((2,), "float32")])
SYMBOLS, SIDE = [[[0, 1], [1, 0]]], np.zeros((1, 2), np.float32)


def test_nested_lists_do_as_well_as_arrays() -> None:
    assert PAYLOADS.decode(PAYLOADS.encode([SYMBOLS], [SIDE])).symbols[0].tolist() == SYMBOLS


@pytest.mark.parametrize(
    ("symbols", "side", "words"),
    [
        ([[[0, 1], [1]]], SIDE, "symbols cannot become an array: setting an array element"),
        (SYMBOLS, [[0.0, 1.0], [1.0]], "a side tensor cannot become an array: setting an array element"),
        (SYMBOLS, torch.zeros(1, 2, requires_grad=True), r"a side tensor cannot become an array: .*requires grad"),
    ],
)
def test_what_becomes_no_array_is_named(symbols: Any, side: Any, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        PAYLOADS.encode([symbols], [side])
