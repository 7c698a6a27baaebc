"""Networks with an answer for every pixel: segmentation and super-resolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, images
from benchmarks.zoo.library_shim import import_torchvision

__all__ = ["DENSE"]


def _convolutions(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (in_channels, channels):
        layers += [nn.Conv2d(size, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of four levels; each level on the way up reads the one on the way down.

    Args:
        width: Channels of the first level.
        num_classes: Number of classes.

    Shapes:
        Images ``(batch, 3, height, width)`` to logits ``(batch, classes, height, width)``; sides are multiples of 8.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.down1 = _convolutions(3, width)
        self.down2 = _convolutions(width, 2 * width)
        self.down3 = _convolutions(2 * width, 4 * width)
        self.middle = _convolutions(4 * width, 8 * width)
        self.pool = nn.MaxPool2d(2)
        self.up3 = _convolutions(12 * width, 4 * width)
        self.up2 = _convolutions(6 * width, 2 * width)
        self.up1 = _convolutions(3 * width, width)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Score the classes of every pixel."""
        first = self.down1(images)
        second = self.down2(self.pool(first))
        third = self.down3(self.pool(second))
        y = self.middle(self.pool(third))
        for up, skip in ((self.up3, third), (self.up2, second), (self.up1, first)):
            y = up(torch.cat([skip, F.interpolate(y, scale_factor=2)], 1))
        return self.classifier(y)


class Edsr(nn.Module):
    """Super-resolution by residual blocks, around all of which the first features go.

    Args:
        width: Channels.
        blocks: Number of residual blocks.

    Shapes:
        Images ``(batch, 3, height, width)`` to ``(batch, 3, 2 height, 2 width)``.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, images: Tensor) -> Tensor:
        """Double the resolution."""
        first = y = self.first(images)
        for block in self.blocks:
            y = y + block(y)
        return self.last(y + first)


def _small_backbone(layers: dict[str, str]) -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import BasicBlock, ResNet

    return IntermediateLayerGetter(ResNet(BasicBlock, [1, 1, 1, 1]), return_layers=layers)


def _fcn(reduced: bool) -> nn.Module:
    models = import_torchvision().models.segmentation
    if not reduced:
        return models.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    backbone = _small_backbone({"layer4": "out", "layer3": "aux"})
    return models.FCN(backbone, models.fcn.FCNHead(512, 5), models.fcn.FCNHead(256, 5))


def _deeplab(reduced: bool) -> nn.Module:
    models = import_torchvision().models.segmentation
    if not reduced:
        return models.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)
    return models.DeepLabV3(_small_backbone({"layer4": "out"}), nn.Sequential(_aspp(), nn.Conv2d(32, 5, 1)))


def _aspp() -> nn.Module:
    from torchvision.models.segmentation.deeplabv3 import ASPP

    return ASPP(512, [2, 4], 32)


def _segformer(reduced: bool) -> Any:
    import_torchvision()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    small: dict[str, Any] = {"hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "decoder_hidden_size": 16}
    small["num_attention_heads"] = [1, 1, 2, 2]
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=5, **(small if reduced else {})))


DENSE = (
    Architecture(
        "U-Net", "own", lambda reduced: UNet(4 if reduced else 32, 5), images(256, 32), ("down2", "middle", "up1")
    ),
    Architecture(
        "FCN-ResNet-50, auxiliary output", "torchvision", _fcn, images(224, 32), ("backbone.layer2", "classifier")
    ),
    Architecture("DeepLabV3-ResNet-50", "torchvision", _deeplab, images(224, 32), ("backbone.layer2", "classifier")),
    Architecture(
        "SegFormer-B0",
        "transformers",
        _segformer,
        images(256, 64),
        ("segformer.stages.1", "segformer.stages.3"),
    ),
    Architecture(
        "EDSR-like super-resolution",
        "own",
        lambda reduced: Edsr(8, 2) if reduced else Edsr(64, 8),
        images(96, 16),
        ("blocks.0", "blocks.1"),
    ),
)
