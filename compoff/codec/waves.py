"""Wide tiles of many channels, described by fewer numbers: each is one mix of all channels on one wave over the tile.

A tile of 7 x 7 positions and 1024 channels has 50,176 elements: no second moments of all of them can be kept, and a
layer that weighs all of them would cost the device more than the network's own. Within one wave they can, and the waves
of a smooth feature hardly depend on one another, which is why image coders use them. Knows no quantizer.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from compoff.codec.geometry import Geometry

__all__ = ["WaveMix", "cosines", "described_by", "lowest_waves", "rides_waves"]

_WHOLE = 4096  # tile elements up to which second moments are kept of all of them together
_DESCRIBED = 2048  # numbers that a wider tile is described by
_MOMENTS = 2**26  # numbers that the second moments of all waves take at most


def rides_waves(geometry: Geometry) -> bool:
    """Whether a tile has too many elements to find directions among all of them.

    Args:
        geometry: Layout of the feature.

    Examples:
        >>> from compoff.codec import Geometry
        >>> rides_waves(Geometry((64, 56, 56), stride=8)), rides_waves(Geometry((1024, 14, 14), stride=7))
        (False, True)
    """
    return geometry.tile_elements > _WHOLE and math.prod(geometry.tile) > 1


def described_by(geometry: Geometry) -> int:
    """How many numbers a tile is described by: all its elements, or those that count most on waves.

    Args:
        geometry: Layout of the feature.

    Returns:
        At most 4096.

    Examples:
        >>> from compoff.codec import Geometry
        >>> described_by(Geometry((3, 224, 224), stride=8)), described_by(Geometry((1024, 14, 14), stride=7))
        (192, 2048)
    """
    return _DESCRIBED if rides_waves(geometry) else geometry.tile_elements


def cosines(tile: tuple[int, ...]) -> Tensor:
    """The waves of a tile: an orthonormal basis of its positions (DCT-II along each axis).

    Args:
        tile: Sides of the tile.

    Returns:
        One row a wave; the first is constant.

    Shapes:
        Result ``(positions, positions)``, float64.

    Examples:
        >>> waves = cosines((2, 3))
        >>> torch.allclose(waves @ waves.T, torch.eye(6, dtype=waves.dtype))
        True

    Source: Ahmed, Natarajan, Rao, Discrete Cosine Transform (IEEE Transactions on Computers, 1974).
    """
    found = torch.ones(1, 1, dtype=torch.float64)
    for side in tile:
        wave, place = torch.arange(side, dtype=torch.float64)[:, None], torch.arange(side, dtype=torch.float64)
        along = torch.cos(math.pi * (place + 0.5) * wave / side) * math.sqrt(2 / side)
        along[0] /= math.sqrt(2)
        found = torch.kron(found, along)
    return found


def lowest_waves(geometry: Geometry) -> list[int]:
    """The waves that directions are looked for in: the slowest, as many as second moments can be kept of.

    Args:
        geometry: Layout of the feature.

    Returns:
        Rows of `cosines`.

    Examples:
        >>> from compoff.codec import Geometry
        >>> len(lowest_waves(Geometry((1024, 14, 14), stride=7))), lowest_waves(Geometry((4096, 8, 8), stride=8))
        (49, [0, 1, 8, 9])
    """
    tile = geometry.tile
    orders = list(itertools.product(*(range(side) for side in tile)))
    speed = [sum((order / side) ** 2 for order, side in zip(one, tile, strict=True)) for one in orders]
    slowest = sorted(range(len(orders)), key=lambda wave: (speed[wave], wave))
    return sorted(slowest[: max(1, _MOMENTS // geometry.channels**2)])


class WaveMix(nn.Module):
    """A linear map between a feature's tiles and a latent, each of whose channels rides one wave.

    Waves that many channels ride are computed together with others of about as many, so that a few products of matrices
    do all of it.

    Args:
        geometry: Layout of the feature.
        channels: Number of channels of the latent.

    Shapes:
        `analyze`: y ``(batch, geometry.channels, *space)`` to ``(batch, channels, *geometry.latent_space)``;
        `synthesize` back.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> geometry = Geometry((3, 8, 8))
        >>> mix, y = WaveMix(geometry, channels=48), torch.randn(2, 3, 8, 8)
        >>> mix.start(torch.eye(3).repeat(16, 1), torch.arange(16).repeat_interleave(3))  # every channel on every wave
        >>> torch.allclose(mix.synthesize(mix.analyze(y)), y, atol=1e-5)
        True

    Source: this project.
    """

    wave: Tensor
    """The wave of each channel, a row of `cosines`."""
    waves: Tensor
    places: Tensor
    slots: Tensor

    def __init__(self, geometry: Geometry, channels: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.core = nn.Parameter(torch.empty(channels, geometry.channels))
        nn.init.normal_(self.core, std=geometry.channels**-0.5)
        self.register_buffer("wave", torch.zeros(channels, dtype=torch.int64))
        self.register_load_state_dict_post_hook(_arrange)
        self._arrange()

    @torch.no_grad()
    def start(self, core: Tensor, wave: Tensor) -> None:
        """Take a mix and a wave for each channel.

        Args:
            core: Weights of the feature's channels.
            wave: The wave of each channel.

        Shapes:
            core ``(channels, geometry.channels)``; wave ``(channels,)``.
        """
        self.core.copy_(core)
        self.wave.copy_(wave)
        self._arrange()

    def _arrange(self) -> None:
        """Put channels of one wave beside one another, and waves of about as many channels."""
        if self.wave.is_meta:  # weights that are to come; they bring their waves
            self.groups = []
            return
        wave = cast("list[int]", self.wave.tolist())  # pyright: ignore[reportUnknownMemberType]
        ridden = {one: [channel for channel, its in enumerate(wave) if its == one] for one in sorted({*wave})}
        used = sorted(ridden, key=lambda one: -len(ridden[one]))
        self.groups: list[tuple[int, int]] = []  # number of waves, and rows of each
        places, nothing = list[int](), len(wave)
        for one in used:
            channels = ridden[one]
            if not self.groups or 2 * len(channels) <= self.groups[-1][1]:
                self.groups.append((0, len(channels)))
            count, width = self.groups[-1]
            self.groups[-1] = (count + 1, width)
            places += channels + [nothing] * (width - len(channels))
        slots = [0] * len(wave)
        for slot, channel in enumerate(places):
            if channel != nothing:
                slots[channel] = slot
        where = self.core.device
        self.register_buffer("places", torch.tensor(places, device=where), persistent=False)
        self.register_buffer("slots", torch.tensor(slots, device=where), persistent=False)
        waves = cosines(self.geometry.tile)[used].to(self.core)
        self.register_buffer("waves", waves, persistent=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one direction per sample."""
        tiles, rows = math.prod(self.geometry.latent_space), sum(count * width for count, width in self.groups)
        return tiles * self.geometry.channels * (self.waves.numel() + rows)

    @property
    def kernel(self) -> Tensor:
        """The same map as the kernel of a convolution, ``(channels, geometry.channels, *tile)``."""
        waves = cosines(self.geometry.tile).to(self.core)[self.wave]
        return (self.core[:, :, None] * waves[:, None]).view(*self.core.shape, *self.geometry.tile)

    @property
    def gram(self) -> Tensor:
        """The kernel's inner products, ``(channels, channels)``: channels of different waves are orthogonal."""
        return (self.core @ self.core.T) * (self.wave[:, None] == self.wave)

    def analyze(self, y: Tensor) -> Tensor:
        """The latent of a feature that fills whole tiles.

        Args:
            y: The feature, padded.

        Returns:
            The latent.
        """
        tile, latent = self.geometry.tile, self.geometry.latent_space
        axes = range(len(tile))
        sides = [size for pair in zip(latent, tile, strict=True) for size in pair]
        tiled = y.reshape(-1, self.geometry.channels, *sides)
        order = (*(3 + 2 * axis for axis in axes), 1, 0, *(2 + 2 * axis for axis in axes))
        positions = tiled.permute(order).reshape(math.prod(tile), -1)
        ridden = (self.waves @ positions).view(len(self.waves), self.geometry.channels, -1)
        found, row, wave = list[Tensor](), 0, 0
        rows = self._rows()
        for count, width in self.groups:
            mix = rows[row : row + count * width].view(count, width, -1)
            found.append((mix @ ridden[wave : wave + count]).flatten(0, 1))
            row, wave = row + count * width, wave + count
        return torch.cat(found)[self.slots].view(len(self.slots), -1, *latent).transpose(0, 1)

    def synthesize(self, z: Tensor) -> Tensor:
        """The feature, of whole tiles, that a latent stands for.

        Args:
            z: The latent.

        Returns:
            The feature.
        """
        tile, latent, channels = self.geometry.tile, self.geometry.latent_space, self.geometry.channels
        axes = range(len(tile))
        lines = z.transpose(0, 1).reshape(len(self.slots), -1)
        lines = torch.cat([lines, torch.zeros_like(lines[:1])])[self.places]
        found, row = list[Tensor](), 0
        rows = self._rows()
        for count, width in self.groups:
            mix = rows[row : row + count * width].view(count, width, -1)
            found.append(mix.transpose(1, 2) @ lines[row : row + count * width].view(count, width, -1))
            row += count * width
        positions = self.waves.T @ torch.cat(found).flatten(1)
        tiled = positions.view(*tile, channels, -1, *latent)
        order = (len(tile) + 1, len(tile), *(place for axis in axes for place in (len(tile) + 2 + axis, axis)))
        return tiled.permute(order).reshape(-1, channels, *self.geometry.padded)

    def _rows(self) -> Tensor:
        """The weights as they are multiplied, with rows of zeros between."""
        return torch.cat([self.core, torch.zeros_like(self.core[:1])])[self.places]


def _arrange(module: nn.Module, *_: object) -> None:
    """After weights are loaded: the waves may be others."""
    assert isinstance(module, WaveMix)
    module._arrange()  # pyright: ignore[reportPrivateUsage]
