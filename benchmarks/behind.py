"""A network's parts before and behind a split point as networks of their own, and the features between them, kept.

A codec is fitted and measured on these as it would be in the whole network, without running what lies before the split
point again and again. For the networks of `benchmarks.tasks`, whose stages follow one another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Before", "Behind", "KeptFeatures", "features_at", "in_stages"]

_STAGES = ("layer1", "layer2", "layer3", "layer4")
_STEM = ("conv1", "bn1", "maxpool")


def in_stages(net: nn.Module) -> bool:
    """Whether a network is made of stages that follow one another, so that it can be parted here."""
    return hasattr(net, _STAGES[0])


class _Part(nn.Module):
    """Some of a network's modules, under the names that they have in the whole network.

    Args:
        net: The network.
        names: Which of them, as far as the network has them.
    """

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = [name for name in names if hasattr(net, name)]
        for name in self.names:
            self.add_module(name, net.get_submodule(name))

    def through(self, features: Tensor) -> Tensor:
        """Run stem and stages in turn."""
        for name in self.names:
            if name in (*_STEM, *_STAGES):
                features = self.get_submodule(name)(features)
            if name == "bn1":
                features = nn.functional.relu(features)
        return features


class Before(_Part):
    """The stem and the stages up to a split point.

    Args:
        net: The network.
        split: ``"input"`` or the name of a stage.
    """

    def __init__(self, net: nn.Module, split: str) -> None:
        stages = tuple(name for name in _STAGES if name < split)
        super().__init__(net, () if split == "input" else (*_STEM, *stages))

    def forward(self, images: Tensor) -> Tensor:
        """The feature at the split point."""
        return self.through(images)


class Behind(_Part):
    """What lies behind a split point.

    Args:
        net: The network.
        split: ``"input"`` or the name of a stage.
        reduced: Whether to compute in bfloat16 where autocast does, the scores in float32 again.
    """

    def __init__(self, net: nn.Module, split: str, *, reduced: bool = False) -> None:
        whole = split == "input"
        stages = tuple(name for name in _STAGES if whole or name >= split)
        super().__init__(net, (*(_STEM if whole else ()), *stages, "fc", "linear"))
        self.reduced = reduced

    def forward(self, features: Tensor) -> Tensor:
        """Score every class for every image."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.reduced):
            pooled = nn.functional.adaptive_avg_pool2d(self.through(features), 1).flatten(1)
            return self.get_submodule(self.names[-1])(pooled).float()


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
def features_at(
    net: nn.Module, split: str, images: Iterator[Tensor], count: int, before: nn.Module | None = None
) -> Tensor:
    """The features that enter a stage, of as many images as are asked for.

    Args:
        net: The network.
        split: ``"input"`` or the name of a stage.
        images: Batches.
        count: Number of samples.
        before: What lies before the stage, where something else than PyTorch runs it.

    Returns:
        The features in half precision, where the network is.
    """
    where, before, done = next(net.parameters()).device, before or Before(net, split), 0
    kept = torch.empty(0)
    while done < count:
        made = before(next(images).to(where))[: count - done]
        if not done:  # one piece from the start: these may take a good part of the memory
            kept = made.new_empty(count, *made.shape[1:], dtype=torch.half)
        kept[done : done + len(made)] = made
        done += len(made)
    return kept
