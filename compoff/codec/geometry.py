"""How the feature of one sample is laid out, and how the encoder's stride tiles it.

Pads a feature up to whole tiles and crops the decoded one back, so that any size can be split. Knows no parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F

from compoff.checks import check_whole
from compoff.errors import FeatureError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """The shape of one sample's feature and the tiles the encoder cuts it into.

    Args:
        shape: Shape of the feature without the batch axis, channels first: ``(channels, height, width)``,
            ``(channels, time)`` or ``(features,)``.
        stride: Side of a tile, in elements; an axis shorter than the stride is one tile.

    Raises:
        FeatureError: The shape has no axis, more than three axes, or an empty one; or the stride is below 1.

    Examples:
        >>> geometry = Geometry((64, 55, 56), stride=4)
        >>> geometry.tile, geometry.padded, geometry.latent_space
        ((4, 4), (56, 56), (14, 14))

    Source: DeepCOD (SenSys 2020), Sec. 3.2.3 (kernel = stride = 4 by default).
    """

    shape: tuple[int, ...]
    stride: int = 4

    def __post_init__(self) -> None:
        check_whole("stride", self.stride)
        if not isinstance(self.shape, (tuple, list)) or not all(isinstance(size, int) for size in self.shape):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FeatureError(f"the shape is {self.shape!r:.80}; expected whole numbers, such as (64, 56, 56)")
        object.__setattr__(self, "shape", tuple(self.shape))  # a list would equal no shape
        if not 1 <= len(self.shape) <= 3 or min(self.shape) < 1:
            raise FeatureError(
                f"a feature of shape {self.shape} (without the batch) cannot be encoded; expected (channels, height, "
                "width), (channels, time) or (features,), none of them empty: choose another split point"
            )
        if self.stride < 1:
            raise FeatureError(f"stride is {self.stride}; expected a whole number of at least 1, such as 4")

    @property
    def channels(self) -> int:
        """Number of channels of the feature; for a flat feature, its length."""
        return self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        """Spatial or temporal sizes of the feature, in elements; empty for a flat feature."""
        return self.shape[1:]

    @property
    def tile(self) -> tuple[int, ...]:
        """Sides of one tile, in elements."""
        return tuple(min(self.stride, size) for size in self.space)

    @property
    def latent_space(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(-(-size // side) for size, side in zip(self.space, self.tile, strict=True))

    @property
    def padded(self) -> tuple[int, ...]:
        """Spatial sizes after padding up to whole tiles, in elements."""
        return tuple(count * side for count, side in zip(self.latent_space, self.tile, strict=True))

    @property
    def raw_bytes(self) -> int:
        """Size of one sample's feature in float32, in bytes."""
        size = 4
        for length in self.shape:
            size *= length
        return size

    def check(self, y: Tensor) -> None:
        """Refuse a feature that this geometry was not made for.

        Args:
            y: The feature, with a batch axis in front.

        Raises:
            FeatureError: The shape differs, the batch is empty, or the dtype is not floating point.

        Examples:
            >>> import torch
            >>> Geometry((8, 4, 4)).check(torch.zeros(2, 8, 4, 4))
        """
        if tuple(y.shape[1:]) != self.shape:
            raise FeatureError(
                f"the feature at this split point has shape {tuple(y.shape[1:])} per sample, but its codec was made "
                f"for {self.shape}; give inputs of the size that it was wrapped with, or wrap again for this size"
            )
        if y.shape[0] == 0:
            raise FeatureError("the feature at this split point holds no sample; give a batch of at least one")
        if not y.is_floating_point():
            raise FeatureError(f"the feature at this split point is {y.dtype}; expected a floating-point tensor")

    def pad(self, y: Tensor) -> Tensor:
        """Extend a feature to whole tiles by repeating its last rows and columns.

        Args:
            y: The feature.

        Returns:
            The padded feature; `y` itself where it already fits.

        Shapes:
            y ``(batch, channels, *space)``; result ``(batch, channels, *padded)``.

        Examples:
            >>> import torch
            >>> Geometry((1, 5)).pad(torch.arange(5.0).reshape(1, 1, 5)).tolist()
            [[[0.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0]]]

        Source: this project.
        """
        if self.padded == self.space:
            return y
        pads: list[int] = []
        for size, full in zip(reversed(self.space), reversed(self.padded), strict=True):
            pads += [0, full - size]
        # Repeating the edge keeps the tile's statistics; zeros would draw a false border into the latent.
        return F.pad(y, pads, mode="replicate")

    def crop(self, y_hat: Tensor) -> Tensor:
        """Undo `pad` exactly.

        Args:
            y_hat: The decoded feature at the padded size.

        Returns:
            The feature at its own size.

        Shapes:
            y_hat ``(batch, channels, *padded)``; result ``(batch, channels, *space)``.

        Examples:
            >>> import torch
            >>> geometry = Geometry((1, 5))
            >>> y = torch.arange(5.0).reshape(1, 1, 5)
            >>> torch.equal(geometry.crop(geometry.pad(y)), y)
            True

        Source: this project.
        """
        for axis, (size, full) in enumerate(zip(self.space, self.padded, strict=True), start=2):
            if size != full:
                y_hat = y_hat.narrow(axis, 0, size)
        # The model may look at a feature of its own as a flat vector, which it cannot where values lie between rows.
        return y_hat if self.space == self.padded else y_hat.contiguous()

    def tiles(self, y: Tensor) -> Tensor:
        """Cut a feature into tiles, each laid out as the encoder's kernel is.

        Args:
            y: The feature.

        Returns:
            One row a tile, sample by sample.

        Shapes:
            y ``(batch, channels, *space)``; result ``(batch * tiles, channels * elements of a tile)``.

        Examples:
            >>> import torch
            >>> Geometry((1, 4), stride=2).tiles(torch.arange(4.0).reshape(1, 1, 4)).tolist()
            [[0.0, 1.0], [2.0, 3.0]]

        Source: this project.
        """
        split = [size for pair in zip(self.latent_space, self.tile, strict=True) for size in pair]
        cut = self.pad(y).reshape(len(y), self.channels, *split)
        axes = len(self.tile)
        order = (0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
        return cut.permute(order).reshape(-1, self.tile_elements)

    @property
    def tile_elements(self) -> int:
        """Number of elements in one tile, all channels together."""
        return self.channels * math.prod(self.tile)
