"""Image classifiers of torchvision. GoogLeNet and Inception return their auxiliary logits beside the main ones."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, images
from benchmarks.zoo.library_shim import import_torchvision

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TORCHVISION"]


def _models() -> Any:
    return import_torchvision().models


def _resnet(reduced: bool) -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=8) if reduced else _models().resnet50()


def _mobilenet_v2(reduced: bool) -> nn.Module:
    blocks = [[1, 8, 1, 1], [2, 8, 2, 2], [2, 16, 2, 2], [2, 16, 1, 1]]
    if not reduced:
        return _models().mobilenet_v2()
    return _models().MobileNetV2(num_classes=10, width_mult=0.25, inverted_residual_setting=blocks)


def _mobilenet_v3(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().mobilenet_v3_small()
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(16, 3, 32, 24, False, "RE", 2, 1, 1.0),
        InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 1.0),
        InvertedResidualConfig(24, 5, 48, 32, True, "HS", 2, 1, 1.0),
    ]
    return MobileNetV3(blocks, last_channel=32, num_classes=10)


def _efficientnet(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().efficientnet_b0()
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [MBConvConfig(*block) for block in [(1, 3, 1, 16, 8, 1), (4, 3, 2, 8, 16, 2), (4, 5, 2, 16, 24, 1)]]
    return EfficientNet(blocks, dropout=0.2, num_classes=10, last_channel=32)


def _regnet(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().regnet_y_400mf()
    from torchvision.models.regnet import BlockParams, RegNet

    sizes = BlockParams(
        depths=[1, 1, 2, 1],
        widths=[8, 16, 24, 32],
        group_widths=[8, 8, 8, 8],
        bottleneck_multipliers=[1.0] * 4,
        strides=[2] * 4,
        se_ratio=0.25,
    )
    return RegNet(sizes, num_classes=10, stem_width=8)


def _vgg(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().vgg11_bn()
    from torchvision.models.vgg import VGG, make_layers

    sizes: list[str | int] = [8, "M", 8, "M", 16, 16, "M", 16, 16, "M", 16, 16, "M"]
    return _narrow(VGG(make_layers(sizes, batch_norm=True), num_classes=10), 16 * 7 * 7, 32)


def _narrow(model: nn.Module, features: int, hidden: int) -> nn.Module:
    """A VGG or AlexNet whose three linear layers fit its narrow features; they hold nearly all of the weights."""
    linear = [nn.Linear(features, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(True)]
    model.classifier = nn.Sequential(*linear, nn.Dropout(), nn.Linear(hidden, 10))
    return model


def _densenet(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().densenet121()
    return _models().DenseNet(growth_rate=8, block_config=(2, 3, 2, 2), num_init_features=16, num_classes=10)


def _googlenet(reduced: bool) -> nn.Module:
    from torchvision.models.googlenet import GoogLeNet, GoogLeNetOutputs, Inception, InceptionAux

    class WithAuxiliary(GoogLeNet):
        """GoogLeNet that computes its auxiliary logits in eval mode too, as a two-exit deployment does."""

        def forward(self, x: Tensor) -> GoogLeNetOutputs:  # type: ignore[override]
            x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
            x = self.inception4a(self.maxpool3(self.inception3b(self.inception3a(x))))
            first = self.aux1(x)
            x = self.inception4d(self.inception4c(self.inception4b(x)))
            second = self.aux2(x)
            x = self.inception5b(self.inception5a(self.maxpool4(self.inception4e(x))))
            return GoogLeNetOutputs(self.fc(self.dropout(torch.flatten(self.avgpool(x), 1))), second, first)

    if not reduced:
        return WithAuxiliary(init_weights=False)
    blocks = [
        _eighth,
        functools.partial(Inception, conv_block=_eighth),
        functools.partial(InceptionAux, conv_block=_eighth),
    ]
    model = WithAuxiliary(num_classes=10, init_weights=False, blocks=blocks)
    for auxiliary in (model.aux1, model.aux2):
        auxiliary.fc1, auxiliary.fc2 = nn.Linear(2048 // 8, 16), nn.Linear(16, 10)
    model.fc = nn.Linear(1024 // 8, 10)
    return model


def _inception(reduced: bool) -> nn.Module:
    from torchvision.models import inception

    class WithAuxiliary(inception.Inception3):
        """Inception v3 that computes its auxiliary logits in eval mode too."""

        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            x = self.maxpool1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
            x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
            x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
            x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
            auxiliary = self.AuxLogits(x)
            x = self.avgpool(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))))
            return inception.InceptionOutputs(self.fc(torch.flatten(self.dropout(x), 1)), auxiliary)

    if not reduced:
        return WithAuxiliary(init_weights=False)
    kinds = (
        inception.InceptionA,
        inception.InceptionB,
        inception.InceptionC,
        inception.InceptionD,
        inception.InceptionE,
    )
    blocks = [functools.partial(kind, conv_block=_eighth) for kind in (*kinds, inception.InceptionAux)]
    model = WithAuxiliary(num_classes=10, init_weights=False, inception_blocks=[_eighth, *blocks])
    model.fc, model.AuxLogits.fc = nn.Linear(2048 // 8, 10), nn.Linear(768 // 8, 10)
    return model


def _eighth(in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    """Convolution, BatchNorm and ReLU with an eighth of the channels, for small Inceptions."""
    from torchvision.models.inception import BasicConv2d

    return BasicConv2d(in_channels if in_channels == 3 else in_channels // 8, out_channels // 8, **options)


def _convnext(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().convnext_tiny()
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=10)


def _vit(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().vit_b_16()
    return _models().VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)


def _swin(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().swin_t()
    return _models().SwinTransformer([4, 4], 16, [1, 2, 1], [2, 2, 4], [4, 4], num_classes=10)


def _shufflenet(reduced: bool) -> nn.Module:
    if not reduced:
        return _models().shufflenet_v2_x1_0()
    return _models().ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 64], num_classes=10)


def _squeezenet(reduced: bool) -> nn.Module:
    return _models().squeezenet1_1(num_classes=10 if reduced else 1000)


def _entry(
    name: str, make: Callable[[bool], nn.Module], *split_points: str, full: int = 224, reduced: int = 64
) -> Architecture:
    def made(is_reduced: bool) -> nn.Module:
        import_torchvision()
        return make(is_reduced)

    return Architecture(name, "torchvision", made, images(full, reduced), split_points)


TORCHVISION = (
    _entry("ResNet-50", _resnet, "layer2", "layer4", reduced=32),
    _entry("MobileNetV2", _mobilenet_v2, "features.2", "features.4"),
    _entry("MobileNetV3-Small", _mobilenet_v3, "features.2", "features.4"),
    _entry("EfficientNet-B0", _efficientnet, "features.2", "features.3"),
    _entry("RegNetY-400MF", _regnet, "trunk_output.block2", "trunk_output.block3"),
    replace(_entry("VGG-11", _vgg, "features.8", "classifier"), codec="deepcod"),
    _entry("DenseNet-121", _densenet, "features.denseblock2", "features.transition2"),
    _entry("GoogLeNet, auxiliary outputs", _googlenet, "inception3a", "inception4b"),
    _entry("Inception v3, auxiliary output", _inception, "Mixed_5b", "Mixed_7a", full=299, reduced=299),
    _entry("ConvNeXt-Tiny", _convnext, "features.3", "features.5"),
    _entry("ViT-B/16", _vit, "encoder.layers.encoder_layer_1", "encoder.ln", reduced=32),
    _entry("Swin-T", _swin, "features.1", "features.3", reduced=32),
    _entry("ShuffleNetV2", _shufflenet, "stage3", "conv5"),
    _entry("SqueezeNet 1.1", _squeezenet, "features.6", "classifier"),
)
