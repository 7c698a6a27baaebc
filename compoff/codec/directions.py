"""Where a transform codec starts: the directions of a tile that the network's output depends on most.

The eigenvectors of S·C·S, with C the covariance of the tiles and S² that of the output's gradients at them. A uniform
step in these directions harms the output equally in each of them, so the rate goes where it counts. No labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.codec.geometry import Geometry

__all__ = ["Directions", "TileMoments", "check_tile"]

_LARGEST = 4096  # tile elements up to which second moments are kept whole; the eigenvectors then take about a minute
_RIDGE = 0.01  # share of the mean sensitivity that every direction gets: what the samples did not show may still count
_FLOOR = 1e-10


@dataclass(frozen=True)
class Directions:
    """A linear codec of tiles.

    Args:
        analysis: Rows that turn a tile around its mean into a latent.
        synthesis: Rows whose weighted sum turns the latent back.
        mean: The mean tile.
        deviation: Standard deviation of each latent channel, falling.

    Shapes:
        analysis and synthesis ``(channels, tile elements)``; mean ``(tile elements,)``; deviation ``(channels,)``.
    """

    analysis: Tensor
    synthesis: Tensor
    mean: Tensor
    deviation: Tensor


def check_tile(geometry: Geometry) -> None:
    """Refuse a tile whose second moments would be too many to keep.

    Args:
        geometry: Layout of the feature.

    Raises:
        FeatureError: The tile has too many elements.

    Examples:
        >>> from compoff.codec import Geometry
        >>> check_tile(Geometry((256, 14, 14), stride=4))
    """
    if geometry.tile_elements > _LARGEST:
        raise FeatureError(
            f"a tile of a feature of shape {geometry.shape} has {geometry.tile_elements} elements; the transform codec "
            f'takes up to {_LARGEST}: wrap with a smaller stride, at another split point, or with codec="deepcod"'
        )


class TileMoments:
    """Second moments of a feature's tiles and of the output's gradients there.

    Args:
        geometry: Layout of the feature.

    Raises:
        FeatureError: The tile has more elements than second moments can be kept of.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> moments = TileMoments(Geometry((2, 8), stride=4))
        >>> moments.add(torch.randn(50, 2, 8), torch.randn(50, 2, 8))
        >>> moments.directions(channels=3).analysis.shape
        torch.Size([3, 8])

    Source: this project (a label-free Karhunen-Loève transform in the metric of the Gauss-Newton matrix).
    """

    def __init__(self, geometry: Geometry) -> None:
        check_tile(geometry)
        size = geometry.tile_elements
        self.geometry = geometry
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._square = torch.zeros(size, size, dtype=torch.float64)
        self._sensitivity = torch.zeros(size, size, dtype=torch.float64)
        self._rows = 0

    @torch.no_grad()
    def add(self, y: Tensor, gradient: Tensor) -> None:
        """Count the tiles of one batch.

        Args:
            y: The feature.
            gradient: Gradient of some projection of the output at it.
        """
        tiles, slopes = self.geometry.tiles(y.float()), self.geometry.tiles(gradient.float())
        self._sum += tiles.sum(0).cpu().double()
        self._square += (tiles.T @ tiles).cpu().double()
        # The scale of the gradients is of no consequence, but batches should count alike.
        slopes = slopes / slopes.square().mean().sqrt().clamp_min(_FLOOR)
        self._sensitivity += (slopes.T @ slopes).cpu().double()
        self._rows += len(tiles)

    @torch.no_grad()
    def directions(self, channels: int) -> Directions:
        """The directions that count most.

        Args:
            channels: How many, at most the elements of a tile.

        Returns:
            Analysis and synthesis in float32.
        """
        mean = self._sum / self._rows
        covariance = self._square / self._rows - torch.outer(mean, mean)
        root, inverse = _roots(self._sensitivity / self._rows)
        variances, vectors = _eigenvectors(root @ covariance @ root)
        variances, vectors = variances.flip(0)[:channels], vectors.flip(1)[:, :channels]
        return Directions(
            (vectors.T @ root).float(),
            (inverse @ vectors).T.float(),
            mean.float(),
            variances.clamp_min(0).sqrt().float(),
        )


def _roots(sensitivity: Tensor) -> tuple[Tensor, Tensor]:
    """Square root of a sensitivity and its inverse, with the ridge."""
    identity = torch.eye(len(sensitivity), dtype=sensitivity.dtype)
    level = (torch.trace(sensitivity) / len(sensitivity)).clamp_min(_FLOOR)
    values, vectors = _eigenvectors(sensitivity / level + _RIDGE * identity)
    values = values.clamp_min(_FLOOR)
    return vectors @ torch.diag(values.sqrt()) @ vectors.T, vectors @ torch.diag(values.rsqrt()) @ vectors.T


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix."""
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(matrix))
    return values, vectors
