"""How a feature's axes become what the codec works on: batch, channels, space.

A permutation, and for the tokens of a vision transformer a grid. Knows no parameters and no models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """Where batch, channels and space are in a feature.

    Args:
        order: Axes of the feature in the order batch, channels, space.
        grid: Height and width of the map that the tokens of a sequence make up; empty where there is none.
        leading: Number of tokens before those of the map, such as a class token; they become a row below it.

    Examples:
        >>> import torch
        >>> swin = Layout((0, 3, 1, 2))
        >>> swin.pack(torch.zeros(2, 7, 7, 96)).shape
        torch.Size([2, 96, 7, 7])
        >>> vit = Layout((0, 2, 1), grid=(14, 14), leading=1)
        >>> vit.pack(torch.zeros(2, 197, 192)).shape
        torch.Size([2, 192, 15, 14])

    Source: this project.
    """

    order: tuple[int, ...]
    grid: tuple[int, ...] = ()
    leading: int = 0

    @classmethod
    def channels_first(cls, dims: int) -> Layout:
        """The layout of a feature that needs no change.

        Args:
            dims: Number of its axes, the batch included.

        Returns:
            The layout.
        """
        return cls(tuple(range(dims)))

    def pack(self, y: Tensor) -> Tensor:
        """Bring a feature into the codec's layout.

        Args:
            y: The feature as the model has it.

        Returns:
            The same values: ``y`` itself where nothing changes.

        Shapes:
            Result ``(batch, channels, *space)`` with at most two axes of space.
        """
        moved = y if self.order == tuple(range(y.dim())) else y.permute(self.order)
        if self.grid:
            return self._to_grid(moved)
        if moved.dim() > 4:  # space and time: one after the other along the first axis
            return moved.flatten(2, -2)
        return moved

    def unpack(self, y_hat: Tensor, like: tuple[int, ...]) -> Tensor:
        """Undo `pack`.

        Args:
            y_hat: A feature in the codec's layout.
            like: Shape of the feature as the model has it, without the batch axis.

        Returns:
            The feature as the model has it.

        Examples:
            >>> import torch
            >>> vit, y = Layout((0, 2, 1), grid=(2, 3), leading=2), torch.randn(4, 8, 5)
            >>> torch.equal(vit.unpack(vit.pack(y), (8, 5)), y)
            True
        """
        if self.grid:
            y_hat = self._from_grid(y_hat)
        elif len(self.order) > 4:
            y_hat = y_hat.reshape(*y_hat.shape[:2], *self._without_batch(like)[1:])
        if self.order == tuple(range(len(self.order))):
            return y_hat
        inverse = [self.order.index(axis) for axis in range(len(self.order))]
        # Contiguous as the model's own, which it may look at as a flat vector.
        return y_hat.permute(inverse).contiguous()

    def packed_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a packed feature.

        Args:
            shape: Shape of the feature as the model has it, without the batch axis.

        Returns:
            Shape of one sample in the codec's layout.

        Examples:
            >>> Layout((0, 3, 1, 2)).packed_shape((7, 7, 96))
            (96, 7, 7)
        """
        sizes = self._without_batch(shape)
        if self.grid:
            return (sizes[0], self.grid[0] + (self.leading > 0), self.grid[1])
        if len(sizes) > 3:
            return (sizes[0], math.prod(sizes[1:-1]), sizes[-1])
        return sizes

    def batch_axis(self) -> int:
        """Axis of the feature that is the batch."""
        return self.order[0]

    def _without_batch(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes in the codec's order, from a shape that lacks the batch axis."""
        batch = self.order[0]
        return tuple(shape[axis - (axis > batch)] for axis in self.order[1:])

    def _to_grid(self, tokens: Tensor) -> Tensor:
        height, width = self.grid
        patches = tokens[..., self.leading :].reshape(*tokens.shape[:2], height, width)
        if not self.leading:
            return patches
        # A row of its own below the map, filled up with its last token so that no false edge appears in it.
        row = tokens[..., : self.leading]
        fill = row[..., -1:].expand(*row.shape[:-1], width - self.leading)
        return torch.cat([patches, torch.cat([row, fill], -1).unsqueeze(2)], 2)

    def _from_grid(self, packed: Tensor) -> Tensor:
        height, _ = self.grid
        patches = packed[:, :, :height].flatten(2)
        return torch.cat([packed[:, :, height, : self.leading], patches], 2) if self.leading else patches
