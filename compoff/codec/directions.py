"""Where a transform codec starts: the directions of a tile that the network's output depends on most.

The eigenvectors of S·C·S, with C the covariance of the tiles and S² that of the output's gradients at them. A uniform
step in these directions harms the output equally in each of them, so the rate goes where it counts. No labels.

A wide tile of many channels has more elements than second moments can be kept of. It is described by fewer numbers
first (`waves`), by the same rule within each wave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from compoff.codec.precision import full_precision, own_defaults
from compoff.codec.units import ChannelMoments
from compoff.codec.waves import WaveMix, cosines
from compoff.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.codec.geometry import Geometry
    from compoff.codec.units import ChannelUnits

__all__ = ["Directions", "TileMoments", "alike", "check_tile", "factor_of", "leading"]

_WIDEST = 4096  # channels, of which second moments are kept whole
_PRECISE = 2048  # rows up to which eigenvectors are found in double precision
_RIDGE = 0.01  # share of the mean sensitivity that every direction gets: what the samples did not show may still count
_FLOOR = 1e-10


@dataclass(frozen=True)
class Directions:
    """A linear codec of tiles, in the units of their channels.

    Args:
        analysis: Rows that turn a tile into a latent.
        synthesis: Rows whose weighted sum turns the latent back.
        offset: What the mean tile makes of the latent, taken away from it.
        mean: The mean tile.
        deviation: Standard deviation of each latent channel, falling; on waves, falling within each wave.
        units: Those of the feature's channels, in which all that is said here is meant.
        mixing: What describes a wide tile before; None where all its elements do.
        wave: The wave over the tile that each latent channel rides, of whose channels alone the rows speak then.

    Shapes:
        analysis and synthesis ``(channels, elements)``, of a tile or of what describes it, or
        ``(channels, geometry.channels)`` on waves; offset, deviation and wave ``(channels,)``; mean
        ``(tile elements,)``.
    """

    analysis: Tensor
    synthesis: Tensor
    offset: Tensor
    mean: Tensor
    deviation: Tensor
    units: ChannelUnits
    mixing: Directions | None = None
    wave: Tensor | None = None

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
            >>> from compoff.codec import Geometry
            >>> geometry, y = Geometry((2, 8), stride=4), torch.randn(50, 2, 8)
            >>> moments = TileMoments(geometry)
            >>> moments.add(y, torch.randn(50, 2, 8))
            >>> moments.directions(channels=3).measure(geometry, y).mean(0).abs().max() < 1e-5
            tensor(True)
        """
        y = self.units.standardized(y)
        if self.wave is not None:
            return _held(_mix(self, self.analysis, geometry), y) - self.offset.to(y)
        mixing = self.mixing
        tiles = geometry.tiles(y) if mixing is None else _held(_mix(mixing, mixing.analysis, geometry), y)
        return tiles @ self.analysis.to(y).T - self.offset.to(y)


def check_tile(geometry: Geometry) -> None:
    """Refuse a feature whose second moments would be too many to keep.

    Args:
        geometry: Layout of the feature.

    Raises:
        FeatureError: A position or a tile has too many elements.

    Examples:
        >>> from compoff.codec import Geometry
        >>> check_tile(Geometry((256, 14, 14), stride=4))
    """
    positions = math.prod(geometry.tile)
    if geometry.channels > _WIDEST:  # no stride makes them fewer
        # Its convolutions start orthogonal, for which PyTorch takes time as the cube of the channels.
        slow = ", whose decoder takes minutes to make for so many" if geometry.space else ""
        raise FeatureError(
            f"a feature of shape {geometry.shape} has {geometry.channels} numbers at a position; the transform codec "
            f'takes up to {_WIDEST}: wrap at another split point, or with codec="deepcod"{slow}'
        )
    if positions > _WIDEST:
        raise FeatureError(
            f"a feature of shape {geometry.shape} has tiles of {positions} positions with stride={geometry.stride}; "
            f"the transform codec takes up to {_WIDEST}: wrap with a smaller stride"
        )


