"""What lies behind a split point as a network of its own, and the features that it takes, computed once and kept.

A codec is fitted on these as it would be in the whole network, without running what lies before the split point twice
in every step. For the networks of `benchmarks.tasks`, whose stages follow one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Behind", "KeptFeatures", "features_at"]

_STAGES = ("layer1", "layer2", "layer3", "layer4")


class Behind(nn.Module):
    """The stages from a split point on, under the names that they have in the whole network.

    Args:
        net: The network.
        split: Name of a stage.
    """

    def __init__(self, net: nn.Module, split: str) -> None:
        super().__init__()
        self.stages = [name for name in _STAGES if name >= split and hasattr(net, name)]
        self.classifier = "fc" if hasattr(net, "fc") else "linear"
        for name in (*self.stages, self.classifier):
            self.add_module(name, net.get_submodule(name))

    def forward(self, features: Tensor) -> Tensor:
        """Score every class for every image."""
        for name in self.stages:
            features = self.get_submodule(name)(features)
        return self.get_submodule(self.classifier)(nn.functional.adaptive_avg_pool2d(features, 1).flatten(1))


class KeptFeatures:
    """Batches of kept features, in a new order each round.

    Args:
        features: The features, in half precision.
        batch: Samples in a batch.
    """

    def __init__(self, features: Tensor, batch: int) -> None:
        self.features = features
        self.batch = batch

    def __len__(self) -> int:
        return len(self.features) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.features), device=self.features.device)[: len(self) * self.batch]
        for indices in order.view(-1, self.batch):
            yield self.features[indices].float()


@torch.inference_mode()
def features_at(net: nn.Module, split: str, images: Iterator[Tensor], count: int) -> Tensor:
    """The features that enter a stage, of as many images as are asked for.

    Args:
        net: The network.
        split: Name of the stage.
        images: Batches.
        count: Number of samples.

    Returns:
        The features in half precision, where the network is.
    """
    kept, where = list[Tensor](), next(net.parameters()).device

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        del module
        kept.append(args[0].half())

    handle = net.get_submodule(split).register_forward_pre_hook(keep)
    try:
        while sum(len(piece) for piece in kept) < count:
            net(next(images).to(where))
    finally:
        handle.remove()
    return torch.cat(kept)[:count].clone()
