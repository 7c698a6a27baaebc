"""What the values of the first channels are expected to be, from those of the channels before and from their neighbors.

The first channels of a picture are its brightness and its slopes, which say much about each other. Whole numbers alone.
Knows no tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.coding.passes import NUM_PASSES
from compoff.errors import ArtifactError, FeatureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.coding.grid import Grid

__all__ = ["MOST_LEADING", "NUM_OWN", "Values", "check_leading", "num_axes"]

MOST_LEADING = 8
"""How many channels are taken one by one, at least (`sums.groups`)."""

NUM_OWN = 1 + 3 * (NUM_PASSES - 2)
"""Weights of a leading channel before those of other channels' values: of how large its expected value is, and for each
of the passes 1 to 3 a constant, a weight of the magnitudes and a share of the values of its neighbors."""


def check_leading(weights: NDArray[np.int64], num_channels: int) -> None:
    """Raise where weights are not those of leading channels.

    Args:
        weights: the weights.
        num_channels: how many channels the model has.

    Raises:
        ArtifactError: they are too many, or not as many a channel as there must be.

    Shapes:
        weights: ``(leading, NUM_OWN + leading * (1 + 2 * axes))``; no rows where no channel leads.
    """
    leading, columns = weights.shape
    places, rest = divmod(columns - NUM_OWN, max(leading, 1))
    if leading and (leading > min(MOST_LEADING, num_channels) or rest or places < 3 or places % 2 == 0):
        raise ArtifactError(
            f"weights of leading channels of shape {weights.shape} cannot be used; expected at most "
            f"{min(MOST_LEADING, num_channels)} channels, and for each {NUM_OWN} and those of all their places"
        )


def num_axes(weights: NDArray[np.float64]) -> int:
    """Axes of the space that weights of leading channels are for.

    Args:
        weights: the weights.

    Examples:
        >>> num_axes(np.zeros((2, NUM_OWN + 2 * 5)))
        2
    """
    return ((weights.shape[1] - NUM_OWN) // max(len(weights), 1) - 1) // 2


class Values:
    """The values of the leading channels so far, and what they let expect of the next.

    Args:
        weights: of the leading channels, as a context model has them.
        grid: where the positions lie.

    Raises:
        FeatureError: the weights are for another number of axes.

    Examples:
        >>> from compoff.coding.grid import Grid
        >>> grid, weights = Grid((1, 3)), np.zeros((2, NUM_OWN + 2 * 3))
        >>> weights[1, NUM_OWN : NUM_OWN + 3] = 4, 0, 1  # of the first channel's value, and of that behind
        >>> values = Values(weights, grid)
        >>> values.add(0, grid.spread(np.array([[[1, 2, 5]]]))[0])
        >>> values.expected(slice(1, 2))[:, grid.order].tolist()
        [[6.0, 20.0, 13.0]]
    """

    def __init__(self, weights: NDArray[np.float64], grid: Grid) -> None:
        axes = num_axes(weights)
        if axes != grid.num_axes:
            raise FeatureError(
                f"channels that lead in a space of {axes} axes cannot be used where there are {grid.num_axes}"
            )
        self._grid, self._places = grid, 1 + 2 * axes
        # Of the channels before each alone.
        self._shares = np.tril(np.ones((len(weights),) * 2), -1).repeat(self._places, 1) * weights[:, NUM_OWN:]
        self._seen = np.zeros((self._shares.shape[1], grid.size))

    def add(self, channel: int, row: NDArray[np.int32]) -> None:
        """Take in a channel.

        Args:
            channel: which one.
            row: its values, as the grid lays them out.
        """
        self._seen[channel * self._places : (channel + 1) * self._places] = self._grid.shifted(row)

    def before(self, channel: int) -> NDArray[np.float64]:
        """The values of the channels before one, as each position sees them: at its place, and beside it.

        Args:
            channel: before which.

        Shapes:
            ``(channel * (1 + 2 * axes), grid.size)``
        """
        return self._seen[: channel * self._places]

    def expected(self, channels: slice) -> NDArray[np.float64]:
        """What the channels before let expect.

        Args:
            channels: of which channels; all before each have been taken in.

        Returns:
            Expected values, whole numbers in the unit of the weights.

        Shapes:
            ``(channels, grid.size)``
        """
        # Whole numbers of less than 53 bits: exact in any order.
        return self._shares[channels] @ self._seen
