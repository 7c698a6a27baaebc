"""From coarse to fine: in which of five passes the positions of a channel are coded, and their neighbors before.

The passes are the fields of a checkerboard, on every position, on every second and on every fourth of each axis. Knows
no values.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NUM_PASSES", "Passes", "passes_of"]

NUM_PASSES = 5
"""0: all coordinates are multiples of four. 1 and 2: of two; of the halves, the sum is even, odd. 3 and 4: the sum of
the coordinates is even, odd."""

_WIDE, _DIAGONAL = (1, 2), (1, 3)  # passes whose neighbors are two steps away; along two axes at once


class Passes:
    """The positions of a space, pass by pass.

    Args:
        space: extent of each axis.

    Examples:
        >>> passes = Passes((3, 3))
        >>> passes.counts, passes.order.tolist()
        ([1, 1, 2, 1, 4], [0, 8, 2, 6, 4, 1, 3, 5, 7])
    """

    __slots__ = ("_neighbors", "counts", "order", "space")

    space: tuple[int, ...]
    counts: list[int]
    order: NDArray[np.intp]

    def __init__(self, space: tuple[int, ...]) -> None:
        self.space = space
        coordinates = np.indices(space).reshape(len(space), math.prod(space))
        halves = coordinates // 2
        of = np.where((halves % 2).any(0), 1, 0)
        of[halves.sum(0) % 2 == 1] = 2
        of[(coordinates % 2).any(0)] = 3
        of[coordinates.sum(0) % 2 == 1] = 4
        self.order = np.argsort(of, kind="stable")
        self.counts = np.bincount(of, minlength=NUM_PASSES).tolist()
        self._neighbors: NDArray[np.intp] | None = None

    @property
    def neighbors(self) -> NDArray[np.intp]:
        """The neighbors of each position, in the order of the passes, that lie in passes before its own.

        In passes 2 and 4 those along one axis, in 1 and 3 those along two at once; two steps away in 1 and 2. Where
        there is none, the number of positions stands.

        Shapes:
            ``(most neighbors, positions)``

        Examples:
            >>> Passes((3, 3)).neighbors.T[4:6].tolist()  # of the middle, and of the position right of the first
            [[0, 2, 6, 8], [9, 4, 0, 2]]
        """
        if self._neighbors is None:
            # Large spaces are kept for as long as this is: of them no more than is needed again.
            of = np.empty(len(self.order), np.uint8)
            of[self.order] = np.repeat(np.arange(NUM_PASSES, dtype=np.uint8), self.counts)
            pieces = np.split(self.order, np.cumsum(self.counts)[:-1])
            found = [self._before(number, places, of) for number, places in enumerate(pieces)]
            self._neighbors = np.concatenate(found, axis=1)
        return self._neighbors

    def _before(self, number: int, places: NDArray[np.intp], of: NDArray[np.uint8]) -> NDArray[np.intp]:
        """The neighbors of the positions of a pass, by the passes that all positions are in."""
        axes, none = len(self.space), len(self.order)
        units: list[NDArray[Any]] = list(np.eye(axes, dtype=np.intp) * (2 if number in _WIDE else 1))
        straight = [sign * unit for unit in units for sign in (-1, 1)]
        pairs = itertools.combinations(units, 2)
        crossed = [one * first + other * second for first, second in pairs for one in (-1, 1) for other in (-1, 1)]
        result = np.full((max(len(straight), len(crossed)), len(places)), none, np.intp)
        own = np.array(np.unravel_index(places, self.space)).reshape(axes, len(places))
        for column, shift in enumerate((crossed if number in _DIAGONAL else straight) if number else []):
            near = own + shift[:, None]
            inside = np.logical_and.reduce([(x >= 0) & (x < size) for x, size in zip(near, self.space, strict=True)])
            at = np.ravel_multi_index(tuple(near[:, inside]), self.space)
            result[column, inside] = np.where(of[at] < number, at, none)
        return result


@functools.lru_cache(maxsize=8)
def passes_of(space: tuple[int, ...]) -> Passes:
    """The passes of a space, which are found once.

    Args:
        space: extent of each axis.

    Returns:
        Its passes.
    """
    return Passes(space)
