"""The two tasks of the demo: a network, real images, where it is wrapped, and how long each codec is fitted.

Handwritten digits with a network trained here, or CIFAR-10 with a pretrained one. Knows neither sockets nor tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compoff.demo.networks import CIFAR10_MEAN, CIFAR10_STD, DigitsNet, load_cifar_resnet, read_cifar10
from compoff.demo.pictures import Pictures
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CIFAR_SCHEDULE", "DIGITS_SCHEDULE", "Batches", "Schedule", "SplitPlan", "Task", "load_task"]

_TEST_DIGITS = 600
_TRAIN_BATCH = 32
_PEAK_LR = 1e-2


@dataclass(frozen=True)
class SplitPlan:
    """How one split point is fitted.

    Args:
        split: The split point.
        target_bytes: Mean length of a payload to aim at, in bytes.
        steps: Optimizer steps.
    """

    split: str
    target_bytes: int
    steps: int


@dataclass(frozen=True)
class Schedule:
    """How long everything may take.

    Args:
        splits: The split points, in the order of the table.
        batch: Samples in a batch of the fit.
        epochs: Rounds of training the network itself, where it is trained here.
        limit: Number of test images; None for all.
        jpeg_qualities: JPEG's qualities in the table.
    """

    splits: tuple[SplitPlan, ...]
    batch: int = 32
    epochs: int = 0
    limit: int | None = None
    jpeg_qualities: tuple[int, ...] = (50, 90)


DIGITS_SCHEDULE = Schedule(
    splits=(
        SplitPlan("input", target_bytes=26, steps=200),
        SplitPlan("layer2", target_bytes=20, steps=200),
        SplitPlan("layer3", target_bytes=16, steps=200),
    ),
    epochs=15,
)
CIFAR_SCHEDULE = Schedule(
    splits=(
        SplitPlan("input", target_bytes=420, steps=200),
        SplitPlan("layer2", target_bytes=260, steps=200),
        SplitPlan("layer3", target_bytes=130, steps=300),
    ),
    jpeg_qualities=(75, 95),
)


@dataclass(frozen=True)
class Task:
    """A trained network, and the images that it is fitted and measured on.

    Args:
        name: Name of the task in ``results.json``.
        title: What it is, for people.
        note: What a reader must know of the data to judge the figures.
        net: The network, in eval mode.
        train: Inputs to fit on; no labels.
        test: Inputs to measure on.
        labels: Their classes.
        pixels: The same as images.
        pictures: How those images become the network's input.

    Shapes:
        train, test (N, channels, height, width); labels (N,); pixels (N, *pictures.shape), uint8.
    """

    name: str
    title: str
    note: str
    net: nn.Module
    train: Tensor
    test: Tensor
    labels: Tensor
    pixels: NDArray[np.uint8]
    pictures: Pictures


class Batches:
    """Batches in a new order each round, every batch moved by up to one pixel or mirrored.

    Args:
        images: All images.
        size: Samples in a batch.
        mirror: Mirror every second batch instead of moving it: right for photographs, wrong for digits.

    Examples:
        >>> batches = Batches(torch.zeros(10, 1, 8, 8), 4, mirror=False)
        >>> [batch.shape[0] for batch in batches]
        [4, 4]

    Source: this project.
    """

    def __init__(self, images: Tensor, size: int, *, mirror: bool) -> None:
        self.images = images
        self.size = size
        self.mirror = mirror

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images))[: len(self) * self.size]
        for indices in order.view(-1, self.size):
            yield _varied(self.images[indices], mirror=self.mirror)


def _varied(images: Tensor, *, mirror: bool) -> Tensor:
    """The batch as it is, mirrored, or moved by up to one pixel."""
    if mirror:
        return images.flip(-1) if torch.rand(()) < 0.5 else images
    height, width = images.shape[-2:]
    top, left = int(torch.randint(0, 3, ())), int(torch.randint(0, 3, ()))
    return F.pad(images, (1, 1, 1, 1))[..., top : top + height, left : left + width]


def load_task(data: Path | None, schedule: Schedule, seed: int) -> Task:
    """Read the images and read or train the network.

    Args:
        data: Folder of CIFAR-10 and its pretrained network; None for the digits.
        schedule: How long training takes, and how many images are tested.
        seed: Seed of the split into training and test images, and of training.

    Returns:
        The task.

    Raises:
        ArtifactError: A file is not in `data`, or is not what its name says.

    Source: this project.
    """
    return _digits(schedule, seed) if data is None else _cifar(data, schedule)


def _digits(schedule: Schedule, seed: int) -> Task:
    """Real scans of handwritten digits, and a network trained on two thirds of them."""
    from sklearn import datasets, model_selection  # the demo's extra

    digits = cast("Any", datasets.load_digits())
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, test, train_labels, test_labels = cast(
        "tuple[NDArray[Any], ...]",
        model_selection.train_test_split(pixels, labels, test_size=_TEST_DIGITS, stratify=labels, random_state=seed),
    )
    pictures = Pictures((8, 8), (0.0,), (1.0,))
    inputs = torch.from_numpy(pictures.to_input(train))
    net = _trained(DigitsNet, inputs, torch.from_numpy(train_labels), schedule.epochs, seed)
    test, test_labels = test[: schedule.limit], test_labels[: schedule.limit]
    return Task(
        "digits",
        f"{len(test)} handwritten digits (8×8 scans, scikit-learn), DigitsNet trained on {len(train)} others",
        "A scan holds 17 gray levels: packed to 5 bits instead of 8, raw would be 40 bytes and its frame. "
        "An 8×8 PNG or JPEG is mostly headers and tables.",
        net,
        inputs,
        torch.from_numpy(pictures.to_input(test)),
        torch.from_numpy(test_labels),
        test,
        pictures,
    )


def _trained(make: type[DigitsNet], inputs: Tensor, labels: Tensor, epochs: int, seed: int) -> DigitsNet:
    """Train the small network; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make().train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=_PEAK_LR, weight_decay=0.05)
        total, step = epochs * math.ceil(len(inputs) / _TRAIN_BATCH), 0
        for _ in range(epochs):
            for chosen in cast("tuple[Tensor, ...]", torch.randperm(len(inputs)).split(_TRAIN_BATCH)):
                step += 1
                _set_lr(optimizer, step / total)
                loss = F.cross_entropy(net(_varied(inputs[chosen], mirror=False)), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return net.eval()


def _set_lr(optimizer: torch.optim.Optimizer, done: float) -> None:
    """A short rise, then a straight fall to zero."""
    for group in optimizer.param_groups:
        group["lr"] = _PEAK_LR * min(done / 0.2, (1 - done) / 0.8)


def _cifar(folder: Path, schedule: Schedule) -> Task:
    """CIFAR-10 and the pretrained ResNet-56."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give --data the folder that holds cifar10/ and weights/")
    net = load_cifar_resnet(56, folder)
    (train, _), (test, labels) = read_cifar10("train", folder), read_cifar10("test", folder)
    test, labels = test[: schedule.limit], labels[: schedule.limit]
    pictures = Pictures((32, 32, 3), CIFAR10_MEAN, CIFAR10_STD)
    return Task(
        "cifar10-resnet56",
        f"{len(test)} CIFAR-10 test images, pretrained ResNet-56, codecs fitted on {len(train)} training images",
        "The fits are cut short to fit into minutes; the benchmarks in the repository fit the same recipe longer.",
        net,
        train,
        test,
        labels,
        pictures.to_pixels(test.numpy()),
        pictures,
    )
