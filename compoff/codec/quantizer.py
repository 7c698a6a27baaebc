"""The quantizer: a few learned centers; every latent value becomes the index of the nearest.

Hard assignment is what travels; soft assignment is what the gradient sees. Knows nothing of rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Quantizer", "hard_assign", "look_up", "soft_assign"]

# Latents are scaled so that their standard deviation is this many units at the start: with 8 centers over ±2.5
# deviations and temperature 1, Eq. 13 then shares a value between two or three centers, neither all nor one.
_LATENT_DEVIATION = 4.0
_SPAN = 2.5


def hard_assign(latent: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest center for every latent value.

    Args:
        latent: Encoder output.
        centers: The quantization levels.

    Returns:
        Indices, uint8 (there are at most 256 centers). The lower index wins a tie.

    Shapes:
        latent ``(batch, channels, *space)``; centers ``(num_centers,)``; result like latent.

    Examples:
        >>> import torch
        >>> hard_assign(torch.tensor([0.2, 0.9, -3.0]), torch.tensor([0.0, 1.0])).tolist()
        [0, 1, 0]

    Source: DeepCOD (SenSys 2020), Sec. 3.4.1, Eq. 12.
    """
    distances = (latent.unsqueeze(-1) - centers).abs()  # (batch, channels, *space, num_centers)
    return distances.argmin(-1).to(torch.uint8)


def soft_assign(latent: Tensor, centers: Tensor, sharpness: float = 1.0, power: int = 2) -> Tensor:
    """Share of every center in a latent value: the differentiable side of `hard_assign`.

    Args:
        latent: Encoder output.
        centers: The quantization levels.
        sharpness: The paper's annealing factor ν, constant 1 there.
        power: 1 for the distance as Eq. 13 prints it, 2 for its square, as the authors' code has it.

    Returns:
        Weights that sum to 1 over the last axis; Eq. 13's value is their product with `centers`.

    Shapes:
        latent ``(batch, channels, *space)``; centers ``(num_centers,)``;
        result ``(batch, channels, *space, num_centers)``.

    Examples:
        >>> import torch
        >>> soft_assign(torch.tensor([0.5]), torch.tensor([0.0, 1.0])).tolist()
        [[0.5, 0.5]]

    Source: DeepCOD (SenSys 2020), Sec. 3.4.1, Eq. 13.
    """
    distances = (latent.unsqueeze(-1) - centers).abs()
    return torch.softmax(-sharpness * distances**power, dim=-1)


def look_up(symbols: Tensor, centers: Tensor) -> Tensor:
    """Center of every symbol.

    Args:
        symbols: Indices as `hard_assign` gives them.
        centers: The quantization levels.

    Returns:
        The quantized latent.

    Shapes:
        symbols ``(batch, channels, *space)``; centers ``(num_centers,)``; result like symbols.

    Examples:
        >>> import torch
        >>> look_up(torch.tensor([[1, 0]], dtype=torch.uint8), torch.tensor([-1.0, 1.0])).tolist()
        [[1.0, -1.0]]

    Source: DeepCOD (SenSys 2020), Sec. 3.4.1.
    """
    # An index of uint8 is a mask in PyTorch, hence the cast.
    return torch.nn.functional.embedding(symbols.to(torch.int32), centers.unsqueeze(-1)).squeeze(-1)


class Quantizer(nn.Module):
    """Learned centers, shared by all channels of a latent.

    Args:
        num_centers: Number of centers, 2 to 256.
        sharpness: The paper's annealing factor ν.
        power: Power of the distance in Eq. 13; see `soft_assign`.

    Shapes:
        latent and result ``(batch, channels, *space)``; symbols likewise, uint8.

    Examples:
        >>> import torch
        >>> quantizer = Quantizer(num_centers=4)
        >>> latent = torch.linspace(-1, 1, 8).reshape(1, 1, 8)
        >>> quantizer.calibrate(latent)
        >>> torch.equal(quantizer.dequantize(quantizer.symbols(latent)), quantizer.eval()(latent)[0])
        True

    Source: DeepCOD (SenSys 2020), Sec. 3.4.1, Eq. 12-13.
    """

    gain: Tensor

    def __init__(self, num_centers: int = 8, *, sharpness: float = 1.0, power: int = 2) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.power = power
        self.centers = nn.Parameter(torch.linspace(-_SPAN, _SPAN, num_centers) * _LATENT_DEVIATION)
        self.register_buffer("gain", torch.ones(()))

    @property
    def num_centers(self) -> int:
        """Number of centers."""
        return len(self.centers)

    @torch.no_grad()
    def calibrate(self, latent: Tensor) -> None:
        """Choose the unit of the centers from real latents.

        The paper's ν = 1 means nothing without a unit; a fixed gain sets it, so that it suits features of any size.

        Args:
            latent: Latents of one batch.

        Examples:
            >>> import torch
            >>> quantizer = Quantizer()
            >>> quantizer.calibrate(torch.randn(4, 2, 8, 8))

        Source: this project.
        """
        deviation = latent.float().std(unbiased=False)
        # Latents that are all alike show no unit.
        gain = torch.where(deviation > 0, _LATENT_DEVIATION / deviation.clamp_min(1e-12), 1.0)
        self.gain.copy_(gain)
        centers = torch.linspace(-_SPAN, _SPAN, self.num_centers, device=latent.device) * _LATENT_DEVIATION
        self.centers.copy_(centers + latent.float().mean() * self.gain)

    def scaled(self, latent: Tensor) -> Tensor:
        """The latent in units of the centers.

        Args:
            latent: Encoder output.

        Returns:
            The same, scaled.
        """
        return latent * self.gain

    def symbols(self, latent: Tensor) -> Tensor:
        """Index of the nearest center, uint8; see `hard_assign`.

        Args:
            latent: Encoder output.

        Returns:
            The symbols.
        """
        return self.nearest(self.scaled(latent))

    def nearest(self, scaled: Tensor) -> Tensor:
        """Index of the nearest center of what is scaled already, uint8.

        Args:
            scaled: As `scaled` gives it.

        Returns:
            The symbols.
        """
        return hard_assign(scaled, self.centers)

    def dequantize(self, symbols: Tensor) -> Tensor:
        """Center of every symbol; see `look_up`.

        Args:
            symbols: Indices of centers.

        Returns:
            The quantized latent, in units of the centers.
        """
        return look_up(symbols, self.centers)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize with a straight-through gradient.

        Args:
            latent: Encoder output.

        Returns:
            The quantized latent (the hard value, with the soft value's gradient) and the weight of each center for
            each value: soft with a straight-through hard value while training, one-hot otherwise.
        """
        scaled = self.scaled(latent)
        symbols = hard_assign(scaled, self.centers)
        hard = torch.nn.functional.one_hot(symbols.long(), self.num_centers).to(scaled.dtype)
        if not self.training:
            return look_up(symbols, self.centers), hard
        soft = soft_assign(scaled, self.centers, self.sharpness, self.power)
        soft_value = soft @ self.centers
        # The value is the hard one to the last bit, so that training sees what will travel: x - x.detach() is zero and
        # carries the soft value's gradient (STE).
        quantized = look_up(symbols, self.centers).detach() + (soft_value - soft_value.detach())
        return quantized, hard + (soft - soft.detach())
