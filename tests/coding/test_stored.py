"""Tables and context models as arrays by name, and what of them is refused."""

from __future__ import annotations

import numpy as np
import pytest

from compoff.coding import SymbolTables
from compoff.coding.stored import arrays_of, tables_of
from compoff.errors import ArtifactError
from tests.coding.test_context_coder import golden


def test_context_models_come_back() -> None:
    code, _ = golden()
    tables = [SymbolTables([[2**23, 2**23]]), SymbolTables(code.tables.weights, code.contexts)]
    arrays = arrays_of(tables)
    assert sorted(arrays) == [
        *(
            f"contexts.1.{quality}.{name}"
            for quality in (0, 1, 2)
            for name in ("bounds", "leading", "tables", "weights")
        ),
        "weights.0",
        "weights.1",
    ]
    found = tables_of(arrays, [2, 3])
    assert list(found) == tables
    assert found[1].contexts == code.contexts


def test_the_eleventh_code_is_not_taken_for_the_second() -> None:
    code, _ = golden()
    tables = [SymbolTables([[2**23, 2**23]])] * 10 + [SymbolTables(code.tables.weights, code.contexts)]
    assert list(tables_of(arrays_of(tables), [2] * 10 + [3])) == tables


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.pop("contexts.0.1.bounds"), "expected contexts.0.1.bounds"),
        (lambda arrays: arrays.pop("weights.0"), "expected weights.0"),
        (lambda arrays: arrays.update(other=np.zeros(3)), "it holds other, which no code has"),
        (
            lambda arrays: arrays.update({"contexts.0.3.bounds": np.zeros(3)}),
            "holds contexts.0.3.bounds, which no code",
        ),
        (lambda arrays: arrays.update({"contexts.0.0.bounds": np.array([5, 1], np.int32)}), "must rise"),
        (lambda arrays: arrays.update({"contexts.0.0.weights": np.zeros((2, 3), np.int32)}), "expected .channels, 12"),
        (lambda arrays: arrays.update({"contexts.0.0.tables": np.zeros((3, 3), np.int32)}), "symbol weight"),
        (lambda arrays: arrays.pop("contexts.0.1.leading"), "expected contexts.0.1.leading"),
        (
            lambda arrays: arrays.update({"contexts.0.2.leading": np.zeros((2, 19), np.int32)}),
            "leading channels of shape .2, 19. cannot be used",
        ),
        (
            lambda arrays: arrays.update({"contexts.0.2.leading": np.zeros((0, 0), np.int32)}),
            "2 bounds do not go with 6",
        ),
        (lambda arrays: arrays.update({"contexts.0.2.leading": np.zeros((4, 30), np.int32)}), "at most 3 channels"),
    ],
)
def test_damaged_arrays_are_refused(change: object, words: str) -> None:
    code, _ = golden()
    arrays = arrays_of([SymbolTables(code.tables.weights, code.contexts)])
    assert callable(change)
    change(arrays)
    with pytest.raises(ArtifactError, match=words):
        tables_of(arrays, [3])
