"""Small models that the tests wrap and cut: one for each way that tensors travel through a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "BatchInside",
    "ConcatSkip",
    "DataDependent",
    "EarlyOutput",
    "FunctionalRelu",
    "FunctionalSkip",
    "IdentitySkip",
    "InputSkip",
    "Nested",
    "OptionalInputs",
    "Plain",
    "Skip",
    "TwoInputs",
    "block",
    "tiny_decoder",
    "tiny_encoder",
]


def tiny_encoder(feature: tuple[int, ...], latent: tuple[int, ...]) -> nn.Module:
    """One layer, for tests that export often: the codec's own decoder takes longer to export than the model."""
    if len(feature) == 1:
        return nn.Linear(feature[0], latent[0])
    step = feature[1] // latent[1]
    return nn.Conv2d(feature[0], latent[0], step, stride=step)


def tiny_decoder(latent: tuple[int, ...], feature: tuple[int, ...]) -> nn.Module:
    """One layer back."""
    if len(feature) == 1:
        return nn.Linear(latent[0], feature[0])
    step = feature[1] // latent[1]
    return nn.ConvTranspose2d(latent[0], feature[0], step, stride=step)


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution, BatchNorm with statistics of its own, ReLU in place."""
    norm = nn.BatchNorm2d(out_channels)
    norm.running_mean = torch.randn(out_channels)
    norm.running_var = torch.rand(out_channels) + 0.5
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), norm, nn.ReLU(inplace=True))


class Plain(nn.Module):
    """Three blocks in a row, a dropout and a classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = block(3, 8)
        self.block1 = block(8, 8)
        self.block2 = block(8, 8)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, classes)

    def trunk(self, x: Tensor) -> Tensor:
        return self.block2(self.block1(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.trunk(x).mean((2, 3))))


class Skip(Plain):
    """What enters block1 is added again behind block2."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.block2(self.block1(y)) + y


class IdentitySkip(Plain):
    """The same where the tensor passes a module that returns it as it is, and the skip reads it before."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.block2(self.block1(self.drop(y))) + y


class InputSkip(Plain):
    """The model's own input is read again behind the block that it enters."""

    def trunk(self, x: Tensor) -> Tensor:
        return self.block2(self.stem(x)) + x.mean(1, keepdim=True)


class FunctionalSkip(Plain):
    """A sum enters block1 and is read again later."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem(x) + 1.0
        return self.block2(self.block1(y)) + y


class ConcatSkip(Plain):
    """A concatenation enters block1, and one of its parts is read again later."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.block2(self.block1(torch.cat([y[:, :4], y[:, 4:] * 2.0], 1))) + y


class FunctionalRelu(Plain):
    """A tensor that is changed in place between the module that made it and the block that it enters."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem[0](x)
        y.relu_()
        return self.block2(self.block1(y))


class EarlyOutput(Plain):
    """What enters block1 is also an output."""

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        return self.block2(self.block1(y)).mean((2, 3)), y.mean((2, 3))


class Nested(Plain):
    """Returns tensors of several dtypes in a dict, a list and a tuple, among constants; keys not in order."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.block1(self.stem(x))
        scores = self.classifier(self.block2(y).mean((2, 3)))
        return {
            "scores": scores,
            "all": [scores * 2.0, None, (scores.argmax(1), 3, True), {}],
            "alone": (scores.double() / 2.0,),
            "word": "yes",
            "half": 0.5,
        }


class TwoInputs(Plain):
    """Two images that meet before block1."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.classifier(self.block2(self.block1(self.stem(x) + self.stem[0](y))).mean((2, 3)))


class OptionalInputs(Plain):
    """Inputs that may be left out, and one without a batch axis."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: Tensor | None = None, *, double: bool = False
    ) -> Tensor:
        y = self.stem(x)
        if mask is not None:
            y = y * mask
        if scale is not None:
            y = y * scale.view(1, -1, 1, 1)
        y = self.classifier(self.block2(self.block1(y)).mean((2, 3)))
        return y * 2.0 if double else y


class BatchInside(Plain):
    """Sizes of the batch are used on both sides of block1."""

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], 8, 1, 1)
        y = self.block1(self.stem(x) * ones) * ones
        return self.classifier(y.reshape(x.shape[0], 8, -1).mean(-1))


class DataDependent(Plain):
    """Control flow that depends on values, which no export can follow."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.block1(self.stem(x))
        return self.block2(y) if bool(y.sum() > 0) else self.block2(-y)
