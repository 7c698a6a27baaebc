"""The encoder: one strided convolution (2-D, 1-D) or one linear layer, and its distance from an isometry.

All that the device adds to its part of the network. Knows nothing of quantization.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn

from compoff.codec.precision import full_precision
from compoff.codec.units import ChannelUnits
from compoff.codec.waves import WaveMix

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from compoff.codec.directions import Directions
    from compoff.codec.geometry import Geometry

__all__ = ["Encoder", "semi_orthogonality_error"]

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d}


class Encoder(nn.Module):
    """Turn a feature into a latent with one layer whose kernel equals its stride.

    Starts as an exact semi-orthogonal map, which is where Eq. 7 pulls it.

    Args:
        geometry: Layout of the feature.
        channels: Number of channels of the latent.
        described: How many numbers a tile is described by first, on waves: the same linear map in two factors, which
            cost less than their product where tiles are wide. None for no such factor.
        standardized: Whether it sees each channel of the feature in a unit of its own, and not far from zero.

    Shapes:
        y ``(batch, geometry.channels, *space)``; result ``(batch, channels, *geometry.latent_space)``.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> Encoder(Geometry((64, 56, 56)), channels=8)(torch.zeros(1, 64, 56, 56)).shape
        torch.Size([1, 8, 14, 14])

    Source: DeepCOD (SenSys 2020), Sec. 3.2.1 and 3.2.3, Eq. 5.
    """

    units: ChannelUnits | None
    """Those of the feature's channels; None where it sees them as they are, and once they are a part of the weights."""

    def __init__(
        self, geometry: Geometry, channels: int, described: int | None = None, *, standardized: bool = False
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.units = ChannelUnits(geometry.channels) if standardized else None
        self.mix = None if described is None else WaveMix(geometry, described)
        # What the numbers between the factors deviate by. Folded for inference they all deviate by one, so that 8-bit
        # integers, with one scale for all of them, hold the small ones as well.
        self.spread: Tensor
        if described is not None:
            self.register_buffer("spread", torch.ones(described))
        # Behind the first factor a tile is one position.
        inner, self._tile = geometry.channels, geometry.tile
        if described is not None:
            inner, self._tile = described, (1,) * len(geometry.tile)
        self.layer: nn.Module
        if geometry.space:
            tile = self._tile
            convolution = _CONVOLUTIONS[len(tile)]
            self.layer = convolution(inner, channels, tile, stride=tile, bias=False)  # pyright: ignore[reportArgumentType]
        else:
            self.layer = nn.Linear(geometry.channels, channels, bias=False)
        nn.init.orthogonal_(self.weight)

    @property
    def weight(self) -> Tensor:
        """The kernel, ``(channels, geometry.channels, *tile)``; where there are two factors, of the second."""
        weight = self.layer.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the encoder costs the device per sample."""
        return self.macs_of(len(self.weight))

    def macs_of(self, channels: int) -> int:
        """Multiply-accumulates that the first channels alone cost per sample.

        Args:
            channels: Number of channels of the latent that are computed.

        Returns:
            The number.

        Examples:
            >>> from compoff.codec import Geometry
            >>> encoder = Encoder(Geometry((2, 8), stride=4), channels=8)
            >>> encoder.macs_of(4), encoder.macs
            (64, 128)
        """
        before = 0 if self.mix is None else self.mix.macs
        return before + self.weight[:channels].numel() * math.prod(self.geometry.latent_space)

    @property
    def factors(self) -> list[Tensor]:
        """The kernels, in the order in which they work."""
        return [self.weight] if self.mix is None else [self.mix.core, self.weight]

    @property
    def kernel(self) -> Tensor:
        """The weight as it meets the feature's own units; where there are two factors, the second."""
        if self.units is None or self.mix is not None:
            return self.weight
        return self.units.scaled(self.weight)

    @torch.no_grad()
    def start(self, directions: Directions, step: float) -> None:
        """Measure in directions.

        Args:
            directions: The directions.
            step: Unit of the latent.
        """
        if self.units is not None:
            self.units.start(directions.units)
        if self.mix is not None and directions.mixing is not None and directions.mixing.wave is not None:
            self.mix.start(directions.mixing.analysis, directions.mixing.wave)
            deviation = directions.mixing.deviation
            least = max(1e-6 * float(deviation.max()), 1e-30)
            self.spread.copy_(deviation.clamp_min(least).log2().round().exp2())  # by powers of two nothing is rounded
        self.weight.copy_((directions.analysis / step).view_as(self.weight))

    def forward(self, y: Tensor) -> Tensor:
        """Encode a feature.

        Args:
            y: The feature, ``(batch, geometry.channels, *space)``.

        Returns:
            The latent, ``(batch, channels, *geometry.latent_space)``.
        """
        return self.layer(self._mixed(y if self.units is None else self.units.standardized(y)))

    def _mixed(self, y: Tensor) -> Tensor:
        """The feature, padded, as it enters the layer."""
        padded = self.geometry.pad(y)
        return padded if self.mix is None else self.mix.analyze(padded)

    def scaled(self, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        """Encode a feature, then multiply and shift each channel, in the one layer.

        Args:
            y: The feature.
            gain: Factor of each channel.
            bias: What is added to each channel afterwards.

        Returns:
            ``encoder(y) * gain + bias``, but for rounding.

        Shapes:
            gain and bias ``(channels,)``; result as of `forward`.

        Examples:
            >>> import torch
            >>> from compoff.codec import Geometry
            >>> encoder, y = Encoder(Geometry((2, 8)), channels=3), torch.randn(1, 2, 8)
            >>> gain, bias = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 0.0])
            >>> torch.allclose(encoder.scaled(y, gain, bias)[:, 1], 2 * encoder(y)[:, 1] + 0.5)
            True
        """
        weight, bias = self._settled(gain, bias)
        tile, mixed = self._tile, self._mixed(y if self.units is None else self.units.scaled(y))
        return _CONVOLVE[len(tile)](mixed, weight, bias, tile) if tile else F.linear(mixed, weight, bias)

    def _settled(self, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer where it scales, too: the shifts of the channels are a part of the bias."""
        weight = self.weight * gain.view(-1, *(1,) * (self.weight.dim() - 1))
        if self.units is None:
            return weight, bias
        level = self.units.level
        sums = weight.reshape(*weight.shape[:2], -1).sum(2)
        return weight, bias - sums @ (level if self.mix is None else self.mix.steady(level))

    @torch.no_grad()
    def fold(self, gain: Tensor, bias: Tensor) -> None:
        """Multiply and shift each channel for good: `forward` then gives what `scaled` gave.

        Args:
            gain: Factor of each channel.
            bias: What is added to each channel afterwards.
        """
        weight, bias = self._settled(gain, bias)
        self.weight.copy_(weight)
        if self.units is not None:
            sees = self.factors[0]
            sees.copy_(self.units.scaled(sees))
            self.units = None
        if self.mix is not None:
            self.mix.settle()
            self.mix.core.div_(self.spread[:, None])
            self.weight.mul_(self.spread.view(-1, *(1,) * len(self._tile)))
        self.layer.bias = nn.Parameter(bias.clone(), requires_grad=False)


@full_precision
def semi_orthogonality_error(weight: Tensor) -> Tensor:
    """Frobenius distance of a kernel from a semi-orthogonal matrix.

    Zero means that the encoder preserves distances within the space it measures (Eq. 6 with γ = 1).

    Args:
        weight: The kernel, output channels first, as PyTorch stores it.

    Returns:
        ``‖E'ᵀE' − I‖``, a scalar.

    Shapes:
        weight ``(channels, in_channels, *tile)``; E' is its transpose as a matrix, ``(in_channels · tile, channels)``.

    Examples:
        >>> import torch
        >>> float(semi_orthogonality_error(torch.eye(3, 12)))
        0.0

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2, Eq. 7.
    """
    rows = weight.flatten(1)  # E'ᵀ: (channels, in_channels * tile)
    gram = rows @ rows.T
    identity = torch.eye(len(rows), dtype=gram.dtype, device=gram.device)
    return cast("Tensor", torch.linalg.matrix_norm(gram - identity))
