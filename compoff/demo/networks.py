"""The networks of the demo: a small one that it trains itself, and the pretrained CIFAR-10 ResNets.

Plain PyTorch that knows nothing of compoff but its errors; with the pretrained weights come the images and the
normalization that belong to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from typing import Literal

__all__ = ["CIFAR10_MEAN", "CIFAR10_STD", "CifarResNet", "DigitsNet", "load_cifar_resnet", "read_cifar10"]

CIFAR10_MEAN = (0.485, 0.456, 0.406)
CIFAR10_STD = (0.229, 0.224, 0.225)


class PaddedShortcut(nn.Module):
    """The skip connection without parameters: every second row and column, missing channels filled with zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, features: Tensor) -> Tensor:
        """Match the shape of the block's main path."""
        return F.pad(features[:, :, :: self.stride, :: self.stride], self.padding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection around them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        changed = stride != 1 or in_channels != out_channels
        self.shortcut = PaddedShortcut(in_channels, out_channels, stride) if changed else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Add what the convolutions found to what came in."""
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))


def _stage(in_channels: int, out_channels: int, num_blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


class DigitsNet(nn.Module):
    """A residual network for 8x8 scans of handwritten digits, about 100,000 parameters.

    Its block starts are ``layer1`` (16, 8, 8), ``layer2`` (16, 8, 8) and ``layer3`` (32, 4, 4).

    Args:
        num_classes: Length of the output.

    Shapes:
        forward: images (batch, 1, 8, 8), gray in 0..1 -> logits (batch, num_classes).

    Examples:
        >>> import torch
        >>> DigitsNet()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Source:
        This project.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.layer1 = _stage(16, 16, num_blocks=2, stride=1)
        self.layer2 = _stage(16, 32, num_blocks=2, stride=2)
        self.layer3 = _stage(32, 64, num_blocks=1, stride=2)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Score every class for every image."""
        features = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))


class CifarResNet(nn.Module):
    """The ResNet for 32x32 images: three stages of 16, 32 and 64 channels, skips without parameters.

    Args:
        depth: Number of weighted layers, 6n + 2: 20, 32, 44, 56, 110.
        num_classes: Length of the output.

    Shapes:
        forward: images (batch, 3, 32, 32), normalized -> logits (batch, num_classes).

    Raises:
        ValueError: The depth is not 6n + 2.

    Examples:
        >>> import torch
        >>> CifarResNet(20)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Source:
        He et al., Deep Residual Learning for Image Recognition (CVPR 2016), section 4.2, shortcut option A.
    """

    def __init__(self, depth: int = 56, num_classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth {depth} is not of the form 6n + 2; take 20, 32, 44, 56 or 110")
        num_blocks = depth // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, num_blocks, stride=1)
        self.layer2 = _stage(16, 32, num_blocks, stride=2)
        self.layer3 = _stage(32, 64, num_blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Score every class for every image."""
        features = F.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))


def _existing(folder: str | Path, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; give the folder that holds {name}")
    return path


def load_cifar_resnet(depth: int, folder: str | Path) -> CifarResNet:
    """Read a pretrained CIFAR-10 ResNet, in eval mode.

    Args:
        depth: 20 or 56.
        folder: Where ``weights/cifar10_resnet{depth}.safetensors`` lies.

    Returns:
        The network; it expects what ``read_cifar10`` gives.

    Raises:
        ArtifactError: The file is not there or is not this network's.
    """
    path = _existing(folder, f"weights/cifar10_resnet{depth}.safetensors")
    network = CifarResNet(depth)
    stored = safetensors.torch.load_file(path)
    # The number of batches seen in training is a count that inference never reads; not every file keeps it.
    expected = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    found = {name for name in stored if not name.endswith("num_batches_tracked")}
    if expected != found:
        raise ArtifactError(
            f"{path} is not a CIFAR ResNet-{depth}: missing {sorted(expected - found)}, "
            f"unexpected {sorted(found - expected)}; give the weights of that network"
        )
    network.load_state_dict(stored, strict=False)
    return network.eval()


def read_cifar10(part: Literal["train", "test"], folder: str | Path) -> tuple[Tensor, Tensor]:
    """Read CIFAR-10 images, normalized for the pretrained networks, and their classes.

    Args:
        part: ``"train"`` (10,000 images) or ``"test"`` (1,000 images).
        folder: Where ``cifar10/train10000.npz`` and ``cifar10/test1000.npz`` lie.

    Returns:
        Images and classes.

    Shapes:
        images (N, 3, 32, 32) float32; classes (N,) int64.

    Raises:
        ArtifactError: The file is not there.
    """
    path = _existing(folder, {"train": "cifar10/train10000.npz", "test": "cifar10/test1000.npz"}[part])
    with np.load(path) as stored:
        pixels, classes = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"].astype(np.int64))
    images = pixels.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    return ((images - mean) / std).contiguous(), classes
