"""The positions of a latent in one row, zeros between and after, so that neighbors lie at fixed distances.

A latent without space has no neighbors. Knows no symbols.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from compoff.coding.passes import passes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Grid"]


class Grid:
    """Where the positions of all samples of a channel lie in a row, and their neighbors.

    Each axis of the space is longer by one, which is zero: what lies before the first position of a line is the zero
    behind the line before.

    Args:
        shape: shape of a channel: ``(batch, *space)``.

    Examples:
        >>> grid = Grid((1, 2, 2))
        >>> row = grid.spread(np.array([[[[1, 2], [4, 8]]]]))
        >>> row.tolist()
        [[1, 2, 0, 4, 8, 0, 0, 0, 0]]
        >>> grid.earlier.tolist(), grid.later.tolist()
        ([0, 4], [1, 3])
        >>> grid.beside(row)[0, grid.order].tolist(), grid.around(row)[0, grid.order].tolist()
        ([6, 6, 9, 9], [14, 7, 13, 11])
    """

    __slots__ = ("_inside", "_padded", "_passes", "_places", "_starts", "_steps", "later", "order", "size", "spans")

    size: int
    order: NDArray[np.intp]
    spans: list[slice]
    later: NDArray[np.intp]

    def __init__(self, shape: tuple[int, ...]) -> None:
        batch, *space = shape
        self._padded = (batch, *(extent + 1 for extent in space))
        self._inside = (slice(None), slice(None), *(slice(extent) for extent in space))
        self._steps = [math.prod(self._padded[axis + 1 :]) for axis in range(1, len(self._padded))]
        self.size, self._passes = math.prod(self._padded), passes_of(tuple(space))
        cells = math.prod(self._padded[1:])
        self._starts: NDArray[np.intp] = np.arange(batch) * cells  # of the samples
        self._places = np.arange(cells).reshape(1, 1, *self._padded[1:])[self._inside].reshape(-1)
        self.order = (self._places[self._passes.order, None] + self._starts).reshape(-1)
        ends = itertools.accumulate(count * batch for count in self._passes.counts)
        self.spans = [slice(start, end) for start, end in itertools.pairwise([0, *ends])]
        self.later = self.order[self.split :]

    @property
    def split(self) -> int:
        """How many positions the earlier half has: those of all passes but the last."""
        return self.spans[-1].start

    @property
    def earlier(self) -> NDArray[np.intp]:
        """Where the positions of the earlier half lie, pass by pass; of each position all samples."""
        return self.order[: self.split]

    @property
    def neighbors(self) -> NDArray[np.intp]:
        """Where the neighbors of each position lie that are in passes before its own; a zero where there is none.

        Shapes:
            ``(most neighbors, positions)``, in order.
        """
        zero = math.prod(self._padded[1:]) - 1  # behind the last line
        near = np.append(self._places, zero)[self._passes.neighbors]
        return (near[:, :, None] + self._starts).reshape(len(near), len(self.order))

    def spread(self, values: NDArray[np.integer]) -> NDArray[np.int32]:
        """Lay out values in rows.

        Args:
            values: the values of some channels.

        Shapes:
            values: ``(channels, batch, *space)``; result: ``(channels, size)``.
        """
        rows = np.zeros((len(values), self.size), np.int32)
        rows.reshape(len(rows), *self._padded)[self._inside] = values
        return rows

    def gathered(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Undo `spread`; a view.

        Shapes:
            rows: ``(channels, size)``; result: ``(channels, batch, *space)``.

        Examples:
            >>> grid, values = Grid((2, 3)), np.arange(12).reshape(2, 2, 3)
            >>> np.array_equal(grid.gathered(grid.spread(values)), values)
            True
        """
        return rows.reshape(len(rows), *self._padded)[self._inside]

    @property
    def num_axes(self) -> int:
        """Axes of the space."""
        return len(self._steps)

    def shifted(self, row: NDArray[np.int32]) -> NDArray[np.int32]:
        """A row as each position sees it at its own place and at its two neighbors along each axis.

        Args:
            row: as `spread` lays one out.

        Returns:
            The row, then for each axis what lies before and what lies after; between the positions, anything.

        Shapes:
            row: ``(size,)``; result: ``(1 + 2 * axes, size)``.

        Examples:
            >>> grid = Grid((1, 3))
            >>> grid.shifted(grid.spread(np.array([[[1, 2, 4]]]))[0])[:, grid.order].tolist()  # middle last
            [[1, 4, 2], [0, 2, 1], [2, 0, 4]]
        """
        result = np.zeros((1 + 2 * len(self._steps), self.size), np.int32)
        result[0] = row
        for place, step in enumerate(self._steps):
            result[1 + 2 * place, step:] = row[:-step]
            result[2 + 2 * place, :-step] = row[step:]
        return result

    def beside(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Sum up the two neighbors along each axis.

        Args:
            rows: as `spread` lays them out.

        Returns:
            The sums; between the positions, anything.

        Shapes:
            rows and result: ``(channels, size)``.
        """
        result = np.zeros_like(rows)
        for step in self._steps:
            _add_neighbors(result, rows, step)
        return result

    def around(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Sum up all neighbors, those at corners, too.

        Args:
            rows: as `spread` lays them out.

        Returns:
            The sums; between the positions, anything.

        Shapes:
            rows and result: ``(channels, size)``.
        """
        # Axis by axis from the last: what then stands behind its lines stays there, as the others add along their own.
        box = np.array(rows)
        for step in reversed(self._steps):
            _add_neighbors(box, np.array(box), step)
        return np.subtract(box, rows, out=box)


def _add_neighbors(result: NDArray[np.int32], rows: NDArray[np.int32], step: int) -> None:
    result[:, step:] += rows[:, :-step]
    result[:, :-step] += rows[:, step:]
