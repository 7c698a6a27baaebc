"""Wide tiles of many channels, described by fewer numbers: each is one mix of all channels on one wave over the tile.

A tile of 7 x 7 positions and 1024 channels has 50,176 elements: no second moments of all of them can be kept, and a
layer that weighs all of them would cost the device more than the network's own. Within one wave they can, and the waves
of a smooth feature hardly depend on one another, which is why image coders use them. Knows no quantizer.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        At most 4096 where the feature has positions.

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
    orders = _orders(tile)
    speed = [sum((order / side) ** 2 for order, side in zip(one, tile, strict=True)) for one in orders]
    slowest = sorted(range(len(orders)), key=lambda wave: (speed[wave], wave))
    return sorted(slowest[: max(1, _MOMENTS // geometry.channels**2)])


class WaveMix(nn.Module):
    """A linear map between a feature's tiles and a latent, each of whose channels rides one wave.

    Tiles go onto the waves axis by axis, their channels innermost, so that what is added up lies in long rows; then one
    product a wave mixes the channels.

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
    order: Tensor | None
    """The channels wave by wave; None where they are so already, which saves copying the weights."""

    def __init__(self, geometry: Geometry, channels: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.core = nn.Parameter(torch.empty(channels, geometry.channels))
        nn.init.normal_(self.core, std=geometry.channels**-0.5)
        self.register_buffer("wave", torch.zeros(channels, dtype=torch.int64))
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

    def settle(self) -> None:
        """Arrange anew where the waves were written to or put in place, as by a broadcast or another's state.

        Each call looks by itself, but not while it becomes a program: whoever makes one settles before.
        """
        if torch.compiler.is_compiling():
            return
        (wave, *written), (known, *then) = self._state(), self._arranged_for
        if wave is not known or written != then or wave.is_inference():  # whose writes are not counted
            self._arrange()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WaveMix:
        """Move, or change in type; the waves follow, but where they are still to come."""
        to_come = self.wave.is_meta
        super()._apply(fn, recurse)
        if not to_come:
            self.settle()
        return self

    def _arrange(self) -> None:
        """Find how many channels ride which waves, and which waves that are along each axis.

        What is found are no buffers: nothing that copies buffers, of other shapes maybe, may touch it.
        """
        self._arranged_for = self._state()
        self.ridden: list[tuple[int, int]] = []  # a wave's place among those of all axes, and how many channels ride it
        self.order = None
        if self.wave.is_meta:  # weights that are to come; they bring their waves
            return
        wave, tile = _numbers(self.wave), self.geometry.tile
        if wave != sorted(wave):
            self.order = self.wave.argsort(stable=True)
        counts = Counter(wave)
        waves, orders = sorted(counts), _orders(tile)
        along = [sorted({orders[wave][axis] for wave in waves}) for axis in range(len(tile))]
        for axis, side in enumerate(tile):
            setattr(self, f"along{axis}", cosines((side,))[along[axis]].to(self.core))
        computed = list(itertools.product(*along))
        self.ridden = [(computed.index(orders[wave]), counts[wave]) for wave in waves]

    def _state(self) -> tuple[Tensor, int, torch.dtype, torch.device]:
        """What the arrangement belongs to: the tensor of waves, how often it was written to, and what computes."""
        version = 0 if self.wave.is_inference() else self.wave._version
        return self.wave, version, self.core.dtype, self.core.device

    @property
    def _along(self) -> list[Tensor]:
        """The waves along each axis, those that are used."""
        return [getattr(self, f"along{axis}") for axis in range(len(self.geometry.tile))]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one direction per sample."""
        self.settle()
        numbers, total = self.geometry.channels * math.prod(self.geometry.padded), self.core.numel()
        total *= math.prod(self.geometry.latent_space)
        for waves in reversed(self._along):
            total += numbers * len(waves)
            numbers = numbers // waves.shape[1] * len(waves)
        return total

    @property
    def kernel(self) -> Tensor:
        """The same map as the kernel of a convolution, ``(channels, geometry.channels, *tile)``."""
        waves = cosines(self.geometry.tile).to(self.core)[self.wave]
        return (self.core[:, :, None] * waves[:, None]).view(*self.core.shape, *self.geometry.tile)

    def steady(self, level: Tensor) -> Tensor:
        """What a feature whose channels are the same everywhere makes of the latent, at every position.

        Args:
            level: The value of each channel, ``(geometry.channels,)``.

        Returns:
            The latent's channels, ``(channels,)``: only the wave that never swings has any.
        """
        return (self.core @ level) * (self.wave == 0) * math.sqrt(math.prod(self.geometry.tile))

    def analyze(self, y: Tensor) -> Tensor:
        """The latent of a feature that fills whole tiles.

        Args:
            y: The feature, padded.

        Returns:
            The latent.
        """
        self.settle()
        latent, along, channels = self.geometry.latent_space, self._along, self.geometry.channels
        numbers, inner = y.flatten(2).transpose(1, 2), channels
        for size, waves in zip(reversed(latent), reversed(along), strict=True):
            numbers = waves @ numbers.reshape(-1, waves.shape[1], inner)
            inner *= size * len(waves)
        used = [len(waves) for waves in along]
        pairs = [size for pair in zip(latent, used, strict=True) for size in pair]
        axes = range(1, len(pairs), 2)
        order = (*(axis + 1 for axis in axes), 0, *axes, len(pairs) + 1)
        on_waves = numbers.view(-1, *pairs, channels).permute(order).reshape(math.prod(used), -1, channels)
        # A slice of one wave, not the wave itself: programs would copy each of them once more to take the axis away.
        mixed = torch.cat([on_waves[place : place + 1] @ mix.T for place, _, mix in self._mixes()], 2)
        mixed = mixed if self.order is None else mixed[..., self.order.argsort()]
        return mixed.view(-1, *latent, len(self.core)).movedim(-1, 1)

    def synthesize(self, z: Tensor) -> Tensor:
        """The feature, of whole tiles, that a latent stands for.

        Args:
            z: The latent.

        Returns:
            The feature.
        """
        self.settle()
        latent, along, channels = self.geometry.latent_space, self._along, self.geometry.channels
        lines, used = z.movedim(1, -1).flatten(0, -2), [len(waves) for waves in along]
        lines = lines if self.order is None else lines[:, self.order]
        on_waves = [lines.new_zeros(lines.shape[0], channels)] * math.prod(used)
        for place, riders, mix in self._mixes():
            on_waves[place] = lines[:, riders] @ mix
        axes = range(len(used))
        order = (len(used), *(place for axis in axes for place in (len(used) + 1 + axis, axis)), 2 * len(used) + 1)
        numbers, inner = torch.stack(on_waves).view(*used, -1, *latent, channels).permute(order), channels
        for size, waves in zip(reversed(latent), reversed(along), strict=True):
            numbers = waves.T @ numbers.reshape(-1, len(waves), inner)
            inner *= size * waves.shape[1]
        padded = self.geometry.padded
        restored = numbers.view(-1, math.prod(padded), channels).transpose(1, 2).reshape(-1, channels, *padded)
        # In the layout that is traced: what comes after is recorded for it, such as a flat view, and fails in another.
        return restored.contiguous()

    def _mixes(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Each wave's place, and the channels that ride it with their mixes."""
        core, start = self.core if self.order is None else self.core[self.order], 0
        for place, count in self.ridden:
            riders = slice(start, start + count)
            yield place, riders, core[riders]
            start += count


def _orders(tile: tuple[int, ...]) -> list[tuple[int, ...]]:
    """How often each wave swings along each axis, in half periods."""
    return list(itertools.product(*(range(side) for side in tile)))


def _numbers(values: Tensor) -> list[int]:
    """Whole numbers as Python's."""
    return cast("list[int]", values.tolist())  # pyright: ignore[reportUnknownMemberType]
