"""Neighbors in a row, against neighbors in space."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.coding.grid import Grid
from tests.coding.test_context_model import pass_of

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
def test_positions_come_pass_by_pass(space: tuple[int, ...]) -> None:
    grid, batch = Grid((2, *space)), 2
    places = sorted(np.ndindex(*space), key=lambda place: (pass_of(place), place))
    numbers = {place: number for number, place in enumerate(np.ndindex(batch, *space))}
    numbered = grid.spread(np.arange(len(numbers)).reshape(1, batch, *space))[0]
    assert numbered[grid.order].tolist() == [numbers[(sample, *place)] for place in places for sample in range(batch)]
    of = [pass_of(place) for place in places for _ in range(batch)]
    assert [of[span] for span in grid.spans] == [[number] * of.count(number) for number in range(5)]
    assert numbered[grid.earlier].tolist() + numbered[grid.later].tolist() == numbered[grid.order].tolist()
    assert grid.split == len(of) - of.count(4)


def test_neighbors_lie_in_passes_before() -> None:
    """At the corner, and in the middle, of every pass; what they are is read position by position with the models."""
    values = np.arange(1, 26).reshape(1, 1, 5, 5)
    grid = Grid((1, 5, 5))
    near = grid.spread(values)[0][grid.neighbors]
    found = dict(zip(grid.spread(values)[0][grid.order].tolist(), map(sorted, near.T.tolist()), strict=True))
    assert found[1] == [0, 0, 0, 0]
    assert found[13] == [1, 5, 21, 25], "two steps along both axes"
    assert found[3] == [0, 1, 5, 13], "two steps along one"
    assert found[7] == [1, 3, 11, 13], "one step along both"
    assert found[2] == [0, 1, 3, 7], "one step along one"
