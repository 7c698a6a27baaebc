"""Where a transform codec starts: the directions of a tile that the network's output depends on most.

The eigenvectors of S·C·S, with C the covariance of the tiles and S² that of the output's gradients at them. A uniform
step in these directions harms the output equally in each of them, so the rate goes where it counts. No labels.

A wide tile of many channels has more elements than second moments can be kept of. Its channels are mixed to fewer
first, position by position, by the same rule on tiles of one element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from compoff.codec.geometry import Geometry
from compoff.codec.precision import full_precision
from compoff.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Directions", "TileMoments", "check_tile", "mixed_channels", "mixed_numbers"]

_LARGEST = 4096  # tile elements up to which second moments are kept whole
_PRECISE = 2048  # rows up to which eigenvectors are found in double precision
_RIDGE = 0.01  # share of the mean sensitivity that every direction gets: what the samples did not show may still count
_FLOOR = 1e-10


@dataclass(frozen=True)
class Directions:
    """A linear codec of tiles.

    Args:
        analysis: Rows that turn a tile into a latent.
        synthesis: Rows whose weighted sum turns the latent back.
        offset: What the mean tile makes of the latent, taken away from it.
        mean: The mean tile.
        deviation: Standard deviation of each latent channel, falling.
        mixing: Directions at single positions that make the channels of a tile fewer before; None where all stay.

    Shapes:
        analysis and synthesis ``(channels, elements)``, of a tile with mixed channels; offset and deviation
        ``(channels,)``; mean ``(tile elements,)``.
    """

    analysis: Tensor
    synthesis: Tensor
    offset: Tensor
    mean: Tensor
    deviation: Tensor
    mixing: Directions | None = None

    @full_precision
    def measure(self, geometry: Geometry, y: Tensor) -> Tensor:
        """The latent of a feature.

        Args:
            geometry: Layout of the feature.
            y: The feature.

        Returns:
            One row a tile.

        Shapes:
            y ``(batch, *geometry.shape)``; result ``(batch * tiles, channels)``.

        Examples:
            >>> import torch
            >>> geometry, y = Geometry((2, 8), stride=4), torch.randn(50, 2, 8)
            >>> moments = TileMoments(geometry)
            >>> moments.add(y, torch.randn(50, 2, 8))
            >>> moments.directions(channels=3).measure(geometry, y).mean(0).abs().max() < 1e-5
            tensor(True)
        """
        if self.mixing is not None:
            y = _mix(self.mixing.analysis.to(y), y)
        tiles = Geometry((y.shape[1], *geometry.space), geometry.stride).tiles(y)
        return tiles @ self.analysis.to(y).T - self.offset.to(y)


def mixed_channels(geometry: Geometry) -> int:
    """Number of channels that a tile is described by: all, or as many as second moments can be kept of.

    Args:
        geometry: Layout of the feature.

    Returns:
        At most the feature's channels.

    Examples:
        >>> mixed_channels(Geometry((32, 16, 16), stride=8)), mixed_channels(Geometry((1024, 14, 14), stride=7))
        (32, 83)

    Source: this project.
    """
    return min(geometry.channels, _LARGEST // math.prod(geometry.tile))


def mixed_numbers(geometry: Geometry) -> int:
    """How many numbers a tile is described by: what `mixed_channels` hold of it.

    Args:
        geometry: Layout of the feature.

    Returns:
        At most 4096.

    Examples:
        >>> mixed_numbers(Geometry((3, 224, 224), stride=8))
        192

    Source: this project.
    """
    return mixed_channels(geometry) * math.prod(geometry.tile)


def check_tile(geometry: Geometry) -> None:
    """Refuse a feature whose second moments would be too many to keep.

    Args:
        geometry: Layout of the feature.

    Raises:
        FeatureError: A position or a tile has too many elements.

    Examples:
        >>> check_tile(Geometry((256, 14, 14), stride=4))
    """
    if geometry.channels > _LARGEST or mixed_channels(geometry) < 1:
        raise FeatureError(
            f"a feature of shape {geometry.shape} has {geometry.channels} numbers at a position and tiles of "
            f"{math.prod(geometry.tile)} positions; the transform codec takes up to {_LARGEST} of either: wrap with a "
            'smaller stride, at another split point, or with codec="deepcod"'
        )


class TileMoments:
    """Second moments of a feature's tiles and of the output's gradients there.

    Args:
        geometry: Layout of the feature.
        mixing: Directions at its single positions, where its tiles are wider than second moments can be kept of.

    Raises:
        FeatureError: The feature has more elements than second moments can be kept of.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> moments = TileMoments(Geometry((2, 8), stride=4))
        >>> moments.add(torch.randn(50, 2, 8), torch.randn(50, 2, 8))
        >>> moments.directions(channels=3).analysis.shape
        torch.Size([3, 8])

    Source: this project (a label-free Karhunen-Loève transform in the metric of the Gauss-Newton matrix).
    """

    def __init__(self, geometry: Geometry, mixing: Directions | None = None) -> None:
        check_tile(geometry)
        self.mixing = mixing
        channels = geometry.channels if mixing is None else len(mixing.analysis)
        self._tiled = Geometry((channels, *geometry.space), geometry.stride)
        self._positions = math.prod(geometry.tile)
        size = self._tiled.tile_elements
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._square = torch.zeros(size, size, dtype=torch.float64)
        self._sensitivity = torch.zeros(size, size, dtype=torch.float64)
        self._shift: Tensor | None = None  # a mean far from zero would leave nothing of float32's digits
        self._rows = 0

    @full_precision
    @torch.no_grad()
    def add(self, y: Tensor, gradient: Tensor) -> None:
        """Count the tiles of one batch.

        Args:
            y: The feature.
            gradient: Gradient of some projection of the output at it.
        """
        y, gradient = y.float(), gradient.float()
        if self.mixing is not None:
            y, gradient = _mix(self.mixing.analysis.to(y), y), _mix(self.mixing.synthesis.to(y), gradient)
        tiles, slopes = self._tiled.tiles(y), self._tiled.tiles(gradient)
        if self._shift is None:
            self._shift = tiles.double().mean(0).float()
        tiles = tiles - self._shift
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
            channels: How many, at most the elements of a tile with mixed channels.

        Returns:
            Analysis and synthesis in float32.
        """
        mean, covariance = self._moments()
        factor = _factor(self._sensitivity / self._rows)
        variances, vectors = _eigenvectors(factor.T @ covariance @ factor)
        variances, vectors = variances.flip(0)[:channels], vectors.flip(1)[:, :channels]
        analysis = vectors.T @ factor.T
        synthesis = cast("Tensor", torch.linalg.solve_triangular(factor.T, vectors, upper=True)).T
        return Directions(
            analysis.float(),
            synthesis.float(),
            (analysis @ mean).float(),
            self._unmixed(mean).float(),
            variances.clamp_min(0).sqrt().float(),
            self.mixing,
        )

    def _moments(self) -> tuple[Tensor, Tensor]:
        """The mean tile and the covariance of the tiles."""
        mean = self._sum / self._rows
        covariance = self._square / self._rows - torch.outer(mean, mean)
        return (mean if self._shift is None else mean + self._shift.cpu().double()), covariance

    def _unmixed(self, mean: Tensor) -> Tensor:
        """The mean tile with all the channels of the feature."""
        if self.mixing is None:
            return mean
        beside = mean.view(-1, self._positions) - self.mixing.offset.double()[:, None]
        return (self.mixing.mean.double()[:, None] + self.mixing.synthesis.double().T @ beside).flatten()


def _mix(rows: Tensor, y: Tensor) -> Tensor:
    """Weighted sums of channels, position by position."""
    return torch.einsum("rc,bc...->br...", rows, y)


def _factor(sensitivity: Tensor) -> Tensor:
    """A triangular L with L·Lᵀ = S², S² the sensitivity with the ridge.

    The eigenvectors of Lᵀ·C·L give the same directions as those of S·C·S, for a sixteenth of the time that S takes.
    """
    identity = torch.eye(len(sensitivity), dtype=sensitivity.dtype)
    level = (torch.trace(sensitivity) / len(sensitivity)).clamp_min(_FLOOR)
    return cast("Tensor", torch.linalg.cholesky(sensitivity / level + _RIDGE * identity))


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix."""
    # The leading ones of a large matrix are good to a millionth in single precision, in a third of the time.
    precise = len(matrix) <= _PRECISE
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(matrix if precise else matrix.float()))
    return values.to(matrix.dtype), vectors.to(matrix.dtype)