class TileMoments:
    """Second moments of a feature's tiles and of the output's gradients there.

    Args:
        geometry: Layout of the feature.
        mixing: What describes its tiles, where these are wider than second moments can be kept of.

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

    @own_defaults()
    def __init__(self, geometry: Geometry, mixing: Directions | None = None) -> None:
        check_tile(geometry)
        self.mixing = mixing
        self._geometry = geometry
        self._channels = ChannelMoments(geometry.channels)
        self._mixes: tuple[WaveMix, ...] = ()
        if mixing is not None:
            self._mixes = _mix(mixing, mixing.analysis, geometry), _mix(mixing, mixing.synthesis, geometry)
        size = geometry.tile_elements if mixing is None else len(mixing.analysis)
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._square = torch.zeros(size, size, dtype=torch.float64)
        self._sensitivity = torch.zeros(size, size, dtype=torch.float64)
        self._shift: Tensor | None = None  # a mean far from zero would leave nothing of float32's digits
        self._rows = 0

    @own_defaults()
    @full_precision
    @torch.no_grad()
    def add(self, y: Tensor, gradient: Tensor) -> None:
        """Count the tiles of one batch.

        Args:
            y: The feature.
            gradient: Gradient of some projection of the output at it.
        """
        y, gradient = y.float(), gradient.float()
        if self.mixing is None:
            self._channels.add(y, alike(gradient))
            tiles, slopes = self._geometry.tiles(y), self._geometry.tiles(gradient)
        else:
            y, gradient = self.mixing.units.standardized(y), self.mixing.units.multiplied(gradient)
            tiles, slopes = (_held(mix, values) for mix, values in zip(self._mixes, (y, gradient), strict=True))
        if self._shift is None:
            self._shift = tiles.cpu().double().mean(0).to(tiles)
        tiles = tiles - self._shift
        self._sum += tiles.sum(0).cpu().double()
        self._square += (tiles.T @ tiles).cpu().double()
        slopes = alike(slopes)
        self._sensitivity += (slopes.T @ slopes).cpu().double()
        self._rows += len(tiles)

    @own_defaults()
    @torch.no_grad()
    def directions(self, channels: int) -> Directions:
        """The directions that count most.

        Args:
            channels: How many, at most what a tile is described by.

        Returns:
            Analysis and synthesis in float32.
        """
        mean, covariance, sensitivity, units = self._moments()
        level = torch.trace(sensitivity) / len(sensitivity)
        variances, analysis, synthesis = leading(covariance, factor_of(sensitivity, level), channels)
        return Directions(
            analysis.float(),
            synthesis.float(),
            (analysis @ mean).float(),
            self._whole(mean).float(),
            variances.clamp_min(0).sqrt().float(),
            units,
            self.mixing,
        )

    def _moments(self) -> tuple[Tensor, Tensor, Tensor, ChannelUnits]:
        """The mean tile, the covariance of the tiles, what the output's gradients are there, and their units."""
        mean = self._sum / self._rows
        covariance = self._square / self._rows - torch.outer(mean, mean)
        mean = mean if self._shift is None else mean + self._shift.cpu().double()
        if self.mixing is not None:  # which was made of standardized channels
            return mean, covariance, self._sensitivity, self.mixing.units
        units = self._channels.units()
        shift, scale = (one.double().repeat_interleave(len(mean) // len(one)) for one in (units.shift, units.scale))
        squared = torch.outer(scale, scale)
        return (mean - shift) / scale, covariance / squared, self._sensitivity * squared, units

    def _whole(self, mean: Tensor) -> Tensor:
        """The mean tile with all its elements."""
        mixing = self.mixing
        if mixing is None or mixing.wave is None:
            return mean
        waves = cosines(self._geometry.tile)[mixing.wave]
        beside = (mean - mixing.offset.double())[:, None] * mixing.synthesis.double()
        return mixing.mean.double() + (beside.T @ waves).flatten()


def alike(gradient: Tensor) -> Tensor:
    """A batch's gradients in a unit of their own: their scale is of no consequence, but batches should count alike.

    Args:
        gradient: The gradients.

    Returns:
        The same with a mean square of 1.
    """
    return gradient / gradient.square().mean().sqrt().clamp_min(_FLOOR)


def _mix(directions: Directions, rows: Tensor, geometry: Geometry) -> WaveMix:
    """Mixes of a feature's channels on the waves of directions."""
    assert directions.wave is not None
    mix = WaveMix(geometry, len(rows))
    mix.start(rows, directions.wave)
    return mix


@torch.no_grad()
def _held(mix: WaveMix, y: Tensor) -> Tensor:
    """What the tiles of a feature hold of mixes, one row a tile."""
    return mix.to(y).analyze(mix.geometry.pad(y)).flatten(2).transpose(1, 2).flatten(0, 1)


def leading(covariance: Tensor, factor: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The directions in which what varies counts most.

    Args:
        covariance: C.
        factor: L with L·Lᵀ = S².
        channels: How many directions.

    Returns:
        Their variances, falling; rows of analysis; rows of synthesis.
    """
    variances, vectors = _eigenvectors(factor.T @ covariance @ factor)
    variances, vectors = variances.flip(0)[:channels], vectors.flip(1)[:, :channels]
    synthesis = cast("Tensor", torch.linalg.solve_triangular(factor.T, vectors, upper=True)).T
    return variances, vectors.T @ factor.T, synthesis


def factor_of(sensitivity: Tensor, level: Tensor) -> Tensor:
    """A triangular L with L·Lᵀ = S², S² the sensitivity with the ridge.

    The eigenvectors of Lᵀ·C·L give the same directions as those of S·C·S, for a sixteenth of the time that S takes.

    Args:
        sensitivity: Second moments of the output's gradients, in any unit.
        level: Their mean over all directions, which becomes 1.

    Returns:
        The factor.

    Raises:
        FeatureError: The gradients are no numbers that float32 can square.
    """
    identity = torch.eye(len(sensitivity), dtype=sensitivity.dtype)
    level = level.where(level > 0, 1.0)  # nothing depends on anything, which the ridge alone then decides
    factor, broken = cast("tuple[Tensor, Tensor]", torch.linalg.cholesky_ex(sensitivity / level + _RIDGE * identity))
    if bool(broken) or not bool(torch.isfinite(factor).all()):
        raise FeatureError(
            "the channels of a feature are too many orders of magnitude apart for float32, so no directions can be "
            "found in it; bring them to sizes near 1"
        )
    return factor


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors of a symmetric matrix."""
    # The leading ones of a large matrix are good to a millionth in single precision, in a third of the time.
    precise = len(matrix) <= _PRECISE
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(matrix if precise else matrix.float()))
    return values.to(matrix.dtype), vectors.to(matrix.dtype)
