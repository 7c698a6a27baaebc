"""What a context model expects, against a reading of its words symbol by symbol."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import SymbolTables
from compoff.coding.context_model import BOUND, CONTEXTS, ONE, ContextModel
from compoff.coding.grid import Grid
from compoff.coding.leading import NUM_OWN
from compoff.coding.sums import REACHES, Sums, groups
from compoff.errors import ArtifactError

TABLES = SymbolTables.from_counts(np.arange(1, 16).reshape(3, 5))


def random_model(
    generator: np.random.Generator, channels: int, tables: SymbolTables = TABLES, axes: int = 0
) -> ContextModel:
    """A model of any weights; one whose first channels lead, of a space of so many axes."""
    weights, leading = generator.integers(-ONE, ONE, (channels, CONTEXTS)), None
    bounds = [BOUND // 4 + BOUND * index for index in range(tables.num_channels - 1)]
    if axes:
        first = int(generator.integers(1, min(channels, 8) + 1))
        leading = generator.integers(-ONE, ONE, (first, NUM_OWN + first * (1 + 2 * axes)))
        tables = SymbolTables(np.concatenate([tables.weights, tables.weights[::-1]]))
    return ContextModel(weights, bounds, tables, leading)


def pass_of(place: tuple[int, ...]) -> int:
    """In which pass a position is coded."""
    if sum(place) % 2:
        return 4
    if any(one % 2 for one in place):
        return 3
    if sum(one // 2 for one in place) % 2:
        return 2
    return 1 if any(one % 4 for one in place) else 0


def led(channel: int, place: tuple[int, ...], magnitude: int, model: ContextModel, at: Any) -> tuple[int, int, int]:
    """Table, expected value and sign of a symbol of a leading channel."""
    weights, own = model.leading[channel].astype(int).tolist(), model.weights[channel].astype(int).tolist()
    number, axes, value = pass_of(place), len(place), 0
    shifts = [
        (0,) * axes,
        *(tuple(step * (axis == one) for one in range(axes)) for axis in range(axes) for step in (-1, 1)),
    ]
    for before in range(channel):
        for which, shift in enumerate(shifts):
            share = weights[NUM_OWN + before * len(shifts) + which]
            value += share * at(before, tuple(one + other for one, other in zip(place, shift, strict=True)))
    width, moved = (2 if number in (1, 2) else 1), (2 if number in (1, 3) else 1)
    near = [
        at(channel, tuple(one + width * other for one, other in zip(place, shift, strict=True)))
        for shift in itertools.product((-1, 0, 1), repeat=axes)
        if sum(map(abs, shift)) == moved
        and number
        and pass_of(tuple(one + width * other for one, other in zip(place, shift, strict=True))) < number
    ]
    constant, weight, share = [0, 0, 0] if number == 0 else own[9:] if number == 4 else weights[3 * number - 2 :][:3]
    value += share * sum(near)
    whole = (value + ONE // 2) // ONE
    magnitude += constant + weight * sum(map(abs, near)) + weights[0] * min(abs(value), 2**24) // ONE
    off = value - whole * ONE
    table = sum(int(bound) <= magnitude // (ONE // BOUND) for bound in model.bounds)
    return table + (len(model.bounds) + 1) * (8 * abs(off) > magnitude), whole, -1 if off < 0 else 1


def reference(values: np.ndarray, model: ContextModel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table, expected value and sign of every symbol, one by one."""
    channels, batch, *space = values.shape
    tables, expected, signs = np.zeros(values.shape, int), np.zeros(values.shape, int), np.ones(values.shape, int)
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
            if channel < len(model.leading):
                here = (channel, sample, *place)
                known = functools.partial(lambda sample, before, near: at(before, sample, near), sample)
                tables[here], expected[here], signs[here] = led(channel, place, magnitude, model, known)
                continue
            if sum(place) % 2:
                beside = [
                    at(channel, sample, (*place[:axis], place[axis] + step, *place[axis + 1 :]))
                    for axis in range(len(space))
                    for step in (-1, 1)
                ]
                magnitude += weights[channel][-3] + weights[channel][-2] * sum(map(abs, beside))
                expected[(channel, sample, *place)] = (weights[channel][-1] * sum(beside) + ONE // 2) // ONE
            tables[(channel, sample, *place)] = sum(bound <= magnitude // (ONE // BOUND) for bound in bounds)
    return tables, expected, signs


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 2),
    st.sampled_from([(), (1,), (5,), (2, 3), (1, 4), (5, 6), (3, 2, 5)]),
    st.booleans(),
)
def test_it_expects_what_its_words_say(
    seed: int, channels: int, batch: int, space: tuple[int, ...], leads: bool
) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(-2, 3, (channels, batch, *space))
    model = random_model(generator, channels, axes=len(space) * leads)
    tables, expected, signs = reference(values, model)
    found = model.expected(values + 2, zero=2)
    # Positions pass by pass, of each position all samples.
    order = sorted(np.ndindex(batch, *space), key=lambda at: (pass_of(at[1:]), at[1:], at[0]))
    coded = ((values - expected) * signs + 2) % 5
    assert found.tables.tolist() == [[int(tables[(channel, *at)]) for at in order] for channel in range(channels)]
    assert found.coded.tolist() == [[int(coded[(channel, *at)]) for at in order] for channel in range(channels)]


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
    assert model.expected(values, zero=0).tables[-1, 4] == 1
    grid = Grid((1, 3, 3))
    sums = Sums(grid)
    sums.add(grid.spread(values[:start]))
    assert int(model.from_before(sums.features(start), slice(63, 64))[0, grid.earlier[4]]) == magnitude


@pytest.mark.parametrize("channels", [1, 8, 9, 71, 512])
def test_groups_are_all_channels_in_order(channels: int) -> None:
    found = groups(channels)
    assert [place for start, end in found for place in range(start, end)] == list(range(channels))
    assert all(end - start <= max(1, start // 4) for start, end in found)


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
        (WEIGHTS - 2**24 - 1, [1, 2], "weights of a context model reach from -16777217"),
        (WEIGHTS, [1, 2**18 + 1], "bounds of a context model reach from 1 to 262145, beyond 262144"),
        (WEIGHTS, [0, 1], "must rise from above zero"),
    ],
)
def test_it_refuses_parts_that_do_not_fit(weights: Any, bounds: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        ContextModel(weights, bounds, TABLES)


def test_an_index_of_a_table_is_a_byte() -> None:
    model = ContextModel(WEIGHTS, np.arange(1, 256), SymbolTables(np.broadcast_to(TABLES.weights[:1], (256, 5))))
    assert model.tables_of(np.array([2.0**62])).tolist() == [255]
    with pytest.raises(ArtifactError, match="256 bounds do not go with 257 tables; expected 257, at most 256"):
        ContextModel(WEIGHTS, np.arange(1, 257), SymbolTables(np.broadcast_to(TABLES.weights[:1], (257, 5))))


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
    assert copy.deepcopy(model) == model
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
