"""The decoder: up-sampling residual blocks and self-attention, every layer spectrally normalised (Fig. 3).

Runs on the edge, so it may be heavy. Knows no quantizer: its input is a latent of centers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from compoff.codec.spectral import SpectralConv

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.codec.geometry import Geometry

__all__ = ["Decoder", "ResidualUp", "SelfAttention"]

_FLAT_WIDTH = 1024  # the hidden layer of a flat feature; one as wide as VGG's 25,088 values would be gigabytes

# Attention pools its keys to about this many: the released code pools 56 and 112 to 14 a side. Cost stays linear in
# the positions, and a 112 x 112 map would otherwise need 600 MB a sample.
_KEYS = 196


class SelfAttention(nn.Module):
    """Self-attention over positions, added to its input with a gain that starts at zero.

    Args:
        channels: Number of channels.
        space: Sizes of the map, in elements.

    Shapes:
        x and result ``(batch, channels, *space)``.

    Examples:
        >>> import torch
        >>> attention = SelfAttention(16, (8, 8))
        >>> x = torch.randn(1, 16, 8, 8)
        >>> torch.equal(attention(x), x)
        True

    Source: DeepCOD (SenSys 2020), Sec. 3.2.3, Fig. 3; SAGAN (arXiv 1805.08318), Sec. 3, its reference [51].
    """

    def __init__(self, channels: int, space: tuple[int, ...]) -> None:
        super().__init__()
        narrow, point = max(1, channels // 8), (1,) * len(space)
        side = max(1, round(_KEYS ** (1 / len(space))))
        self.pool = tuple(max(1, size // side) for size in space)
        self.query = SpectralConv(channels, narrow, point)
        self.key = SpectralConv(channels, narrow, point)
        self.value = SpectralConv(channels, max(1, channels // 2), point)
        self.project = SpectralConv(max(1, channels // 2), channels, point)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Args:
            x: Input, ``(batch, channels, *space)``.

        Returns:
            Output of the same shape.
        """
        pool = F.max_pool1d if len(self.pool) == 1 else F.max_pool2d
        query = self.query(x).flatten(2)  # (batch, narrow, positions)
        key = pool(self.key(x), self.pool).flatten(2)  # (batch, narrow, keys)
        value = pool(self.value(x), self.pool).flatten(2)  # (batch, channels / 2, keys)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)  # (batch, positions, keys)
        mixed = (value @ attention.transpose(1, 2)).reshape(*value.shape[:2], *x.shape[2:])
        return x + self.gain * self.project(mixed)


class ResidualUp(nn.Module):
    """A residual block of transposed convolutions that enlarges the map.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        factor: Up-sampling factor along each axis.

    Shapes:
        x ``(batch, in_channels, *space)``; result ``(batch, out_channels, *space · factor)``.

    Examples:
        >>> import torch
        >>> ResidualUp(8, 16, (2, 2))(torch.zeros(1, 8, 7, 7)).shape
        torch.Size([1, 16, 14, 14])

    Source: DeepCOD (SenSys 2020), Sec. 3.2.3, Fig. 3.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        kernel = tuple(max(3, step + 1 - step % 2) for step in factor)
        self.enlarge = SpectralConv(in_channels, out_channels, kernel, factor)
        self.refine = SpectralConv(out_channels, out_channels, (3,) * len(factor), (1,) * len(factor))
        self.shortcut = SpectralConv(in_channels, out_channels, tuple(max(1, step) for step in factor), factor)

    @property
    def lipschitz_bound(self) -> float:
        """Upper bound of the block's gain: that of the branch plus that of the shortcut."""
        return self.enlarge.lipschitz_bound * self.refine.lipschitz_bound + self.shortcut.lipschitz_bound

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge.

        Args:
            x: Input, ``(batch, in_channels, *space)``.

        Returns:
            Output, ``(batch, out_channels, *space · factor)``.
        """
        return self.refine(F.relu(self.enlarge(F.relu(x)))) + self.shortcut(x)


def _factors(tile: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Prime up-sampling factors, one tuple a block, that multiply to the tile: (4, 4) gives [(2, 2), (2, 2)]."""
    columns: list[list[int]] = []
    for side in tile:
        primes: list[int] = []
        divisor = 2
        while side > 1:
            if side % divisor:
                divisor += 1
                continue
            primes.append(divisor)
            side //= divisor
        columns.append(primes)
    length = max(1, *(len(column) for column in columns)) if columns else 0
    filled = [column + [1] * (length - len(column)) for column in columns]
    return [tuple(column[index] for column in filled) for index in range(length)]


