"""The adapter: a scale and a shift for each channel of layers behind the split point, nothing at first.

What a frozen tail makes of restored features is a little off everywhere; a few numbers a layer take part of that back.
Knows tensors, not models: where it is put in is the gate's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Adapter"]


class Adapter(nn.Module):
    """Scale and shift the channels of several tensors; the identity until it is trained.

    Args:
        places: Number of channels of each tensor, and the axis on which they lie.

    Shapes:
        tensor and result alike, ``channels`` long at the axis.

    Examples:
        >>> import torch
        >>> adapter = Adapter([(8, 1), (4, -1)])
        >>> y = torch.randn(2, 8, 3, 3)
        >>> torch.equal(adapter(0, y), y), adapter.bytes
        (True, 96)

    Source: this project; Li et al., Adaptive Batch Normalization (2018), for how little it takes.
    """

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.axes = tuple(axis for _, axis in places)
        # One parameter a tensor, the scales' difference from 1 above the shifts.
        self.deltas = nn.ParameterList(torch.zeros(2, channels, dtype=torch.float32) for channels, _ in places)

    @property
    def bytes(self) -> int:
        """Size of its numbers, in bytes."""
        return sum(delta.numel() * delta.element_size() for delta in self.deltas)

    def forward(self, index: int, tensor: Tensor) -> Tensor:
        """Scale and shift one tensor.

        Args:
            index: Which one.
            tensor: The tensor.

        Returns:
            The same, adapted.
        """
        delta = cast("Tensor", self.deltas[index]).to(tensor)  # which may be on another card
        shape = [1] * tensor.dim()
        shape[self.axes[index]] = -1
        return tensor * (1 + delta[0]).view(shape) + delta[1].view(shape)

    def nothing(self) -> Tensor:
        """Zero that depends on every number here, for a loss that has to reach them all.

        Returns:
            A scalar.

        Examples:
            >>> float(Adapter([(8, 1)]).nothing().detach())
            0.0
        """
        return torch.stack([0 * delta.sum() for delta in self.deltas]).sum()
