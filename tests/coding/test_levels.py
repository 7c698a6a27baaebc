"""Coarser steps: exact tables, whole numbers, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.coding import SymbolTables
from compoff.coding.levels import coarse_tables, coarsen, num_coarse, refine
from compoff.errors import ArtifactError


@given(half=st.integers(2, 127), data=st.data())
def test_a_coarse_table_is_the_sum_of_its_fine_weights(half: int, data: st.DataObject) -> None:
    num_levels = 2 * half + 1
    step = data.draw(st.integers(1, half))
    counts = data.draw(st.lists(st.integers(0, 99), min_size=num_levels, max_size=num_levels))
    tables = SymbolTables.from_counts([counts])
    found = coarse_tables(tables, step)
    expected = np.bincount(coarsen(np.arange(num_levels, dtype=np.uint8), num_levels, step), weights=tables.weights[0])
    assert found.weights[0].tolist() == expected.tolist()
    assert found.num_symbols == num_coarse(num_levels, step)


def test_golden_symbols() -> None:
    fine = np.array([0, 120, 125, 126, 127, 128, 129, 134, 254], np.uint8)
    sent = coarsen(fine, 255, 4)
    assert sent.tolist() == [0, 30, 32, 32, 32, 32, 33, 34, 64]
    assert refine(sent, 255, 4).tolist() == [0, 119, 127, 127, 127, 127, 131, 135, 254]


@pytest.mark.parametrize(("num_levels", "step"), [(8, 1), (7, 0), (7, 4)])
def test_steps_that_do_not_go_with_the_levels_are_refused(num_levels: int, step: int) -> None:
    with pytest.raises(ArtifactError, match=f"step {step} cannot be used with {num_levels} levels"):
        num_coarse(num_levels, step)
