"""How large a symbol is expected to be, from what is decoded already: the channels before it, and its neighbors.

Whole numbers alone, so that device and edge expect the same on every platform. Knows no bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compoff.checks import check_array
from compoff.coding.grid import Grid
from compoff.coding.leading import NUM_OWN, Values, check_leading, num_axes
from compoff.coding.passes import NUM_PASSES
from compoff.coding.sums import NUM_SUMS, REACHES, Sums, groups
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = [
    "BOUND",
    "CONTEXTS",
    "LARGEST",
    "ONE",
    "ContextModel",
    "Expected",
    "Led",
    "expected_value",
]

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
_SKEWED = 8  # times as far as the value is off a whole number, the magnitude is smaller
_LATER = NUM_SUMS
_AT_A_TIME = 1 << 15  # values that an encoder looks at; what it needs for more would not stay in the cache


class Led(NamedTuple):
    """What is expected of symbols of a leading channel.

    Args:
        tables: Index of the table of each.
        values: The value that each is expected to be, in steps.
        signs: Whether the symbol coded is what the value is above that, 1, or below it, -1.

    Shapes:
        All alike.
    """

    tables: NDArray[np.uint8]
    values: NDArray[np.int32]
    signs: NDArray[np.int32]


class Expected(NamedTuple):
    """What is expected of symbols, and what they are coded as.

    Args:
        tables: Index of the table of each.
        coded: How far each is above its expected value, modulo the number of symbols; or below (`Led.signs`).

        grid: Where the positions lie.

    Shapes:
        tables, coded: ``(channels, positions)``; positions in the order of the grid.
    """

    tables: NDArray[np.uint8]
    coded: NDArray[np.uint8]
    grid: Grid


class ContextModel:
    """What a quality's symbols are coded with, in place of one table a channel; immutable.

    Args:
        weights: for each channel that is sent, what its magnitudes are expected from (`CONTEXTS`), in units of
            ``1 / ONE``.
        bounds: expected magnitudes between which a table is used, rising, in units of ``1 / BOUND``.
        tables: one table for each range of magnitudes, of the difference from the expected value; where channels lead,
            as many again, for those of their symbols whose expected value lies well off a whole number.
        leading: for each channel that leads, what else it is expected from (`compoff.coding.leading`).

    Shapes:
        weights: ``(channels, CONTEXTS)``; bounds: ``(tables - 1,)``; tables: ``(tables, symbols)``; leading:
        ``(leading, NUM_OWN + leading * (1 + 2 * axes))``, no rows where none leads.

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

    __slots__ = ("_table_at", "bounds", "leading", "tables", "weights")

    weights: NDArray[np.float64]
    bounds: NDArray[np.int64]
    tables: SymbolTables
    leading: NDArray[np.float64]

    def __init__(
        self, weights: ArrayLike, bounds: ArrayLike, tables: SymbolTables, leading: ArrayLike | None = None
    ) -> None:
        # As floating-point numbers, which many are multiplied of at a time.
        self.weights = _whole("weights", weights, 2, LARGEST).astype(np.float64)
        self.bounds = _whole("bounds", bounds, 1, _LARGEST_BOUND)
        first = _whole("weights of leading channels", np.zeros((0, 0)) if leading is None else leading, 2, LARGEST)
        check_leading(first, len(self.weights))
        self.leading = (first if len(first) else np.zeros((0, 0))).astype(np.float64)
        for array in (self.weights, self.bounds, self.leading):
            array.setflags(write=False)
        self.tables = tables
        if self.weights.shape[1] != CONTEXTS or not len(self.weights):
            raise ArtifactError(
                f"weights of shape {self.weights.shape} cannot be used: expected (channels, {CONTEXTS})"
            )
        wanted = (len(self.bounds) + 1) * (2 if len(first) else 1)
        if wanted != tables.num_channels or wanted > 256:
            raise ArtifactError(
                f"{len(self.bounds)} bounds do not go with {tables.num_channels} tables; expected {wanted}, at most 256"
            )
        if (np.diff(self.bounds, prepend=0) <= 0).any():
            raise ArtifactError("the bounds of a context model must rise from above zero")
        self._table_at: NDArray[np.uint8] | None = None  # made when it is used: it is large where bounds are

    def __reduce__(self) -> tuple[type[ContextModel], tuple[NDArray[np.int64] | SymbolTables, ...]]:
        leading = self.leading.astype(np.int64)
        return (ContextModel, (self.weights.astype(np.int64), self.bounds, self.tables, leading))

    @property
    def num_channels(self) -> int:
        """How many channels it is for."""
        return len(self.weights)

    @property
    def num_axes(self) -> int:
        """Axes of the space that its leading channels are for; meaningless where none leads."""
        return num_axes(self.leading)

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
            seen: ``(NUM_SUMS, places)``; result: ``(channels, places)``.
        """
        # Whole numbers of less than 53 bits: exact in any order, so a library may sum them up as it likes.
        return self.weights[channels, : len(seen)] @ seen

    def from_beside(
        self, rows: NDArray[np.int32], grid: Grid, channels: slice
    ) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """What the earlier half of some channels tells of their later half.

        Args:
            rows: their values, as the grid lays them out; those of the later half count for nothing.
            grid: where the positions lie.
            channels: which channels they are.

        Returns:
            Magnitudes to add, whole numbers in units of ``1 / ONE``, and expected values, in steps.

        Shapes:
            rows: ``(channels, grid.size)``; results: ``(channels, positions of the later half)``.
        """
        near = grid.beside(np.concatenate([np.abs(rows), rows])).take(grid.later, axis=1)
        constant, weight, share = np.transpose(self.weights[channels, _LATER:])[:, :, None]
        return constant + weight * near[: len(rows)], expected_value(share, near[len(rows) :])

    def parted(self, num_channels: int) -> tuple[int, list[tuple[int, int]]]:
        """How many of the first channels lead, and the groups of the others.

        Args:
            num_channels: how many channels there are.

        Returns:
            The number; start and end of each group.
        """
        first = min(len(self.leading), num_channels)
        return first, groups(num_channels)[first:]

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
        found = Expected(np.empty(shape, np.uint8), np.empty(shape, np.uint8), grid)
        first, parts = self.parted(len(symbols))
        self._expect_leading(grid.spread(symbols[:first] - zero), zero, sums, found)
        for together in _parts(parts, grid.size):
            part = slice(together[0][0], together[-1][1])
            rows = grid.spread(symbols[part] - zero)
            magnitudes = np.empty((len(rows), shape[1]))
            sums.add(rows)
            for start, end in together:
                seen = self.from_before(sums.features(start), slice(start, end))
                magnitudes[start - part.start : end - part.start] = seen.take(grid.order, axis=1)
            more, expected = self.from_beside(rows, grid, part)
            magnitudes[:, grid.split :] += more
            off = rows.take(grid.order, axis=1) + zero
            off[:, grid.split :] = (off[:, grid.split :] - expected) % self.tables.num_symbols
            found.tables[part], found.coded[part] = self.tables_of(magnitudes), off
        return found

    def _expect_leading(self, rows: NDArray[np.int32], zero: int, sums: Sums, found: Expected) -> None:
        """What `expected` finds of the channels that lead."""
        if not len(rows):
            return
        grid = found.grid
        values, neighbors = Values(self.leading, grid), grid.neighbors
        counts = [len(grid.order[at]) for at in grid.spans]
        sums.add(rows)
        for channel, row in enumerate(rows):
            values.add(channel, row)
        step = max(1, _AT_A_TIME // max(grid.size, 1))
        for part in (slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step)):
            channels = range(part.start, part.stop)
            before = [self.from_before(sums.features(channel), slice(channel, channel + 1))[0] for channel in channels]
            seen, others = (np.take(one, grid.order, axis=1) for one in (before, values.expected(part)))
            own = np.repeat(self.own()[:, part], counts, axis=2)
            led = self.from_values(seen, others, rows[part].take(neighbors, axis=1), own)
            off = (rows[part].take(grid.order, axis=1) - led.values) * led.signs
            found.tables[part], found.coded[part] = led.tables, (off + zero) % self.tables.num_symbols

    def own(self) -> NDArray[np.float64]:
        """What counts in each pass of a leading channel: its neighbors, and how large its expected value is.

        Returns:
            Constant, weight of the neighbors' magnitudes and share of their values, none of it in the first pass; and
            weight of the expected value.

        Shapes:
            ``(4, leading, NUM_PASSES)``
        """
        result = np.zeros((4, len(self.leading), NUM_PASSES))
        result[:3, :, 1:-1] = np.moveaxis(self.leading[:, 1:NUM_OWN].reshape(-1, NUM_PASSES - 2, 3), 2, 0)
        result[:3, :, -1] = np.transpose(self.weights[: len(self.leading), _LATER:])
        result[3] = self.leading[:, :1]
        return result

    def from_values(
        self,
        magnitudes: NDArray[np.float64],
        values: NDArray[np.float64],
        near: NDArray[np.int32],
        own: NDArray[np.float64],
    ) -> Led:
        """What positions of leading channels are expected to be.

        Args:
            magnitudes: what `from_before` gives there.
            values: what other channels' values let expect there, in units of ``1 / ONE``.
            near: values of the neighbors in passes before.
            own: what counts there (`own`).

        Shapes:
            magnitudes, values: ``(..., positions)``; near: ``(..., neighbors, positions)``; own: as `own`.
        """
        constant, weight, share, sure = own
        values = values + share * near.sum(-2)
        whole = np.floor((values + ONE // 2) / ONE)
        off = values - whole * ONE
        magnitudes = magnitudes + constant + weight * np.abs(near).sum(-2)
        magnitudes += np.floor(sure * np.minimum(np.abs(values), LARGEST) / ONE)
        skewed = _SKEWED * np.abs(off) > magnitudes
        tables = self.tables_of(magnitudes) + skewed * np.uint8(len(self.bounds) + 1)
        return Led(tables, whole.astype(np.int32), np.where(off < 0, np.int32(-1), np.int32(1)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ContextModel)
            and np.array_equal(self.weights, other.weights)
            and np.array_equal(self.bounds, other.bounds)
            and self.tables == other.tables
            and np.array_equal(self.leading, other.leading)
        )

    def __hash__(self) -> int:
        return hash((self.weights.tobytes(), self.bounds.tobytes(), self.tables, self.leading.tobytes()))


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
