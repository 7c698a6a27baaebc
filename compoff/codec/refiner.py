"""The refining decoder: the linear inverse of the encoder, and what two small residual networks add to it.

Starts as the linear inverse exactly, so that a fit begins with a codec that works. The first network sees the latent,
where a position knows the whole tile and its neighbors; the second sees the feature at its own resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compoff.codec.units import ChannelUnits
from compoff.codec.waves import WaveMix, described_by, rides_waves

if TYPE_CHECKING:
    from compoff.codec.directions import Directions
    from compoff.codec.geometry import Geometry

__all__ = ["RefiningDecoder"]

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED: dict[int, type[nn.ConvTranspose1d] | type[nn.ConvTranspose2d]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
}
_LATENT_WIDTH, _LATENT_BLOCKS = 96, 2
_FEATURE_WIDTH, _FEATURE_BLOCKS = 48, 1
_CONVOLVE: dict[int, Any] = {0: F.linear, 1: F.conv1d, 2: F.conv2d}
# Units that a channel's mean may be from zero: the networks learn more of a feature around its own zero, such as that
# of an activation, as long as it is not far.
_NEAR = 2.0
_CLIPPED = 0.02  # share of a feature's values at its minimum from which that minimum is the floor of an activation


class RefiningDecoder(nn.Module):
    """Restore a feature from its latent: a linear map, then learned corrections.

    Args:
        geometry: Layout of the feature.
        channels: Number of channels of the latent.

    Shapes:
        z_hat ``(batch, channels, *geometry.latent_space)``; result ``(batch, geometry.channels, *space)``.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> RefiningDecoder(Geometry((16, 30, 32)), channels=4)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 16, 30, 32])

    Source: this project.
    """

    level: Tensor
    floor: Tensor

    def __init__(self, geometry: Geometry, channels: int) -> None:
        super().__init__()
        self.geometry = geometry
        axes, inner = len(geometry.space), geometry.channels
        self.unmix = WaveMix(geometry, described_by(geometry)) if rides_waves(geometry) else None
        if self.unmix is None:
            self.inverse = _enlarge(geometry, channels, inner, bias=False)
        else:
            self.inverse = _CONVOLUTIONS[axes](channels, described_by(geometry), 1, bias=False)
        self.mean = nn.Parameter(torch.zeros(inner, *geometry.tile))
        self.register_buffer("level", torch.ones(channels))
        self.register_buffer("floor", torch.tensor(torch.finfo(torch.float32).min))
        # All parts work in the units of the feature's channels, whatever these are.
        self.units = ChannelUnits(inner)
        self.folded = False  # whether the units have become a part of the weights
        self.register_load_state_dict_pre_hook(_take_former)
        self.enter = _convolution(axes, channels, _LATENT_WIDTH)
        self.latent_blocks = nn.ModuleList(_Residual(axes, _LATENT_WIDTH) for _ in range(_LATENT_BLOCKS))
        self.enlarge = _enlarge(geometry, _LATENT_WIDTH, _FEATURE_WIDTH, bias=True)
        self.look = _convolution(axes, inner, _FEATURE_WIDTH)
        self.feature_blocks = nn.ModuleList(_Residual(axes, _FEATURE_WIDTH) for _ in range(_FEATURE_BLOCKS))
        self.leave = _convolution(axes, _FEATURE_WIDTH, inner)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def start(self, directions: Directions, step: float, y: Tensor) -> None:
        """Become the linear inverse of an encoder.

        Args:
            directions: What the encoder measures.
            step: Units of the latent in which its numbers come.
            y: Features of one batch, which show the floor that an activation leaves.

        Examples:
            >>> import torch
            >>> from compoff.codec import Geometry, TileMoments
            >>> geometry, y = Geometry((2, 8), stride=4), torch.randn(50, 2, 8)
            >>> moments = TileMoments(geometry)
            >>> moments.add(y, torch.randn(50, 2, 8))
            >>> RefiningDecoder(geometry, 8).start(moments.directions(8), 1.0, y)
        """
        self.units.start(directions.units)
        near = self.units.give_back(_NEAR)
        rows, mixing = directions.synthesis.to(self.mean) * step, directions.mixing
        if self.unmix is not None and mixing is not None and mixing.wave is not None:
            self.unmix.start(mixing.synthesis, mixing.wave)
        weight = self.inverse.weight
        assert isinstance(weight, Tensor)
        transposed = self.geometry.space and self.unmix is None  # which lays its kernel out the other way round
        weight.copy_((rows if transposed else rows.T).view_as(weight))
        self.mean.copy_(directions.mean.to(near).view_as(self.mean) + near.view(-1, *(1,) * len(self.geometry.tile)))
        # Channels of less than a third of a step are mostly silent; amplifying their rare values would only add noise.
        self.level.copy_((directions.deviation / step).clamp_min(0.3))
        lowest = y.amin()
        at_floor = int((y == lowest).sum())
        clipped = at_floor > max(1, _CLIPPED * y.numel())  # the lowest of a few values is no floor
        self.floor.copy_(lowest if clipped else torch.full_like(lowest, torch.finfo(self.floor.dtype).min))

    @torch.no_grad()
    def fold(self) -> None:
        """Settle for inference, in place: the units become a part of the weights, which changes no result."""
        if self.unmix is not None:
            self.unmix.settle()
        if self.folded:
            return
        for parameter, settled in zip(self.leave.parameters(), self._leaving(), strict=True):
            parameter.copy_(settled)
        self.look.weight.copy_(self.units.scaled(self.look.weight))
        self.mean.copy_(self.units.multiplied(self.mean[None])[0])
        gives = self.factors[-1]  # a row for each of its inputs, but for a linear layer
        gives.copy_(self.units.multiplied(gives) if self.geometry.space else self.units.multiplied(gives.T).T)
        self.folded = True

    @property
    def factors(self) -> list[Tensor]:
        """The kernels that `start` sets, in the order in which they work."""
        parts = [self.inverse.weight, *([] if self.unmix is None else [self.unmix.core])]
        return [part for part in parts if isinstance(part, Tensor)]

    def forward(self, z_hat: Tensor) -> Tensor:
        """Decode.

        Args:
            z_hat: Quantized latent, ``(batch, channels, *geometry.latent_space)``.

        Returns:
            The feature, ``(batch, geometry.channels, *space)``.
        """
        linear = self.inverse(z_hat)
        if self.unmix is not None:
            linear = self.unmix.synthesize(linear)
        linear = linear + self.mean.repeat(1, *self.geometry.latent_space)
        inner = self.enter(z_hat / self.level.view(-1, *(1,) * len(self.geometry.space)))
        for block in self.latent_blocks:
            inner = block(inner)
        outer = self.enlarge(inner) + self.look(linear)
        for block in self.feature_blocks:
            outer = block(outer)
        outer = F.relu(outer)
        if self.folded:
            found = self.leave(outer)
        else:  # as folded, to the last bit
            axes = len(self.geometry.space)
            found = _CONVOLVE[axes](outer, *self._leaving(), **({"padding": 1} if axes else {}))
            linear = self.units.multiplied(linear)
        return self.geometry.crop(torch.maximum(linear + found, self.floor))

    def _leaving(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the last layer in the feature's own units; the shifts of the channels are in the bias."""
        scale, (weight, bias) = self.units.scale, self.leave.parameters()
        return weight * scale.view(-1, *(1,) * (weight.dim() - 1)), bias * scale + self.units.shift


