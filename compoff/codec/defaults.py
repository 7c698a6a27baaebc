"""How wide the tiles of the transform codec are and how many channels it has, where the user does not say."""

from __future__ import annotations

import math

from compoff.codec.geometry import Geometry
from compoff.codec.waves import described_by

__all__ = ["default_channels", "widest_stride"]

_MANY = 2048  # elements of a tile
_MOST_SYMBOLS = 25088  # of a sample, by default; 512 for each of 7 x 7 tiles


def widest_stride(shape: tuple[int, ...]) -> int:
    """Side of the widest tile that a start can be found for: wide tiles need fewer bytes.

    Args:
        shape: Shape of the feature without the batch axis.

    Returns:
        Up to 8 elements for a map, those that leave the least over at its borders; up to 64 for a sequence.

    Examples:
        >>> widest_stride((32, 16, 16)), widest_stride((1024, 14, 14)), widest_stride((80, 100))
        (8, 7, 16)

    Source: this project (docs/benchmarks/codec.md, what each choice is worth).
    """
    channels, *space = shape
    if len(space) < 2:
        side = 1
        while side < 64 and channels * (2 * side) ** len(space) <= _MANY:
            side *= 2
        return side
    # A tile of many elements has to be seen in several places of a map, or too few of them would stand for it.
    widest = max(side for side in range(1, 9) if channels * side**2 <= _MANY or 2 * side <= max(space) + 1)
    # What lies over the borders costs by its area; twice the width saves a fifth to a third.
    sides = range(widest, widest // 2, -1)
    return min(sides, key=lambda side: math.prod(Geometry(shape, side).padded) / math.sqrt(side))


def default_channels(geometry: Geometry) -> int:
    """Channels that hold all that a rate has a use for.

    What a quality does not send is neither computed nor exported, and where few bytes are aimed at, the last channels
    are silent; so there may be many. A network that is narrow, or whose output looks everywhere, needs most of them.

    Args:
        geometry: Layout of the feature.

    Returns:
        Number of channels.

    Examples:
        >>> from compoff.codec import Geometry
        >>> default_channels(Geometry((32, 16, 16), stride=8)), default_channels(Geometry((3, 224, 224), stride=8))
        (1024, 160)

    Source: this project (docs/benchmarks/codec.md, what each choice is worth).
    """
    # As many as the device's work allows where all are sent; of many tiles, fewer a tile.
    few = max(192, min(1024, _MOST_SYMBOLS // math.prod(geometry.latent_space)))
    # The last sixth of a small tile is noise to the network; from pixels at 224 x 224 this makes 24 MMAC.
    return min(few, max(1, described_by(geometry) * 5 // 6))
