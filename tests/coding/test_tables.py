"""Frequency tables: exact sums, honest rounding, and what they refuse."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compoff.coding import SymbolTables
from compoff.coding.tables import PRECISION
from compoff.errors import ArtifactError, FeatureError

TOTAL = 2**24

shapes = st.tuples(st.integers(1, 4), st.integers(2, 40))
shares = shapes.flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.floats(0, 1e6, allow_subnormal=False)).filter(
        lambda rows: bool((rows.max(axis=1) > 1e-9).all())
    )
)


@settings(max_examples=150, deadline=None)
@given(shares)
def test_from_probabilities_is_the_nearest_sharing_out(probabilities: np.ndarray) -> None:
    tables = SymbolTables.from_probabilities(probabilities)
    free = TOTAL - probabilities.shape[1]
    for weights, row in zip(tables.weights.tolist(), probabilities.tolist(), strict=True):
        assert sum(weights) == TOTAL
        assert min(weights) >= 1
        total = sum(map(Fraction, row))
        for weight, value in zip(weights, row, strict=True):
            # 38-bit shares add at most (K + 1) / 2**14 to the one unit of the largest remainder
            assert abs(weight - 1 - free * Fraction(value) / total) < 1 + Fraction(len(row) + 1, 2**14)


def test_from_probabilities_does_not_depend_on_the_scale_of_a_row() -> None:
    rows = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    assert SymbolTables.from_probabilities(rows) == SymbolTables.from_probabilities(rows * 2.0**-40)


def test_from_probabilities_golden() -> None:
    softmax_like = [[0.6439142598879722, 0.23688281808991013, 0.08714431874203256, 0.03205860328008499]]
    assert SymbolTables.from_probabilities(softmax_like).weights.tolist() == [[10803087, 3974234, 1462040, 537855]]
    thirds = [[1 / 3, 1 / 3, 1 / 3]]
    assert SymbolTables.from_probabilities(thirds).weights.tolist() == [[5592406, 5592405, 5592405]]
    assert SymbolTables.from_probabilities([[1.0, 0.0, 0.0]]).weights.tolist() == [[TOTAL - 2, 1, 1]]


def test_from_probabilities_gives_ties_to_the_first() -> None:
    weights = SymbolTables.from_probabilities(np.ones((1, 7))).weights[0].tolist()
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == TOTAL


@pytest.mark.parametrize(
    "rows", [[[math.nan, 1.0]], [[math.inf, 1.0]], [[-0.1, 1.1]], [[0.0, 0.0]], [[1.0]], [1.0, 2.0], [[[0.5, 0.5]]]]
)
def test_from_probabilities_refuses(rows: object) -> None:
    with pytest.raises(ArtifactError):
        SymbolTables.from_probabilities(rows)


def test_from_counts_adds_the_smoothing_to_every_symbol() -> None:
    counts = np.array([[10, 0, 5], [0, 0, 0]])
    expected = SymbolTables.from_probabilities([[10.25, 0.25, 5.25], [1, 1, 1]])
    assert SymbolTables.from_counts(counts, smoothing=0.25) == expected


@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.nan])
def test_from_counts_refuses_a_smoothing_that_is_not_positive(smoothing: float) -> None:
    with pytest.raises(ArtifactError, match="smoothing"):
        SymbolTables.from_counts([[1, 2]], smoothing)


@pytest.mark.parametrize("counts", [[[-1, 2]], [[math.nan, 1.0]]])
def test_from_counts_refuses_counts_that_cannot_be(counts: list[list[float]]) -> None:
    with pytest.raises(ArtifactError):
        SymbolTables.from_counts(counts)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([[2**23, 2**23 - 1]], "channel 0 sum to 16777215"),
        ([[2**23, 2**23], [TOTAL - 1, 2]], "channel 1"),
        ([[0, TOTAL]], "between 1 and"),
        ([[-1, TOTAL + 1]], "between 1 and"),
        (np.array([[2**64 - 1, 2**24 + 1]], np.uint64), "between 1 and"),
        ([[2**62] * 4 + [TOTAL]], "between 1 and"),  # whose sum is right again where 64 bits are left
        ([[TOTAL]], "2 to 256 symbols"),
        ([[1] * 256 + [TOTAL - 256]], "2 to 256 symbols"),
        ([], "shape"),
        (np.zeros((0, 4), np.int64), "at least 1 channel"),
        ([[0.5, 0.5]], "whole numbers"),
        ([2**23, 2**23], "shape"),
    ],
)
def test_weights_that_are_no_table_are_refused(weights: object, words: str) -> None:
    array = np.asarray(weights, dtype=None if not isinstance(weights, list) or weights else np.int64)
    with pytest.raises(ArtifactError, match=words):
        SymbolTables(array)


def test_weights_are_a_copy_and_read_only() -> None:
    given_weights = np.array([[2**23, 2**23]], dtype=np.uint32)
    tables = SymbolTables(given_weights)
    given_weights[0, 0] = 7
    assert tables.weights.dtype == np.uint32
    assert tables.weights.tolist() == [[2**23, 2**23]]
    with pytest.raises(ValueError, match="read-only"):
        tables.weights[0, 0] = 1


def test_cross_entropy_against_the_definition() -> None:
    generator = np.random.default_rng(5)
    tables = SymbolTables.from_probabilities(generator.dirichlet(np.ones(9), 3))
    symbols = generator.integers(0, 9, (2, 31))
    expected = sum(
        -math.log2(int(tables.weights[channel, symbol]) / TOTAL)
        for channel, row in enumerate(symbols)
        for symbol in row
    )
    assert tables.cross_entropy(symbols) == pytest.approx(expected, rel=1e-12)
    assert tables.cross_entropy(np.zeros((3, 0), np.int64)) == 0.0
    assert PRECISION == 24


@pytest.mark.parametrize(
    ("symbols", "words"),
    [
        (np.zeros((1, 3)), "whole numbers"),
        (np.zeros((1, 3), bool), "whole numbers"),
        (np.zeros(3, np.int32), "shape"),
        (np.zeros((3, 3), np.int32), "1 to 2 channels"),
        (np.zeros((0, 3), np.int32), "1 to 2 channels"),
        (np.array([[0, 4]]), "0 to 3"),
        (np.array([[0, -1]]), "0 to 3"),
        (np.array([[2**63]], np.uint64), "0 to 3"),
        (np.array([[2**32]], np.int64), "0 to 3"),
    ],
)
def test_symbols_that_do_not_fit_are_refused(symbols: np.ndarray, words: str) -> None:
    tables = SymbolTables(np.full((2, 4), 2**22))
    with pytest.raises(FeatureError, match=words):
        tables.checked(symbols)


def test_what_becomes_no_array_is_named() -> None:
    ragged: Any = [[1, 2], [3]]
    for make, name in [
        (SymbolTables, "weights"),
        (SymbolTables.from_counts, "counts"),
        (SymbolTables.from_probabilities, "probabilities"),
    ]:
        with pytest.raises(ArtifactError, match=f"{name} cannot become an array: setting an array element"):
            make(ragged)
    with pytest.raises(ArtifactError, match="counts cannot become an array: could not convert"):
        SymbolTables.from_counts("many")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="smoothing is 'a'; expected a number"):
        SymbolTables.from_counts([[1, 2]], "a")  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match="symbols cannot become an array: setting an array element"):
        SymbolTables([[2**23, 2**23]]).cross_entropy(ragged)


def test_checked_gives_contiguous_int32() -> None:
    tables = SymbolTables(np.full((2, 4), 2**22))
    checked = tables.checked(np.array([[0, 3], [1, 2], [2, 0]], np.uint8).T)
    assert checked.dtype == np.int32
    assert checked.flags.c_contiguous
    assert checked.tolist() == [[0, 1, 2], [3, 2, 0]]


def test_copies_are_equal_and_drop_what_was_derived() -> None:
    tables = SymbolTables.from_probabilities([[0.1, 0.9], [0.5, 0.5]])
    tables.derived("unpicklable", lambda _: lambda: None)
    for twin in (pickle.loads(pickle.dumps(tables)), copy.deepcopy(tables), copy.copy(tables)):
        assert twin == tables
        assert hash(twin) == hash(tables)
        assert twin.derived("unpicklable", lambda _: "built again") == "built again"
    assert tables != SymbolTables.from_probabilities([[0.1, 0.9], [0.5, 0.4]])
    assert tables != "tables"
    assert repr(tables) == "SymbolTables(num_channels=2, num_symbols=2)"


def test_derived_builds_once() -> None:
    calls: list[int] = []
    tables = SymbolTables([[2**23, 2**23]])
    for _ in range(3):
        assert tables.derived("key", lambda tables: calls.append(1) or tables.num_symbols) == 2
    assert calls == [1]
