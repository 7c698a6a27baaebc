"""The density: how probable a latent value is in each channel, as a smooth function with gradients.

Gives the rate term of the loss at any step; the coder's tables lie with the prior. Knows no bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Density"]

_LEAST = 1e-9  # probability that a value is given at least, so that one far out costs 30 bits and not infinity


class Density(nn.Module):
    """A mixture of two logistic distributions around one center, for each channel.

    Two widths describe the peak and the tails of a transform's coefficients better than one.

    Args:
        channels: Number of channels of the latent.

    Shapes:
        values ``(batch, channels, *space)``, in units of the finest step.

    Examples:
        >>> import torch
        >>> density = Density(channels=2)
        >>> density.bits(torch.zeros(4, 2, 3)).shape
        torch.Size([4])

    Source: this project.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.zeros(channels))
        self.log_scales = nn.Parameter(torch.zeros(2, channels))
        self.mixture = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def start(self, deviation: Tensor) -> None:
        """Begin with the widths that channels of a known spread have.

        Args:
            deviation: Standard deviation of each channel, in units of the finest step.

        Examples:
            >>> import torch
            >>> Density(channels=2).start(torch.tensor([3.0, 0.1]))
        """
        # A logistic distribution of scale s deviates by 1.81 s: one scale at the channel's own width, one below it.
        self.log_scales.copy_(
            torch.stack([(0.55 * deviation).clamp_min(0.05), (0.25 * deviation).clamp_min(0.03)]).log()
        )

    def bits(self, values: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """Bits per sample that values rounded to a step cost.

        Args:
            values: Latent values; with uniform noise of the step's width in place of rounding, a differentiable bound.
            step: The step, one for all or one a sample.

        Returns:
            The bits of each sample.

        Shapes:
            values ``(batch, channels, *space)``; step a number or ``(batch,)``; result ``(batch,)``.

        Examples:
            >>> import torch
            >>> density = Density(channels=1)
            >>> fine, coarse = (density.bits(torch.zeros(1, 1, 1), step).item() for step in (1.0, 3.0))
            >>> fine > coarse
            True

        Source: Ballé et al., End-to-end Optimized Image Compression (ICLR 2017), Sec. 3.1 (noise for rounding).
        """
        if isinstance(step, Tensor):
            step = step.view(-1, *(1,) * (values.dim() - 1))
        shares = self._mass(values, step / 2)
        return -shares.clamp_min(_LEAST).log2().flatten(1).sum(1)

    def probabilities(self, num_levels: int) -> Tensor:
        """Probability of each whole step around zero.

        Args:
            num_levels: Number of levels, odd.

        Returns:
            Rows that sum to 1.

        Shapes:
            Result ``(channels, num_levels)``, float64 on the CPU.

        Examples:
            >>> Density(channels=2).probabilities(5).sum(1).tolist()
            [1.0, 1.0]
        """
        levels = torch.arange(num_levels, device=self.center.device) - num_levels // 2
        mass = self._mass(levels.to(self.center.dtype).expand(1, len(self.center), -1), 0.5)[0].cpu().double()
        return (mass + _LEAST) / (mass + _LEAST).sum(1, keepdim=True)

    def _mass(self, values: Tensor, half: Tensor | float) -> Tensor:
        """Probability between a half step below and above each value."""
        shape = (-1, *(1,) * (values.dim() - 2))
        distance = (values - self.center.view(shape)).abs()  # symmetric, and exact far from the center

        def logistic(log_scale: Tensor) -> Tensor:
            scale = log_scale.exp().view(shape)
            return torch.sigmoid((half - distance) / scale) - torch.sigmoid((-half - distance) / scale)

        share = torch.sigmoid(self.mixture).view(shape)
        return share * logistic(self.log_scales[0]) + (1 - share) * logistic(self.log_scales[1])
