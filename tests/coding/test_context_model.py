"""What a context model expects, against a reading of its words symbol by symbol."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import SymbolTables
from compoff.coding.context_model import BOUND, CONTEXTS, ONE, REACHES, ContextModel, Sums, groups
from compoff.coding.grid import Grid
from compoff.errors import ArtifactError

TABLES = SymbolTables.from_counts(np.arange(1, 16).reshape(3, 5))


def random_model(generator: np.random.Generator, channels: int, tables: SymbolTables = TABLES) -> ContextModel:
    weights = generator.integers(-ONE, ONE, (channels, CONTEXTS))
    return ContextModel(weights, [BOUND // 4 + BOUND * index for index in range(tables.num_channels - 1)], tables)


def reference(values: np.ndarray, model: ContextModel) -> tuple[np.ndarray, np.ndarray]:
    """Table and expected value of every symbol, one by one."""
    channels, batch, *space = values.shape
    tables, expected = np.zeros(values.shape, int), np.zeros(values.shape, int)
    weights = model.weights.astype(int).tolist()
    bounds = model.bounds.astype(int).tolist()

    def at(channel: int, sample: int, place: tuple[int, ...]) -> int:
        inside = all(0 <= one < size for one, size in zip(place, space, strict=True))
        return int(values[(channel, sample, *place)]) if inside else 0

    for channel, sample in itertools.product(range(channels), range(batch)):
        [start] = [begin for begin, end in groups(channels) if begin <= channel < end]
        for place in itertools.product(*map(range, space)):
            magnitude = weights[channel][0]
            for which, reach in enumerate(REACHES, 1):
                for before in range(0 if reach is None else max(0, start - reach), start):
                    magnitude += weights[channel][which] * abs(at(before, sample, place))
                    for shift in itertools.product((-1, 0, 1), repeat=len(space)):
                        if any(shift):
                            near = tuple(one + other for one, other in zip(place, shift, strict=True))
                            magnitude += weights[channel][which + len(REACHES)] * abs(at(before, sample, near))
            if sum(place) % 2:
                beside = [
                    at(channel, sample, (*place[:axis], place[axis] + step, *place[axis + 1 :]))
                    for axis in range(len(space))
                    for step in (-1, 1)
                ]
                magnitude += weights[channel][-3] + weights[channel][-2] * sum(map(abs, beside))
                expected[(channel, sample, *place)] = (weights[channel][-1] * sum(beside) + ONE // 2) // ONE
            tables[(channel, sample, *place)] = sum(bound <= magnitude // (ONE // BOUND) for bound in bounds)
    return tables, expected


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 2),
    st.sampled_from([(), (1,), (5,), (2, 3), (1, 4), (4, 4)]),
)
def test_it_expects_what_its_words_say(seed: int, channels: int, batch: int, space: tuple[int, ...]) -> None:
    generator = np.random.default_rng(seed)
    values, model = generator.integers(-2, 3, (channels, batch, *space)), random_model(generator, channels)
    tables, expected = reference(values, model)
    found = model.expected(values + 2, zero=2)
    odd = np.array([sum(place) % 2 for place in np.ndindex(*space)] * batch, bool)
    order = np.argsort(odd, kind="stable")
    assert np.array_equal(found.tables, tables.reshape(channels, -1)[:, order])
    assert np.array_equal(found.coded, ((values + 2 - expected) % 5).reshape(channels, -1)[:, order])


def test_sums_are_exact_at_their_largest() -> None:
    """Weights and values at the ends of their ranges: the magnitude is still a whole number to the last bit."""
    channels = 64
    weights = np.full((channels, CONTEXTS), 2**24)
    weights[:, 0] = 2**24 - 1
    values = np.full((channels, 1, 3, 3), 254)
    start = groups(channels)[-1][0]
    here = sum((start if reach is None else min(reach, start)) * 254 for reach in REACHES)
    magnitude = 2**24 - 1 + 2**24 * here * 9  # at the middle: eight around it; of the earlier half
    tables = SymbolTables.from_counts(np.ones((2, 255)))
    model = ContextModel(weights, [2**18], tables)
    assert model.expected(values, zero=0).tables[-1, 2] == 1
    grid = Grid((1, 3, 3))
    sums = Sums(grid)
    sums.add(grid.spread(values[:start]))
    assert int(model.from_before(sums.features(start), slice(63, 64))[0, grid.earlier[2]]) == magnitude


@pytest.mark.parametrize("channels", [1, 8, 9, 71, 512])
def test_groups_are_all_channels_in_order(channels: int) -> None:
    found = groups(channels)
    assert [place for start, end in found for place in range(start, end)] == list(range(channels))
    assert all(end - start <= max(1, start // 8) for start, end in found)


WEIGHTS = np.zeros((2, CONTEXTS), int)


@pytest.mark.parametrize(
    ("weights", "bounds", "words"),
    [
        (WEIGHTS[:, :5], [1, 2], "expected \\(channels, 12\\)"),
        (WEIGHTS[:0], [1, 2], "weights of shape \\(0, 12\\)"),
        (WEIGHTS[0], [1, 2], "expected whole numbers"),
        (WEIGHTS + 0.5, [1, 2], "weights of a context model are float64"),
        (WEIGHTS, [1], "1 bounds do not go with 3 tables"),
        (WEIGHTS, [2, 2], "must rise"),
        (WEIGHTS + 2**24 + 1, [1, 2], "beyond 16777216"),
        (WEIGHTS, [1, 2**18 + 1], "bounds of a context model reach from 1 to 262145, beyond 262144"),
        (WEIGHTS, [0, 1], "must rise from above zero"),
    ],
)
def test_it_refuses_parts_that_do_not_fit(weights: Any, bounds: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        ContextModel(weights, bounds, TABLES)


def test_numbers_of_64_bits_do_not_wrap_and_models_do_not_change() -> None:
    with pytest.raises(ArtifactError, match="beyond 16777216"):
        ContextModel(np.full((2, CONTEXTS), 2**64 - 1, np.uint64), [1, 2], TABLES)
    model = ContextModel(WEIGHTS, [1, 2], TABLES)
    for array in (model.weights, model.bounds):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7


def test_models_are_equal_by_their_numbers() -> None:
    generator = np.random.default_rng(0)
    model = random_model(generator, 2)
    same = ContextModel(model.weights.astype(int), model.bounds.astype(int), TABLES)
    assert model == same
    assert hash(model) == hash(same)
    other = ContextModel(model.weights.astype(int) + 1, model.bounds.astype(int), TABLES)
    assert model != other
    assert model != ContextModel(model.weights.astype(int), model.bounds.astype(int) + 1, TABLES)
    assert SymbolTables(TABLES.weights, [model]) != TABLES
    assert SymbolTables(TABLES.weights, [model]) == SymbolTables(TABLES.weights, [same])


@pytest.mark.parametrize("taken", [1, 2, 7, 40])
def test_sums_reach_back_however_many_channels_come_at_a_time(taken: int) -> None:
    grid, values = Grid((2, 5)), np.random.default_rng(0).integers(-9, 10, (40, 2, 5))
    sums = Sums(grid)
    for first in range(0, 40, taken):
        assert np.array_equal(sums.features(first)[1 : 1 + len(REACHES)][:, grid.order], _before(values, first, grid))
        sums.add(grid.spread(values[first : first + taken]))
        for start in range(first, min(first + taken, 40)):
            found = sums.features(start)[1 : 1 + len(REACHES)][:, grid.order]
            assert np.array_equal(found, _before(values, start, grid))


def _before(values: np.ndarray, start: int, grid: Grid) -> np.ndarray:
    sizes = np.abs(grid.spread(values))[:, grid.order]
    return np.array([sizes[0 if reach is None else max(0, start - reach) : start].sum(0) for reach in REACHES])
