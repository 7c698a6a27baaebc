"""Neighbors in a row, against neighbors in space."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.coding.grid import Grid

SPACES = [(), (1,), (2,), (7,), (1, 1), (1, 5), (3, 4), (2, 3, 2), (1, 2, 1, 3)]


def reference(values: np.ndarray, corners: bool) -> np.ndarray:
    """Sums over the neighbors of each position, one by one."""
    result = np.zeros_like(values)
    space = values.shape[2:]
    for place in np.ndindex(*space):
        for shift in itertools.product((-1, 0, 1), repeat=len(space)):
            near = tuple(one + other for one, other in zip(place, shift, strict=True))
            steps = sum(map(abs, shift))
            inside = all(0 <= one < size for one, size in zip(near, space, strict=True))
            if inside and (steps == 1 or (corners and steps)):
                result[(..., *place)] += values[(..., *near)]
    return result


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3), st.sampled_from(SPACES))
def test_neighbors_are_those_of_the_space(seed: int, channels: int, batch: int, space: tuple[int, ...]) -> None:
    values = np.random.default_rng(seed).integers(-9, 10, (channels, batch, *space), np.int32)
    grid = Grid(values.shape[1:])
    rows = grid.spread(values)
    assert np.array_equal(grid.gathered(rows), values)
    assert np.array_equal(grid.gathered(grid.beside(rows)), reference(values, corners=False))
    assert np.array_equal(grid.gathered(grid.around(rows)), reference(values, corners=True))
    assert np.array_equal(grid.spread(values), rows), "what was given has changed"


@pytest.mark.parametrize("space", SPACES)
def test_halves_are_the_positions_in_order(space: tuple[int, ...]) -> None:
    grid, places = Grid((2, *space)), list(np.ndindex(2, *space))
    numbers = np.arange(len(places)).reshape(1, 2, *space)
    numbered = grid.spread(numbers)[0]
    halves = [[at for at, place in enumerate(places) if sum(place[1:]) % 2 == half] for half in (0, 1)]
    assert [numbered[grid.earlier].tolist(), numbered[grid.later].tolist()] == halves
    assert numbered[grid.order].tolist() == halves[0] + halves[1]