class Decoder(nn.Module):
    """Generate a feature from its latent.

    Self-attention and residual transposed convolutions in turn, then one convolution to the feature's channels. Every
    layer obeys Eq. 9; what the normalised network cannot reach by itself, the level of the feature, is one learned
    scale and a learned offset per channel at the end. The scale is therefore part of the Lipschitz constant.

    Args:
        geometry: Layout of the feature.
        channels: Number of channels of the latent.

    Shapes:
        z_hat ``(batch, channels, *geometry.latent_space)``; result ``(batch, geometry.channels, *space)``.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> Decoder(Geometry((16, 30, 32)), channels=4)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 16, 30, 32])

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2-3.2.3, Eq. 8-9, Fig. 3.
    """

    def __init__(self, geometry: Geometry, channels: int) -> None:
        super().__init__()
        self.geometry = geometry
        self.stages = nn.ModuleList()
        space, width = geometry.latent_space, channels
        factors = _factors(geometry.tile)
        for index, factor in enumerate(factors):
            last = index == len(factors) - 1
            out_width = max(32, geometry.channels) if last else max(64, geometry.channels)
            self.stages.append(SelfAttention(width, space))
            self.stages.append(ResidualUp(width, out_width, factor))
            space = tuple(size * step for size, step in zip(space, factor, strict=True))
            width = out_width
        if not factors:  # a flat feature has no positions to attend to
            width = max(64, min(geometry.channels, max(_FLAT_WIDTH, channels)))
            self.stages.append(SpectralConv(channels, width, ()))
        self.to_feature = SpectralConv(width, geometry.channels, (3,) * len(geometry.space))
        self.scale = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(geometry.channels))

    def _normalized(self, z_hat: Tensor) -> Tensor:
        """Everything but the learned scale and offset."""
        for stage in self.stages:
            z_hat = stage(z_hat)
        return self.to_feature(F.relu(z_hat))

    @torch.no_grad()
    def calibrate(self, z_hat: Tensor, y: Tensor) -> None:
        """Start the scale and the offset where the output has the level of real features.

        Args:
            z_hat: Quantized latents of one batch.
            y: Their features.

        Examples:
            >>> import torch
            >>> from compoff.codec import Geometry
            >>> decoder = Decoder(Geometry((4, 8)), channels=2)
            >>> decoder.calibrate(torch.randn(8, 2, 2), torch.randn(8, 4, 8))

        Source: this project.
        """
        axes = (0, *range(2, y.dim()))
        raw = self._normalized(z_hat)
        spread = (raw - raw.mean(axes, keepdim=True)).square().mean().sqrt()
        level = (y - y.mean(axes, keepdim=True)).square().mean().sqrt()
        if level > 0 and spread > 0:  # a batch whose samples are all alike shows no level: the scale stays 1
            self.scale.copy_(level / spread.clamp_min(1e-12))
        self.offset.copy_(y.mean(axes) - self.scale * raw.mean(axes))

    @property
    def lipschitz_bound(self) -> float:
        """Upper bound of the decoder's gain over its convolutions: scale times the product over the layers.

        Self-attention has no finite Lipschitz constant over all inputs, so its share is left out here, and
        `local_gain` measures the whole decoder where it works.
        """
        gains = [stage.lipschitz_bound for stage in self.stages if isinstance(stage, (ResidualUp, SpectralConv))]
        return abs(float(self.scale.detach())) * math.prod(gains) * self.to_feature.lipschitz_bound

    def forward(self, z_hat: Tensor) -> Tensor:
        """Decode.

        Args:
            z_hat: Quantized latent, ``(batch, channels, *geometry.latent_space)``.

        Returns:
            The feature, ``(batch, geometry.channels, *space)``.
        """
        y_hat = self._normalized(z_hat)
        offset = self.offset.view(-1, *(1,) * len(self.geometry.space))
        return self.geometry.crop(y_hat * self.scale + offset)
