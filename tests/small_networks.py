"""Small models that the tests wrap and cut: one for each way that tensors travel through a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = [
    "BatchInside",
    "ConcatSkip",
    "DataDependent",
    "EarlyOutput",
    "FunctionalRelu",
    "FunctionalSkip",
    "IdentityBehind",
    "IdentitySkip",
    "InputSkip",
    "Nested",
    "OptionalInputs",
    "Plain",
    "Skip",
    "TwoInputs",
    "assert_close",
    "block",
    "marks",
    "same",
    "tiny_decoder",
    "tiny_encoder",
    "values",
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


def assert_close(left: Any, right: Any) -> None:
    """Nested outputs: the same nesting and constants, tensors within 1e-5."""
    assert pytree.tree_structure(left) == pytree.tree_structure(right)
    for ours, theirs in zip(pytree.tree_leaves(left), pytree.tree_leaves(right), strict=True):
        if isinstance(ours, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        else:
            assert ours == theirs


def values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two such copies are the same to the last bit."""
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


def marks(model: nn.Module) -> dict[str, Any]:
    """Everything about a model but its values: names, modes, gradients wanted, hooks, attributes."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks")
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "identity": {name: id(parameter) for name, parameter in model.named_parameters()},
        "hooks": {(name, kind): len(getattr(m, kind)) for name, m in model.named_modules() for kind in hooks},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
    }


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


class IdentityBehind(Plain):
    """A function makes what enters block1, a module that returns it as it is reads it there: a ResNet's shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = Residual(self.block1)

    def trunk(self, x: Tensor) -> Tensor:
        return self.block2(self.block1(torch.relu(self.stem[0](x))))


class Residual(nn.Module):
    """A block with an identity around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.shortcut = inner, nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.shortcut(x)


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


class LeftOut(nn.Module):
    """Takes a tensor that may be left out before one that may be there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: Tensor, prior: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        y = self.inner(x)
        y = y if prior is None else y + prior
        return y if gate is None else y * gate


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