class _Residual(nn.Module):
    """Two convolutions around a skip connection, activation first."""

    def __init__(self, axes: int, width: int) -> None:
        super().__init__()
        self.first = _convolution(axes, width, width)
        self.second = _convolution(axes, width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions found."""
        return x + self.second(F.relu(self.first(F.relu(x))))


def _take_former(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before weights are loaded that know one unit for all channels, or none: they were learned around zero.

    The linear inverse and the mean were in the feature's own unit then, and only the networks in that one.
    """
    del module, rest
    if f"{prefix}mean" not in state or f"{prefix}units.scale" in state:
        return
    mean: Tensor = state[f"{prefix}mean"]
    unit: Tensor = state.pop(f"{prefix}unit", torch.ones((), device="cpu"))
    state[f"{prefix}units.shift"] = mean.new_zeros(len(mean))
    state[f"{prefix}units.scale"] = unit.to(mean).expand(len(mean)).clone()
    for name in ("mean", "inverse.weight"):
        state[f"{prefix}{name}"] = state[f"{prefix}{name}"] / unit.to(mean)


def _convolution(axes: int, in_channels: int, out_channels: int) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """A convolution over neighbors that keeps the size; a linear layer where there is no space."""
    if not axes:
        return nn.Linear(in_channels, out_channels)
    return _CONVOLUTIONS[axes](in_channels, out_channels, 3, padding=1)


def _enlarge(geometry: Geometry, in_channels: int, out_channels: int, *, bias: bool) -> nn.Module:
    """The counterpart of the encoder: one latent position becomes one tile."""
    if not geometry.space:
        return nn.Linear(in_channels, out_channels, bias=bias)
    tile = geometry.tile
    return _TRANSPOSED[len(tile)](in_channels, out_channels, tile, stride=tile, bias=bias)  # pyright: ignore[reportArgumentType]
