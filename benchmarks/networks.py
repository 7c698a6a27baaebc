"""The pretrained networks and the real images that the benchmarks and the larger tests measure on.

ResNet-18 and ResNet-50 carry torchvision's module names, without torchvision. Nothing here is shipped, and no data lies
in the repository: a folder comes by argument or from the environment variable COMPOFF_DATA.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from compoff.demo.networks import CIFAR10_MEAN, CIFAR10_STD, CifarResNet, load_cifar_resnet, read_cifar10

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CifarResNet",
    "ImageNetResNet",
    "data_folder",
    "decode_codebooks",
    "load_cifar_resnet",
    "load_pqf",
    "read_cifar10",
    "read_imagenet_val",
    "resnet18",
    "resnet50",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def data_folder(folder: str | Path | None = None) -> Path:
    """Where the real data lies: the argument, else COMPOFF_DATA.

    Args:
        folder: The folder, or None to ask the environment.

    Returns:
        A folder that exists.

    Raises:
        FileNotFoundError: Neither names an existing folder.
    """
    chosen = folder or os.environ.get("COMPOFF_DATA")
    if not chosen:
        raise FileNotFoundError(
            "no data folder; pass --data FOLDER or set COMPOFF_DATA to the folder of data and weights"
        )
    path = Path(chosen)
    if not path.is_dir():
        raise FileNotFoundError(f"the data folder {path} does not exist; pass --data FOLDER or set COMPOFF_DATA")
    return path


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip around them (ResNet-18)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """Add what the convolutions found to what came in."""
        skip = features if self.downsample is None else self.downsample(features)
        inner = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(inner)) + skip)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a skip around them (ResNet-50); the stride sits on the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        """Add what the convolutions found to what came in."""
        skip = features if self.downsample is None else self.downsample(features)
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        return self.relu(self.bn3(self.conv3(inner)) + skip)


class ImageNetResNet(nn.Module):
    """The ResNet for 224x224 images, with torchvision's module names.

    Args:
        block: BasicBlock or Bottleneck.
        num_blocks: Blocks in each of the four stages.
        num_classes: Length of the output.

    Shapes:
        forward: images (batch, 3, height, width), normalized -> logits (batch, num_classes).

    Source:
        He et al., Deep Residual Learning for Image Recognition (CVPR 2016), table 1; stride on the 3x3 convolution.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], num_blocks: tuple[int, int, int, int], num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, num_blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, num_blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, num_blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, num_blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * block.expansion, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Score every class for every image."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(torch.flatten(self.avgpool(features), 1))


def _stage(
    block: type[BasicBlock | Bottleneck], in_channels: int, width: int, num_blocks: int, stride: int
) -> nn.Sequential:
    out_channels = width * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        downsample = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
    first = block(in_channels, width, stride, downsample)
    return nn.Sequential(first, *(block(out_channels, width, 1, None) for _ in range(num_blocks - 1)))


def resnet18() -> ImageNetResNet:
    """ResNet-18, randomly initialized."""
    return ImageNetResNet(BasicBlock, (2, 2, 2, 2))


def resnet50() -> ImageNetResNet:
    """ResNet-50, randomly initialized."""
    return ImageNetResNet(Bottleneck, (3, 4, 6, 3))


def decode_codebooks(stored: dict[str, Tensor], shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Expand weights that are stored as a codebook and codes into plain tensors.

    Args:
        stored: Plain tensors by name, and pairs ``NAME.codebook`` (k, d) and ``NAME.codes_matrix`` for ``NAME.weight``.
        shapes: The shape of every weight, by name.

    Returns:
        Plain float32 tensors by name.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(".codes_matrix"):
            continue
        if not name.endswith(".codebook"):
            weights[name] = tensor.float()
            continue
        layer = name.removesuffix(".codebook")
        codes = stored[f"{layer}.codes_matrix"].long()
        codes = torch.where(codes < 0, codes + 2**16, codes)  # int16 on disk stands for unsigned codes
        weights[f"{layer}.weight"] = tensor.float()[codes.flatten()].reshape(shapes[f"{layer}.weight"])
    return weights


def load_pqf(name: Literal["resnet18", "resnet50"], folder: str | Path | None = None) -> ImageNetResNet:
    """Read a codebook-compressed ImageNet ResNet, in eval mode.

    Args:
        name: ``"resnet18"`` or ``"resnet50"``.
        folder: The data folder; None takes COMPOFF_DATA.

    Returns:
        The network; it expects what ``read_imagenet_val`` gives.

    Raises:
        FileNotFoundError: The weights are not there.

    Source:
        Martinez et al., Permute, Quantize, and Fine-tune (CVPR 2021), released weights.
    """
    network = {"resnet18": resnet18, "resnet50": resnet50}[name]()
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    weights = decode_codebooks(load_file(data_folder(folder) / "weights" / f"{name}_pqf.safetensors"), shapes)
    missing, unexpected = network.load_state_dict(weights, strict=False)
    # The released BatchNorms are folded to mean 0 and variance 1, which is how PyTorch initializes its buffers.
    missing = [key for key in missing if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    if missing or unexpected:
        raise ValueError(f"{name}_pqf.safetensors does not fit {name}: missing {missing}, unexpected {unexpected}")
    return network.eval()


def read_imagenet_val(
    folder: str | Path | None = None, *, limit: int | None = None, batch_size: int = 50, size: int = 224
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read the ImageNet validation images batch by batch, cropped to their middle and normalized.

    Args:
        folder: The data folder; None takes COMPOFF_DATA.
        limit: Number of images, the first in file order; None reads all 1,300.
        batch_size: Images in a batch; the last may be smaller.
        size: Side of the middle, at most 227, in pixels.

    Yields:
        Images and classes.

    Shapes:
        images (batch, 3, size, size) float32; classes (batch,) int64.
    """
    root = data_folder(folder) / "imagenet_val1300"
    with (root / "labels.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))[:limit]
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        images = torch.stack([_read_image(root / row["file"], size) for row in batch])
        yield images, torch.tensor([int(row["class"]) for row in batch])


def _read_image(path: Path, size: int) -> Tensor:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    top, left = ((length - size) // 2 for length in pixels.shape[:2])
    crop = torch.from_numpy(pixels[top : top + size, left : left + size].copy()).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (crop.float() / 255 - mean) / std
