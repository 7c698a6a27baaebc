"""Least squares: what magnitudes and values of symbols are expected from. Knows columns of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEAST", "magnitude_weights", "value_weights"]

LEAST = 0.005
"""The least magnitude expected."""

_ROUNDS = 3  # each weighted by what the one before expects
_SOFT = 0.05  # is added to a magnitude as the deviation it stands for
_RIDGE, _RIDGE_OF_VALUES = 1e-4, 1e-5


def value_weights(columns: NDArray[np.float64], target: NDArray[np.int32]) -> NDArray[np.float64]:
    """Find what values are expected from.

    Args:
        columns: What is seen of each position.
        target: The values.

    Returns:
        Weights.

    Shapes:
        columns: ``(seen, positions)``; target: ``(positions,)``; weights: ``(seen,)``.
    """
    square: NDArray[np.float64] = columns @ np.transpose(columns)
    square += (_RIDGE_OF_VALUES * np.trace(square) / len(square) + 1e-9) * np.eye(len(square))
    return np.linalg.solve(square, columns @ target.astype(np.float64)).astype(np.float64)


def magnitude_weights(
    rows: NDArray[np.float64], target: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find what magnitudes are expected from; the deviation of one counts as its own size.

    Args:
        rows: What is seen of each position.
        target: The magnitudes.

    Returns:
        Weights for each channel, and the magnitudes that they expect.

    Shapes:
        rows: ``(channels, positions, seen)``; target: ``(channels, positions)``; weights: ``(channels, seen)``.
    """
    scale: NDArray[np.float64] = np.sqrt(np.square(rows).mean(1, keepdims=True)) + 1e-12
    scaled, deviation = rows / scale, np.ones(target.shape)
    weights, magnitudes = np.zeros((len(rows), rows.shape[2], 1)), deviation
    for _ in range(_ROUNDS):
        weighted = scaled / np.square(deviation)[:, :, None]
        square: NDArray[np.float64] = np.moveaxis(scaled, 1, 2) @ weighted
        mean: NDArray[np.float64] = np.trace(square, axis1=1, axis2=2)[:, None, None] / square.shape[1]
        square += (_RIDGE * mean + 1e-12) * np.eye(square.shape[1])
        weights = np.linalg.solve(square, np.moveaxis(weighted, 1, 2) @ target[:, :, None].astype(np.float64))
        magnitudes = np.maximum((scaled @ weights)[:, :, 0], LEAST)
        deviation = magnitudes + _SOFT
    return weights[:, :, 0] / scale[:, 0], magnitudes
