"""How large a symbol is expected to be, from what is decoded already: the channels before it, and its neighbors.

Whole numbers alone, so that device and edge expect the same on every platform. Knows no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compoff.checks import check_array
from compoff.coding.grid import Grid
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = [
    "BOUND",
    "CONTEXTS",
    "LARGEST",
    "ONE",
    "REACHES",
    "ContextModel",
    "Expected",
    "Sums",
    "expected_value",
    "groups",
]

REACHES: tuple[int | None, ...] = (1, 4, 16, None)
"""Of how many channels before its own magnitudes are summed up; None for all."""

CONTEXTS = 2 * len(REACHES) + 4
"""Weights of a channel: a constant; of the sums at its position, and around it; a constant of the later half, and of
the magnitudes beside it; of the values beside it, for the value itself. The last is no part of the magnitude."""

ONE = 1 << 16
"""A weight of one, and a magnitude of one step."""

BOUND = 1 << 10
"""A bound of one step."""

LARGEST = 1 << 24
"""What no weight exceeds, so that 53 bits hold any sum of them."""

_LARGEST_BOUND = 1 << 18
_GROUP = 8
_LATER = 1 + 2 * len(REACHES)
_FARTHEST = max(reach or 0 for reach in REACHES)
_AT_A_TIME = 1 << 15  # values that an encoder looks at; what it needs for more would not stay in the cache


class Expected(NamedTuple):
    """What is expected of symbols, and what they are coded as.

    Args:
        tables: Index of the table of each.
        coded: What each is off its expected value, modulo the number of symbols.

    Shapes:
        ``(channels, positions)``; the positions of the earlier half come first.
    """

    tables: NDArray[np.uint8]
    coded: NDArray[np.uint8]


class ContextModel:
    """What a quality's symbols are coded with, in place of one table a channel; immutable.

    Args:
        weights: for each channel that is sent, what its magnitudes are expected from (`CONTEXTS`), in units of
            ``1 / ONE``.
        bounds: expected magnitudes between which a table is used, rising, in units of ``1 / BOUND``.
        tables: one table for each range of magnitudes, of the difference from the expected value.

    Shapes:
        weights: ``(channels, CONTEXTS)``; bounds: ``(tables - 1,)``; tables: ``(tables, symbols)``.

    Raises:
        ArtifactError: the parts do not fit together.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> tables = SymbolTables.from_counts([[1, 9, 1], [1, 1, 1]])
        >>> model = ContextModel([[ONE // 4] + [0] * (CONTEXTS - 1)], bounds=[BOUND // 2], tables=tables)
        >>> model.num_channels, model.bounds.tolist()
        (1, [512])

    Source: this project; contexts of magnitudes as in EBCOT (Taubman, 2000) and in two passes as in He et al.,
    "Checkerboard Context Model" (CVPR 2021).
    """

    __slots__ = ("_table_at", "bounds", "tables", "weights")

    weights: NDArray[np.float64]
    bounds: NDArray[np.int64]
    tables: SymbolTables

    def __init__(self, weights: ArrayLike, bounds: ArrayLike, tables: SymbolTables) -> None:
        # As floating-point numbers, which many are multiplied of at a time.
        self.weights = _whole("weights", weights, 2, LARGEST).astype(np.float64)
        self.bounds = _whole("bounds", bounds, 1, _LARGEST_BOUND)
        self.weights.setflags(write=False)
        self.bounds.setflags(write=False)
        self.tables = tables
        if self.weights.shape[1] != CONTEXTS or not len(self.weights):
            raise ArtifactError(
                f"weights of shape {self.weights.shape} cannot be used: expected (channels, {CONTEXTS})"
            )
        if len(self.bounds) != tables.num_channels - 1 or tables.num_channels > 256:
            raise ArtifactError(f"{len(self.bounds)} bounds do not go with {tables.num_channels} tables, at most 256")
        if (np.diff(self.bounds, prepend=0) <= 0).any():
            raise ArtifactError("the bounds of a context model must rise from above zero")
        self._table_at: NDArray[np.uint8] | None = None  # made when it is used: it is large where bounds are

    def __reduce__(self) -> tuple[type[ContextModel], tuple[NDArray[np.int64], NDArray[np.int64], SymbolTables]]:
        return (ContextModel, (self.weights.astype(np.int64), self.bounds, self.tables))

    @property
    def num_channels(self) -> int:
        """How many channels it is for."""
        return len(self.weights)

    def tables_of(self, magnitudes: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Which table goes with expected magnitudes.

        Args:
            magnitudes: in units of ``1 / ONE``; what they have beyond a multiple of ``1 / BOUND`` is cut off.

        Returns:
            Indices, of the same shape.
        """
        last = int(self.bounds[-1]) if len(self.bounds) else 0
        table_at = self._table_at
        if table_at is None:
            table_at = np.searchsorted(self.bounds, np.arange(last + 1), side="right").astype(np.uint8)
            self._table_at = table_at
        return table_at.take((magnitudes * (BOUND / ONE)).clip(0, last).astype(np.intp))

    def from_before(self, seen: NDArray[np.float64], channels: slice) -> NDArray[np.float64]:
        """Expected magnitudes, as far as the channels before a group tell.

        Args:
            seen: what `Sums.features` gives.
            channels: the channels of the group.

        Returns:
            Magnitudes, whole numbers in units of ``1 / ONE``.

        Shapes:
            seen: ``(1 + 2 * len(REACHES), places)``; result: ``(channels, places)``.
        """
        # Whole numbers of less than 53 bits: exact in any order, so a library may sum them up as it likes.
        return self.weights[channels, : len(seen)] @ seen

    def from_beside(
        self, magnitudes: NDArray[np.int32], values: NDArray[np.int32], channels: slice
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """What the earlier half of some channels tells of their later half.

        Args:
            magnitudes: sums of the magnitudes beside the positions of the later half.
            values: sums of the values there.
            channels: which channels they are.

        Returns:
            Magnitudes to add, whole numbers in units of ``1 / ONE``, and expected values, in steps.

        Shapes:
            all: ``(channels, positions of the later half)``.
        """
        constant, weight, share = np.transpose(self.weights[channels, _LATER:])[:, :, None]
        return constant + weight * magnitudes, expected_value(share, values)

    def expected(self, symbols: NDArray[np.int32], zero: int) -> Expected:
        """What is expected of all symbols; what an encoder sees at once.

        Args:
            symbols: whole numbers below the number of symbols of the tables.
            zero: the symbol that stands for zero.

        Returns:
            Tables, and what is coded, as a decoder expects them who knows what comes before each.

        Shapes:
            symbols: ``(channels, batch, *space)``, at most ``num_channels`` channels.

        Examples:
            >>> from compoff.coding import SymbolTables
            >>> tables = SymbolTables.from_counts([[1, 9, 1], [1, 1, 1]])
            >>> nothing, channel_before = [0] * CONTEXTS, [0, ONE] + [0] * (CONTEXTS - 2)
            >>> model = ContextModel([nothing, channel_before], bounds=[BOUND // 2], tables=tables)
            >>> symbols = np.array([[[1, 2]], [[2, 2]]])
            >>> model.expected(symbols, zero=1).tables.tolist()  # a large one follows a large one
            [[0, 0], [0, 1]]
        """
        grid = Grid(symbols.shape[1:])
        sums, shape = Sums(grid), (len(symbols), len(grid.order))
        tables, coded = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        for together in _parts(groups(len(symbols)), grid.size):
            part = slice(together[0][0], together[-1][1])
            rows = grid.spread(symbols[part] - zero)
            magnitudes = np.empty((len(rows), shape[1]))
            sums.add(rows)
            for start, end in together:
                seen = self.from_before(sums.features(start), slice(start, end))
                magnitudes[start - part.start : end - part.start] = seen.take(grid.order, axis=1)
            near = grid.beside(np.concatenate([np.abs(rows), rows])).take(grid.later, axis=1)
            more, expected = self.from_beside(near[: len(rows)], near[len(rows) :], part)
            magnitudes[:, grid.split :] += more
            off = rows.take(grid.order, axis=1) + zero
            off[:, grid.split :] = (off[:, grid.split :] - expected) % self.tables.num_symbols
            tables[part], coded[part] = self.tables_of(magnitudes), off
        return Expected(tables, coded)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ContextModel)
            and np.array_equal(self.weights, other.weights)
            and np.array_equal(self.bounds, other.bounds)
            and self.tables == other.tables
        )

    def __hash__(self) -> int:
        return hash((self.weights.tobytes(), self.bounds.tobytes(), self.tables))


def groups(num_channels: int) -> list[tuple[int, int]]:
    """Channels that are coded together, and do not see each other: an eighth of what came before them.

    Args:
        num_channels: how many channels there are.

    Returns:
        Start and end of each group.

    Examples:
        >>> groups(20)[:3], groups(20)[-3:]
        ([(0, 1), (1, 2), (2, 3)], [(15, 16), (16, 18), (18, 20)])
    """
    result: list[tuple[int, int]] = []
    start = 0
    while start < num_channels:
        end = min(num_channels, start + max(1, start // _GROUP))
        result.append((start, end))
        start = end
    return result


class Sums:
    """Magnitudes of the channels before each channel, summed up: at each position, and around it.

    Args:
        grid: where the positions lie.

    Examples:
        >>> grid = Grid((1, 2))
        >>> sums = Sums(grid)
        >>> sums.add(grid.spread(np.array([[[1, -2]], [[3, 2]]])))
        >>> sums.features(2)[:, grid.order].astype(int).tolist()  # of the last 1, 4, 16, of all; then around it
        [[1, 1], [3, 2], [4, 4], [4, 4], [4, 4], [2, 3], [4, 4], [4, 4], [4, 4]]
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        # Of the first so many channels, from a first number on; at each position, and around it.
        self._totals: list[NDArray[np.int32]] = [np.zeros((2, grid.size), np.int32)]
        self._first = 0
        self._features = np.ones((_LATER, grid.size))

    def add(self, rows: NDArray[np.int32]) -> None:
        """Take in the next channels; only those and what reaches back from the first of them are kept.

        Args:
            rows: the values of their symbols, as the grid lays them out.

        Shapes:
            rows: ``(channels, grid.size)``.
        """
        kept = self._totals[-1 - _FARTHEST :]
        self._first += len(self._totals) - len(kept)
        totals = np.empty((len(rows), 2, self._grid.size), np.int32)
        last: NDArray[np.int32] = kept[-1][0]
        for sizes, total in zip(np.abs(rows), totals[:, 0], strict=True):
            last = np.add(last, sizes, out=total)
        totals[:, 1] = self._grid.around(totals[:, 0])
        self._totals = [*kept, *totals]

    def features(self, start: int) -> NDArray[np.float64]:
        """What a group of channels is expected from.

        Args:
            start: first channel of the group; one of those taken in last, or the next.

        Returns:
            One; of each of `REACHES` the magnitudes at the position, and around it. The next call overwrites it.

        Shapes:
            result: ``(1 + 2 * len(REACHES), grid.size)``.
        """
        totals = self._totals[start - self._first]
        for place, reach in enumerate(REACHES, 1):
            before = 0 if reach is None else max(start - reach, 0)
            seen: NDArray[np.int32] = totals - self._totals[before - self._first] if before else totals
            self._features[place :: len(REACHES)] = seen
        return self._features


def _parts(parts: list[tuple[int, int]], places: int) -> list[list[tuple[int, int]]]:
    """Groups, as many as are looked at at a time."""
    result: list[list[tuple[int, int]]] = []
    for start, end in parts:
        if result and (end - result[-1][0][0]) * places <= _AT_A_TIME:
            result[-1].append((start, end))
        else:
            result.append([(start, end)])
    return result


def expected_value(share: NDArray[np.float64], beside: NDArray[np.int32]) -> NDArray[np.int32]:
    """The values that the neighbors let expect.

    Args:
        share: share of the sum beside, in units of ``1 / ONE``; broadcast over `beside`.
        beside: sums of the values beside each.

    Shapes:
        beside and result: any, the same.

    Examples:
        >>> expected_value(np.array(ONE / 2), np.array([3, 7, -7], np.int32)).tolist()
        [2, 4, -3]
    """
    # Division by a power of two is exact, too.
    return np.floor((share * beside + ONE // 2) / ONE).astype(np.int32)


def _whole(name: str, given: ArrayLike, ndim: int, most: int) -> NDArray[np.int64]:
    """Whole numbers that sum up exactly."""
    numbers = check_array(name, given, ArtifactError)
    if (numbers.size and numbers.dtype.kind not in "iu") or numbers.ndim != ndim:
        raise ArtifactError(
            f"{name} of a context model are {numbers.dtype} of shape {numbers.shape}; expected whole numbers"
        )
    if numbers.size and not -most <= int(numbers.min()) <= int(numbers.max()) <= most:
        raise ArtifactError(f"{name} of a context model reach from {numbers.min()} to {numbers.max()}, beyond {most}")
    return numbers.astype(np.int64)
