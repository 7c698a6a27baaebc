"""What describes wide tiles: second moments within each wave, and the leading directions of all waves together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compoff.codec.directions import Directions, alike, check_tile, factor_of, leading
from compoff.codec.precision import full_precision, own_defaults
from compoff.codec.units import ChannelMoments
from compoff.codec.waves import cosines, lowest_waves

if TYPE_CHECKING:
    from compoff.codec.geometry import Geometry

__all__ = ["WaveMoments"]


class WaveMoments:
    """Second moments of all channels within each wave, of a feature's tiles and of the output's gradients there.

    Args:
        geometry: Layout of the feature.

    Raises:
        FeatureError: A position has more channels than second moments can be kept of.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> moments = WaveMoments(Geometry((2, 8), stride=4))
        >>> moments.add(torch.randn(50, 2, 8), torch.randn(50, 2, 8))
        >>> found = moments.directions(channels=3)
        >>> found.analysis.shape, found.wave.shape
        (torch.Size([3, 2]), torch.Size([3]))

    Source: this project (as `TileMoments`, with what different waves have to do with one another left out).
    """

    @own_defaults()
    def __init__(self, geometry: Geometry) -> None:
        check_tile(geometry)
        self._geometry = geometry
        self._channels = ChannelMoments(geometry.channels)
        self._kept = lowest_waves(geometry)
        self._cosines = cosines(geometry.tile)
        count, channels = len(self._kept), geometry.channels
        self._sum = torch.zeros(len(self._cosines), channels, dtype=torch.float64)
        # In single precision: both take a gigabyte otherwise. What is added up has a mean near zero.
        self._square = torch.zeros(count, channels, channels)
        self._sensitivity = torch.zeros(count, channels, channels)
        self._shift: Tensor | None = None
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
        gradient = alike(gradient.float())
        self._channels.add(y.float(), gradient)
        ridden = self._on_waves(y.float())
        if self._shift is None:
            self._shift = ridden.cpu().double().mean(1).to(ridden)
        ridden = ridden - self._shift[:, None]
        self._sum += ridden.sum(1).cpu().double()
        kept = ridden[self._kept]
        self._square += torch.bmm(kept.transpose(1, 2), kept).cpu()
        slopes = self._on_waves(gradient)[self._kept]
        self._sensitivity += torch.bmm(slopes.transpose(1, 2), slopes).cpu()
        self._rows += ridden.shape[1]

    @own_defaults()
    @torch.no_grad()
    def directions(self, channels: int) -> Directions:
        """The directions that count most, of whichever waves.

        Args:
            channels: How many, at most the elements of a tile.

        Returns:
            Analysis and synthesis in float32, each of the feature's channels on one wave.
        """
        mean = self._sum / self._rows
        middle = mean if self._shift is None else mean + self._shift.cpu().double()
        units = self._channels.units()
        scale, squared = units.scale.double(), torch.outer(units.scale, units.scale).double()
        # What is the same everywhere rides the wave that never swings.
        middle = (middle - torch.outer(self._cosines.sum(1), units.shift.double())) / scale
        level = torch.stack([moment.diagonal().double() @ squared.diagonal() for moment in self._sensitivity]).mean()
        level = level / self._geometry.channels
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, wave in enumerate(self._kept):
            covariance = self._square[place].double() / self._rows - torch.outer(mean[wave], mean[wave])
            sensitivity = self._sensitivity[place].double() * squared
            found.append(leading(covariance / squared, factor_of(sensitivity, level), channels))
        variances, analysis, synthesis = (torch.cat(list(parts)) for parts in zip(*found, strict=True))
        ridden = torch.tensor(self._kept).repeat_interleave(torch.tensor([len(one[0]) for one in found]))
        best = variances.argsort(descending=True, stable=True)[:channels]
        best = best[ridden[best].argsort(stable=True)]  # as they are computed: wave by wave
        analysis, wave = analysis[best], ridden[best]
        return Directions(
            analysis.float(),
            synthesis[best].float(),
            (analysis * middle[wave]).sum(1).float(),
            (self._cosines.T @ middle).T.flatten().float(),
            variances[best].clamp_min(0).sqrt().float(),
            units,
            wave=wave,
        )

    def _on_waves(self, y: Tensor) -> Tensor:
        """What the tiles hold of each wave, ``(waves, tiles, channels)``."""
        tiles = self._geometry.tiles(y)
        tiles = tiles.view(len(tiles), self._geometry.channels, -1)
        return torch.einsum("wp,tcp->wtc", self._cosines.to(tiles), tiles)
