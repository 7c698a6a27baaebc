"""Fit what the values of the first channels are expected to be, and how far off they are then. Knows no tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compoff.coding.context_model import CONTEXTS, LARGEST, ONE
from compoff.coding.grid import Grid
from compoff.coding.leading import NUM_OWN, Values
from compoff.coding.passes import NUM_PASSES
from compoff.coding.sums import NUM_SUMS, Sums
from compoff.fitting.least_squares import magnitude_weights, value_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FittedLeading", "fit_leading", "in_units"]


class FittedLeading(NamedTuple):
    """What was found of channels that lead.

    Args:
        leading: Their weights, as a context model has them.
        weights: Those that they have like all channels.
        magnitudes: What is expected of all their positions.
    """

    leading: NDArray[np.int64]
    weights: NDArray[np.int64]
    magnitudes: NDArray[np.float64]


def in_units(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Weights as whole numbers, in units of ``1 / ONE``.

    Args:
        weights: The weights.

    Examples:
        >>> in_units(np.array([0.5, 1e9])).tolist()
        [32768, 16777216]
    """
    return np.clip(np.rint(weights * ONE), -LARGEST, LARGEST).astype(np.int64)


def fit_leading(values: NDArray[np.int32]) -> FittedLeading:
    """Fit the channels that lead.

    Args:
        values: The values of their symbols.

    Returns:
        Their weights, and what they expect.

    Shapes:
        values: ``(channels, samples, *space)``.
    """
    grid = Grid(values.shape[1:])
    rows, neighbors = grid.spread(values), grid.neighbors
    leading = np.zeros((len(rows), NUM_OWN + len(rows) * (2 * values.ndim - 3)))
    weights, magnitudes = np.zeros((len(rows), CONTEXTS)), np.empty((len(rows), len(grid.order)))
    sums, seen = Sums(grid), Values(leading, grid)
    passes = np.zeros((NUM_PASSES, len(grid.order)))
    for number, span in enumerate(grid.spans):
        passes[number, span] = 1
    for channel, row in enumerate(rows):
        target, near = row.take(grid.order), row.take(neighbors)
        columns = [seen.before(channel).take(grid.order, axis=1), passes[1:] * near.sum(0)]
        found = in_units(value_weights(np.concatenate(columns), target))
        *shares, last = found[-NUM_PASSES + 1 :]
        leading[channel, 3:NUM_OWN:3], weights[channel, -1] = shares, last
        others = found[: -NUM_PASSES + 1]
        leading[channel, NUM_OWN : NUM_OWN + len(others)] = others
        value = others @ columns[0] + np.array([0, *shares, last]) @ passes * near.sum(0)
        target = np.abs(target - np.floor((value + ONE // 2) / ONE).astype(np.int32))
        columns = [sums.features(channel).take(grid.order, axis=1), passes[1:], passes[1:] * np.abs(near).sum(0)]
        columns.append(np.minimum(np.abs(value), LARGEST)[None] / ONE)
        shown: NDArray[np.float64] = np.transpose(np.concatenate(columns))
        [own], [magnitudes[channel]] = magnitude_weights(shown[None], target[None])
        whole = in_units(own)
        constants, sizes = whole[NUM_SUMS:-1].reshape(2, -1)
        leading[channel, 1:NUM_OWN:3], leading[channel, 2:NUM_OWN:3] = constants[:-1], sizes[:-1]
        leading[channel, 0], weights[channel, : NUM_SUMS + 2] = whole[-1], [*whole[:NUM_SUMS], constants[-1], sizes[-1]]
        sums.add(row[None])
        seen.add(channel, row)
    return FittedLeading(leading.astype(np.int64), weights.astype(np.int64), magnitudes.reshape(-1))
