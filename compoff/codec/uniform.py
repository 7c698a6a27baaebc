"""The uniform quantizer: whole steps, the same for every channel, and their coarser multiples.

The encoder's scale decides how fine a channel is measured; the prior, not the number of levels, decides what a value
costs. Knows nothing of rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compoff.errors import FeatureError

__all__ = ["UniformQuantizer", "coarsen"]


def coarsen(values: Tensor, step: Tensor | int) -> Tensor:
    """Round whole steps to multiples of a coarser step.

    Both sides of the wire do the same with whole numbers (`compoff.coding.levels`), so that one encoder serves every
    step.

    Args:
        values: Whole numbers, in a floating-point dtype.
        step: The coarser step, a whole number of at least 1; one for all, or broadcast over `values`.

    Returns:
        The nearest multiples; halves go up.

    Shapes:
        Result like values.

    Examples:
        >>> import torch
        >>> coarsen(torch.tensor([-2.0, -1.0, 1.0, 2.0, 4.0]), 3).tolist()
        [-3.0, 0.0, 0.0, 3.0, 3.0]

    Source: this project.
    """
    if isinstance(step, int):
        return torch.floor((values + step // 2) / step) * step
    return torch.floor((values + torch.floor(step / 2)) / step) * step


class UniformQuantizer(nn.Module):
    """Whole numbers of steps, clamped to a fixed number of levels around zero.

    Args:
        channels: Number of channels of the latent.
        num_levels: Number of levels, odd, 3 to 255.

    Shapes:
        latent and values ``(batch, channels, *space)``; symbols likewise, uint8.

    Raises:
        FeatureError: `num_levels` is even or out of range.

    Examples:
        >>> import torch
        >>> quantizer = UniformQuantizer(channels=1, num_levels=7)
        >>> symbols = quantizer.symbols(torch.tensor([[0.2, -1.4, 9.0]]).unsqueeze(0))
        >>> symbols.tolist(), quantizer.dequantize(symbols).tolist()
        ([[[3, 2, 6]]], [[[0.0, -1.0, 3.0]]])

    Source: this project.
    """

    centers: Tensor

    def __init__(self, channels: int, num_levels: int = 255) -> None:
        super().__init__()
        if not (3 <= num_levels <= 255 and num_levels % 2):
            raise FeatureError(f"num_centers is {num_levels}; a uniform quantizer takes an odd number from 3 to 255")
        self.register_buffer("centers", torch.arange(num_levels, dtype=torch.float32) - num_levels // 2)
        self.offset = nn.Parameter(torch.zeros(channels))
        self.log_gain = nn.Parameter(torch.zeros(channels))

    @property
    def num_centers(self) -> int:
        """Number of levels."""
        return len(self.centers)

    def _gain(self, values: Tensor) -> Tensor:
        return _per_channel(self.gain, values)

    def scaled(self, latent: Tensor) -> Tensor:
        """The latent in units of the finest step, not yet rounded.

        Args:
            latent: Encoder output.

        Returns:
            The same, scaled.
        """
        return (latent - _per_channel(self.offset, latent)) * self._gain(latent)

    def rounded(self, scaled: Tensor) -> Tensor:
        """Whole numbers of steps within the levels; differentiable no more.

        Args:
            scaled: As `scaled` gives it.

        Returns:
            Whole numbers in the same dtype.
        """
        half = self.num_centers // 2
        return scaled.round().clamp(-half, half)

    def restored(self, values: Tensor) -> Tensor:
        """Undo the gain of `scaled`, not its offset: zero, which stands for a channel that is not sent, stays zero.

        Args:
            values: Numbers of finest steps.

        Returns:
            The quantized latent around its offset, in units of the encoder's output.
        """
        return values / self._gain(values)

    def symbols(self, latent: Tensor) -> Tensor:
        """Index of the nearest level, uint8.

        Args:
            latent: Encoder output.

        Returns:
            The symbols; zero is the middle one.
        """
        return self.nearest(self.scaled(latent))

    def nearest(self, scaled: Tensor) -> Tensor:
        """Index of the nearest level of what is scaled already, uint8.

        Args:
            scaled: As `scaled` gives it.

        Returns:
            The symbols.
        """
        return (self.rounded(scaled) + self.num_centers // 2).to(torch.uint8)

    @property
    def gain(self) -> Tensor:
        """Factor of each channel."""
        return self.log_gain.exp()

    @property
    def bias(self) -> Tensor:
        """What `scaled` adds to each channel after the factor."""
        return -self.offset * self.gain

    def dequantize(self, symbols: Tensor) -> Tensor:
        """Level of every symbol.

        Args:
            symbols: Indices of levels.

        Returns:
            The quantized latent.
        """
        return self.restored(symbols.to(self.log_gain.dtype) - self.num_centers // 2)


def _per_channel(parameter: Tensor, values: Tensor) -> Tensor:
    return parameter.view(-1, *(1,) * (values.dim() - 2))
