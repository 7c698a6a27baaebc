"""How large a symbol is expected to be, from what is decoded already: the channels before it, and its neighbors.

Whole numbers alone, so that device and edge expect the same on every platform. A latent that lies on no grid has no
neighbors. Half of the positions of a channel, those of odd coordinates in sum, come after the other half and see it.
Knows no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compoff.checks import check_array
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
    "around",
    "beside",
    "expected_beside",
    "groups",
    "later",
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


class Expected(NamedTuple):
    """What is expected of symbols.

    Args:
        tables: Index of the table of each.
        values: The value that each is coded relative to, in steps.

    Shapes:
        Both like the symbols.
    """

    tables: NDArray[np.uint8]
    values: NDArray[np.int32]


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
        return table_at[(np.clip(magnitudes, 0, last * (ONE // BOUND)) * (BOUND / ONE)).astype(np.int32)]

    def from_before(self, seen: NDArray[np.float64], channels: slice) -> NDArray[np.float64]:
        """Expected magnitudes, as far as the channels before a group tell.

        Args:
            seen: what `Sums.features` gives.
            channels: the channels of the group.

        Returns:
            Magnitudes, whole numbers in units of ``1 / ONE``.

        Shapes:
            seen: ``(1 + 2 * len(REACHES), batch, *space)``; result: ``(channels, batch, *space)``.
        """
        # Whole numbers of less than 53 bits: exact in any order, so a library may sum them up as it likes.
        flat = self.weights[channels, : len(seen)] @ seen.reshape(len(seen), -1)
        return flat.reshape(-1, *seen.shape[1:])

    def from_beside(self, values: NDArray[np.int32], channels: slice) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """What the earlier half of some channels tells of their later half.

        Args:
            values: the values of the symbols; those of the later half are not looked at from there.
            channels: which channels they are.

        Returns:
            Magnitudes to add, whole numbers in units of ``1 / ONE``, and expected values, in steps.

        Shapes:
            values and results: ``(channels, batch, *space)``.
        """
        columns = np.transpose(self.weights[channels, _LATER:])
        constant, magnitude, value = columns.reshape(3, -1, *(1,) * (values.ndim - 1))
        return constant + magnitude * beside(np.abs(values)), expected_beside(value, values)

    def expected(self, values: NDArray[np.int32]) -> Expected:
        """What is expected of all symbols; what an encoder sees at once.

        Args:
            values: the values of the symbols, zero for the middle one.

        Returns:
            Tables and values, as a decoder expects them who knows what comes before each.

        Shapes:
            values: ``(channels, batch, *space)``, at most ``num_channels`` channels.

        Examples:
            >>> from compoff.coding import SymbolTables
            >>> tables = SymbolTables.from_counts([[1, 9, 1], [1, 1, 1]])
            >>> nothing, channel_before = [0] * CONTEXTS, [0, ONE] + [0] * (CONTEXTS - 2)
            >>> model = ContextModel([nothing, channel_before], bounds=[BOUND // 2], tables=tables)
            >>> model.expected(np.array([[[0, 1]], [[1, 1]]])).tables.tolist()  # a large one follows a large one
            [[[0, 0]], [[0, 1]]]
        """
        sums, odd = Sums(values.shape), later(values.shape[2:])
        sums.add(0, values)
        magnitudes, expected = self.from_beside(values, slice(len(values)))
        magnitudes *= odd
        for start, end in groups(len(values)):
            magnitudes[start:end] += self.from_before(sums.features(start), slice(start, end))
        return Expected(self.tables_of(magnitudes), expected * odd)

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
        shape: shape of the values: ``(channels, batch, *space)``.

    Examples:
        >>> sums = Sums((3, 1, 2))
        >>> sums.add(0, np.array([[[1, -2]], [[3, 2]]], np.int32))
        >>> sums.features(2)[:, 0].astype(int).tolist()  # of the last 1, 4, 16, of all; then around it
        [[1, 1], [3, 2], [4, 4], [4, 4], [4, 4], [2, 3], [4, 4], [4, 4], [4, 4]]
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._totals = np.zeros((2, shape[0] + 1, *shape[1:]), np.int32)

    def add(self, start: int, values: NDArray[np.int32]) -> None:
        """Take in channels, all before which have been.

        Args:
            start: the first of them.
            values: the values of their symbols.

        Shapes:
            values: ``(channels, batch, *space)``.
        """
        after = slice(start + 1, start + 1 + len(values))
        totals, rings = self._totals[0, after], self._totals[1, after]
        np.cumsum(np.abs(values), axis=0, out=totals)
        totals += self._totals[0, start]
        rings[:] = around(totals)

    def features(self, start: int) -> NDArray[np.float64]:
        """What a group of channels is expected from.

        Args:
            start: first channel of the group.

        Returns:
            One; of each of `REACHES` the magnitudes at the position, and around it.

        Shapes:
            result: ``(1 + 2 * len(REACHES), batch, *space)``.
        """
        result = np.empty((_LATER, *self._totals.shape[2:]))
        result[0] = 1
        for place, reach in enumerate(REACHES, 1):
            before = 0 if reach is None else max(start - reach, 0)
            result[place :: len(REACHES)] = self._totals[:, start] - self._totals[:, before]
        return result


def beside(values: NDArray[Any]) -> NDArray[Any]:
    """Sum up the neighbors along each axis of the space; zeros lie outside.

    Args:
        values: any values.

    Shapes:
        values and result: ``(channels, batch, *space)``.

    Examples:
        >>> beside(np.array([[[1, 2, 4]]])).tolist()
        [[[2, 5, 2]]]
    """
    result = np.zeros_like(values)
    for axis in range(2, values.ndim):
        _add_shifted(result, values, axis)
    return result


def expected_beside(weights: NDArray[np.float64], values: NDArray[np.int32]) -> NDArray[np.int32]:
    """The values that the neighbors of each let expect.

    Args:
        weights: share of the sum beside, in units of ``1 / ONE``; broadcast over `values`.
        values: the values of the symbols.

    Shapes:
        values and result: ``(channels, batch, *space)``.

    Examples:
        >>> expected_beside(np.array(ONE / 2), np.array([[[3, 0, 4]]], np.int32)).tolist()
        [[[0, 4, 0]]]
    """
    # Division by a power of two is exact, too.
    return np.floor((weights * beside(values) + ONE // 2) / ONE).astype(np.int32)


def around(values: NDArray[Any]) -> NDArray[Any]:
    """Sum up all neighbors, those at corners, too; zeros lie outside.

    Args:
        values: any values.

    Shapes:
        values and result: ``(channels, batch, *space)``.

    Examples:
        >>> around(np.array([[[[1, 2], [4, 8]]]])).tolist()
        [[[[14, 13], [11, 7]]]]
    """
    box = np.array(values)
    for axis in range(2, values.ndim):
        _add_shifted(box, np.array(box), axis)
    return box - values


def later(space: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which positions come after the others: those of odd coordinates in sum.

    Args:
        space: extent of each axis.

    Shapes:
        result: `space`.

    Examples:
        >>> later((2, 3)).tolist()
        [[False, True, False], [True, False, True]]
    """
    return np.indices(space).sum(0) % 2 == 1


def _add_shifted(result: NDArray[Any], values: NDArray[Any], axis: int) -> None:
    before = (slice(None),) * axis
    result[(*before, slice(1, None))] += values[(*before, slice(None, -1))]
    result[(*before, slice(None, -1))] += values[(*before, slice(1, None))]


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
