"""A codec as it is shipped: without the channels that none of its qualities sends."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch

from compoff.codec.refiner import RefiningDecoder
from compoff.codec.transform import TransformBottleneck

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.codec.bottleneck import Bottleneck

__all__ = ["trimmed"]

_TOGETHER = 32  # channels; kernels like such numbers, and another fit of the same codec often has as many


def trimmed(bottleneck: Bottleneck) -> Bottleneck:
    """Leave out the last channels, where no quality sends them.

    What is not sent is zero to the decoder and adds nothing, so the answers are the same; a wrapped model has channels
    for every rate that a fit may be aimed at, and a device need not store them. They come and go by 32.

    Args:
        bottleneck: The bottleneck, its symbols counted.

    Returns:
        A copy of its own with fewer channels; with as many where all are sent or the decoder is the user's own.

    Examples:
        >>> from compoff.codec import Geometry, TransformBottleneck
        >>> bottleneck = TransformBottleneck(Geometry((8, 8, 8), stride=4), channels=100)
        >>> counts = torch.zeros(100, 255)
        >>> counts[:, 127] = 1e6  # nothing but zeros,
        >>> counts[:40, 120:135] = 1000  # but for the first forty channels
        >>> bottleneck.prior.count(counts)
        >>> trimmed(bottleneck).latent_shape
        (64, 2, 2)

    Source: this project.
    """
    if not (isinstance(bottleneck, TransformBottleneck) and type(bottleneck.decoder) is RefiningDecoder):
        return copy.deepcopy(bottleneck)
    sent = max(quality.channels for quality in bottleneck.qualities())
    sent = min(bottleneck.latent_shape[0], math.ceil(sent / _TOGETHER) * _TOGETHER)
    with torch.device("meta"):  # starting weights take long, and none of them stays
        narrow = TransformBottleneck(bottleneck.geometry, sent, bottleneck.num_centers)
    narrow.adapter = copy.deepcopy(bottleneck.adapter)
    shapes = {name: value.shape for name, value in narrow.state_dict().items()}
    state = {name: _first(value, shapes.get(name, value.shape)) for name, value in bottleneck.state_dict().items()}
    narrow.load_state_dict(state, assign=True)
    return narrow.train(bottleneck.training)


def _first(value: Tensor, shape: torch.Size) -> Tensor:
    """The first entries along each axis, in memory of their own."""
    return value[tuple(slice(size) for size in shape)].clone()
