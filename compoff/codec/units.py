"""The units of a feature's channels: where each lies, and about what it deviates by.

Inside the transform codec every channel is a number around zero of about one, whatever it is a measure of: steps of one
size then suit all weights. For inference the units become a part of the weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from compoff.errors import FeatureError

__all__ = ["ChannelMoments", "ChannelUnits"]

_PEAK = 16.0  # deviations that a channel's largest value has at most: of one that seldom speaks they would be too small
_DIGITS = 2.0**-22  # share of a channel's middle below which its deviation is nothing but rounding
_EXPONENT = 60.0  # of the smallest and the largest unit: even their squares are float32 numbers


class ChannelUnits(nn.Module):
    """A middle and a unit for each channel: zero and one until they are known.

    Args:
        channels: Channels of the feature.

    Shapes:
        y and results ``(batch, channels, *space)``.

    Source: this project.
    """

    shift: Tensor
    """The middle of each channel."""
    scale: Tensor
    """About what each deviates by; powers of two, so that to divide by them rounds nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_load_state_dict_pre_hook(_take_former)

    @torch.no_grad()
    def start(self, units: ChannelUnits | None) -> None:
        """Take the units of directions; zero and one where they know none."""
        if units is None:
            self.shift.zero_()
            self.scale.fill_(1.0)
            return
        self.shift.copy_(units.shift)
        self.scale.copy_(units.scale)

    def standardized(self, y: Tensor) -> Tensor:
        """A feature in these units."""
        return (y - self._wide(self.shift, y)) / self._wide(self.scale, y)

    def scaled(self, y: Tensor) -> Tensor:
        """A feature in these units, but around its own zero: not a bit of it is rounded."""
        return y / self._wide(self.scale, y)

    def multiplied(self, gradient: Tensor) -> Tensor:
        """A gradient at a feature, as that at the feature in these units."""
        return gradient * self._wide(self.scale, gradient)

    @property
    def level(self) -> Tensor:
        """The middles in these units: what `scaled` has more than `standardized`."""
        return self.shift / self.scale

    @staticmethod
    def _wide(values: Tensor, y: Tensor) -> Tensor:
        return values.to(y).view(-1, *(1,) * (y.dim() - 2))


class ChannelMoments:
    """What tells the units of a feature's channels.

    Args:
        channels: Channels of the feature.

    Examples:
        >>> import torch
        >>> moments = ChannelMoments(2)
        >>> moments.add(torch.tensor([[280.0, 1e5], [296.0, 1.01e5]]))
        >>> units = moments.units()
        >>> units.shift.tolist(), units.scale.tolist()
        ([288.0, 100500.0], [8.0, 512.0])
        >>> units.standardized(torch.tensor([[280.0, 100500.0]])).tolist()
        [[-1.0, 0.0]]

    Source: this project.
    """

    def __init__(self, channels: int) -> None:
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._square = torch.zeros(channels, dtype=torch.float64)
        self._least = torch.full((channels,), math.inf, dtype=torch.float64)
        self._most = torch.full((channels,), -math.inf, dtype=torch.float64)
        self._shift: Tensor | None = None  # a mean far from zero would leave nothing of float32's digits
        self._count = 0

    def add(self, y: Tensor) -> None:
        """Count the values of one batch.

        Args:
            y: The feature, in float32.

        Shapes:
            y ``(batch, channels, *space)``.
        """
        lines = y.transpose(0, 1).flatten(1)
        if self._shift is None:
            self._shift = lines.mean(1, dtype=torch.float64).float()
        lines = lines - self._shift[:, None]
        self._sum += lines.sum(1, dtype=torch.float64).cpu()
        self._square += lines.square().sum(1, dtype=torch.float64).cpu()
        self._least = torch.minimum(self._least, lines.amin(1).cpu().double())
        self._most = torch.maximum(self._most, lines.amax(1).cpu().double())
        self._count += lines.shape[1]

    def units(self) -> ChannelUnits:
        """The units, as far as it has been seen: zero and one where nothing has.

        Returns:
            The units.

        Raises:
            FeatureError: Squares of such numbers are none of float32's.
        """
        units = ChannelUnits(len(self._sum))
        if self._shift is None:
            return units
        mean = self._sum / self._count
        deviation = (self._square / self._count - mean.square()).clamp_min(0).sqrt()
        peak = torch.maximum(self._most - mean, mean - self._least)
        if not (float(peak.max()) == 0 or 2**-_EXPONENT <= float(peak.max()) <= 2**_EXPONENT):
            raise FeatureError(
                f"a feature deviates by up to {float(peak.max()):.1e}; the transform codec takes what deviates by "
                "1e-18 to 1e18: bring it to a size near 1"
            )
        middle = mean + self._shift.cpu().double()
        spread = torch.maximum(deviation, peak / _PEAK)
        spread = spread.where(spread > _DIGITS * middle.abs(), 0.0)
        together = spread.square().mean().sqrt()  # what a channel that never moved is given, in case it does
        spread = spread.where(spread > 0, together if float(together) > 0 else 1.0)
        units.shift.copy_(middle)
        units.scale.copy_(spread.log2().round().clamp(-_EXPONENT, _EXPONENT).exp2())
        return units


def _take_former(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before weights are loaded that know no units: they are for the feature's own, around zero."""
    del rest
    assert isinstance(module, ChannelUnits)
    if not any(name.startswith(prefix) for name in state):
        state[f"{prefix}shift"], state[f"{prefix}scale"] = torch.zeros_like(module.shift), torch.ones_like(module.scale)
