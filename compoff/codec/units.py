"""The units of a feature's channels: how much of each moves the output as far, and what they lie around.

Inside the transform codec every channel is a number near zero that counts as much as that of any other, whatever it is
a measure of: steps of one size then suit all weights. For inference the units become a part of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from compoff.errors import FeatureError

__all__ = ["ChannelMoments", "ChannelUnits"]

_SMALL = 1 / 256  # deviation in its unit that a channel has at least, of which the output hardly knows
_DIGITS = 2.0**-22  # share of a channel's middle below which its deviation is nothing but rounding
_EXPONENT = 60.0  # of the smallest and the largest unit: even their squares are float32 numbers


class ChannelUnits(nn.Module):
    """A shift and a unit for each channel: zero and one until they are known.

    Args:
        channels: Channels of the feature.

    Shapes:
        y and results ``(batch, channels, *space)``.

    Source: this project.
    """

    shift: Tensor
    """What is taken away from each channel."""
    scale: Tensor
    """The unit of each; powers of two, so that to divide by them rounds nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_load_state_dict_pre_hook(_take_former)

    @torch.no_grad()
    def start(self, units: ChannelUnits) -> None:
        """Take the units of directions."""
        self.shift.copy_(units.shift)
        self.scale.copy_(units.scale)

    @torch.no_grad()
    def give_back(self, most: float) -> Tensor:
        """Shift each channel less.

        Args:
            most: How much less, in units; a shift that is smaller ends.

        Returns:
            What each channel is shifted less, in its unit.

        Shapes:
            result ``(channels,)``.

        Examples:
            >>> import torch
            >>> units = ChannelUnits(2)
            >>> units.shift.copy_(torch.tensor([-1.5, 20.0]))
            tensor([-1.5000, 20.0000])
            >>> units.give_back(2.0).tolist(), units.shift.tolist()
            ([-1.5, 2.0], [0.0, 18.0])
        """
        less = self.level.clamp(-most, most)
        self.shift.sub_(less * self.scale)
        return less

    def standardized(self, y: Tensor) -> Tensor:
        """A feature in these units."""
        return (y - self._wide(self.shift, y)) / self._wide(self.scale, y)

    def scaled(self, y: Tensor) -> Tensor:
        """A feature in these units, but around its own zero: not a bit of it is rounded."""
        return y / self._wide(self.scale, y)

    def multiplied(self, values: Tensor) -> Tensor:
        """The reverse of `scaled`; of a gradient at a feature, that at the feature in these units."""
        return values * self._wide(self.scale, values)

    @property
    def level(self) -> Tensor:
        """The shifts in these units: what `scaled` has more than `standardized`."""
        return self.shift / self.scale

    @staticmethod
    def _wide(values: Tensor, y: Tensor) -> Tensor:
        return values.to(y).view(-1, *(1,) * (y.dim() - 2))


class ChannelMoments:
    """What tells the units of a feature's channels: their means and deviations, and the output's gradients there.

    A unit that were the deviation alone would make as much of channels that count for little as of those that count,
    and the steps of a fit would move them alike.

    Args:
        channels: Channels of the feature.

    Examples:
        >>> import torch
        >>> moments = ChannelMoments(2)
        >>> moments.add(torch.tensor([[280.0, 1e5], [296.0, 1.01e5]]), torch.tensor([[1.0, 0.01], [-1.0, 0.01]]))
        >>> units = moments.units()
        >>> units.shift.tolist(), units.scale.tolist()
        ([288.0, 100500.0], [8.0, 512.0])
        >>> units.standardized(torch.tensor([[280.0, 100756.0]])).tolist()
        [[-1.0, 0.5]]

    Source: this project.
    """

    def __init__(self, channels: int) -> None:
        self._sum = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self._square = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self._slope = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self._shift: Tensor | None = None  # a mean far from zero would leave nothing of float32's digits
        self._largest = 0.0
        self._count = 0

    def add(self, y: Tensor, gradient: Tensor) -> None:
        """Count the values of one batch.

        Args:
            y: The feature, in float32.
            gradient: Gradient of some projection of the output at it; batches of the same size count alike.

        Shapes:
            y and gradient ``(batch, channels, *space)``.
        """
        lines = y.transpose(0, 1).flatten(1).cpu()  # not every device has float64
        if self._shift is None:
            self._shift = lines.mean(1, dtype=torch.float64).float()
        lines = lines - self._shift[:, None]
        self._sum += lines.sum(1, dtype=torch.float64)
        self._square += lines.square().sum(1, dtype=torch.float64)
        self._largest = max(self._largest, float(lines.abs().max()))
        self._slope += gradient.transpose(0, 1).flatten(1).square().cpu().sum(1, dtype=torch.float64)
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
        if not (self._largest == 0 or 2**-_EXPONENT <= self._largest <= 2**_EXPONENT):
            raise FeatureError(
                f"a feature deviates by up to {self._largest:.1e}; the transform codec takes what deviates by 1e-18 to "
                "1e18: bring it to a size near 1"
            )
        mean = self._sum / self._count
        deviation = (self._square / self._count - mean.square()).clamp_min(0).sqrt()
        middle = mean + self._shift.double()
        deviation = deviation.where(deviation > _DIGITS * middle.abs(), 0.0)
        scale = _counting_alike(deviation, (self._slope / self._count).sqrt())
        scale = scale.log2().round().clamp(-_EXPONENT, _EXPONENT).exp2()
        units.scale.copy_(scale)
        units.shift.copy_(middle)
        return units


def _counting_alike(deviation: Tensor, slope: Tensor) -> Tensor:
    """Units in which the output's gradients are equally large, and a typical channel deviates by one."""
    typical = (deviation * slope).square().mean().sqrt()
    if float(typical) == 0:  # nothing moves, or the output does not care
        scale = deviation
    else:
        scale = torch.minimum(typical / slope, deviation.where(deviation > 0, math.inf) / _SMALL)
    known = (scale > 0) & (scale < math.inf)
    if not bool(known.any()):
        return torch.ones_like(scale)
    return scale.where(known, scale[known].max())  # what never moved and never counted, in case that it does


def _take_former(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before weights are loaded that know no units: they are for the feature's own, around zero."""
    del rest
    assert isinstance(module, ChannelUnits)
    if not any(name.startswith(prefix) for name in state):
        state[f"{prefix}shift"], state[f"{prefix}scale"] = torch.zeros_like(module.shift), torch.ones_like(module.scale)
