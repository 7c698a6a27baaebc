"""Magnitudes of the channels before each channel, summed up, and which channels see which. Knows no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.coding.grid import Grid

__all__ = ["NUM_SUMS", "REACHES", "Sums", "groups"]

REACHES: tuple[int | None, ...] = (1, 4, 16, None)
"""Of how many channels before its own magnitudes are summed up; None for all."""

NUM_SUMS = 1 + 2 * len(REACHES)
"""What a channel is expected from: one, sums at its position, and around it."""

_FARTHEST = max(reach or 0 for reach in REACHES)
_GROUP = 4


def groups(num_channels: int) -> list[tuple[int, int]]:
    """Channels that are coded together, and do not see each other: a quarter of what came before them.

    Args:
        num_channels: how many channels there are.

    Returns:
        Start and end of each group.

    Examples:
        >>> groups(20)[:3], groups(20)[-3:]
        ([(0, 1), (1, 2), (2, 3)], [(12, 15), (15, 18), (18, 20)])
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
        >>> from compoff.coding.grid import Grid
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
        self._features = np.ones((NUM_SUMS, grid.size))

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
