"""The tasks of the benchmarks: a trained network, images to fit on, and labelled images to measure on.

CIFAR-10 is small enough to be held as floats; the photos for ImageNet's networks are kept as bytes, on the card if
there is one, and sampled there.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from benchmarks.networks import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_cifar_resnet,
    load_pqf,
    read_cifar10,
    read_imagenet_val,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

__all__ = ["CLASSIFIERS", "CONDITIONS", "Photos", "Shuffled", "Task", "endless", "load_task"]

CLASSIFIERS = ("cifar10-resnet20", "cifar10-resnet56", "resnet18", "resnet50")
_STATES = Path(__file__).resolve().parent / "states"  # not committed
_PHOTO = 224  # side at which photos are kept, in pixels: that of most of them, since enlarging would smooth them


@dataclass
class Task:
    """A network, what it is fitted on, and what it is measured on.

    Args:
        name: Name of the network in the results.
        net: The trained network, in eval mode.
        train: Unlabelled images, gone through again and again in batches.
        test: Normalized images to measure on.
        labels: Their classes.
        mean: What was taken from the pixels, by channel.
        std: What they were divided by, by channel.
    """

    name: str
    net: nn.Module
    train: Any
    test: Tensor
    labels: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def compared(self, teacher: Tensor, student: Tensor) -> dict[str, Any]:
        """What the student's scores lose beside the teacher's, in the task's own measure, and how often both agree."""
        return paired(teacher, student, self.labels)

    def pictures(self) -> list[Image.Image]:
        """The images to measure on as the 8-bit pictures that they came from."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pixels = ((self.test * std + mean) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(one) for one in pixels]

    def normalized(self, pictures: list[Image.Image]) -> Tensor:
        """Pictures as the network takes them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


class Shuffled:
    """Batches in a new order each round, every second image mirrored at random.

    Args:
        images: All images, normalized.
        batch: Samples in a batch.
    """

    def __init__(self, images: Tensor, batch: int) -> None:
        self.images = images
        self.batch = batch

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images))[: len(self) * self.batch]
        for indices in order.view(-1, self.batch):
            images = self.images[indices]
            mirrored = torch.rand(self.batch) < 0.5
            yield torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


class Photos:
    """Photos that are kept as bytes; seen from nearer or farther, mirrored and normalized where they are kept.

    Args:
        pixels: The photos, ``(count, 3, side, side)`` uint8.
        batch: Samples in a batch.
        size: Side of what the network takes, in pixels.
    """

    def __init__(self, pixels: Tensor, batch: int, size: int = 224) -> None:
        self.pixels = pixels
        self.batch = batch
        self.size = size
        self._mean, self._std = (
            torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)
        )

    def __len__(self) -> int:
        return len(self.pixels) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.pixels))[: len(self) * self.batch]
        for indices in order.view(-1, self.batch):
            yield self._sampled(self.pixels[indices.to(self.pixels.device)])

    def _sampled(self, photos: Tensor) -> Tensor:
        """All of each photo, once to four times its area with its surroundings as in a mirror, turned at random.

        Sampled and not smoothed, as the images to measure on were when they were made smaller: enlarged photos are so
        smooth that a codec fitted on them has no use for what is fine in those.
        """
        count, side = len(photos), 2 * torch.rand(3, len(photos)).to(photos.device) - 1
        scale = torch.sqrt(2.5 + 1.5 * side[0])
        mirror = torch.where(torch.rand(count).to(photos.device) < 0.5, -1.0, 1.0)
        grid = torch.zeros(count, 2, 3, device=photos.device)
        grid[:, 0, 0], grid[:, 1, 1] = scale * mirror, scale
        grid[:, :, 2] = (side[1:] * (scale - 1)).T
        field = F.affine_grid(grid, [count, 3, self.size, self.size], align_corners=False)
        samples = F.grid_sample(photos.float() / 255, field, align_corners=False, padding_mode="reflection")
        return (samples - self._mean) / self._std


def endless(batches: Any) -> Iterator[Tensor]:
    """Round after round."""
    while True:
        yield from batches


def load_task(name: str, folder: Path, *, batch: int, device: str = "cpu", limit: int | None = None) -> Task:
    """The network and the images of one name.

    Args:
        name: Name of the network.
        folder: The data folder.
        batch: Samples in a batch of the images to fit on.
        device: Where those are kept.
        limit: Number of images, of both kinds; None for all.

    Returns:
        The task.

    Raises:
        SystemExit: There is no such network.
    """
    family, _, depth = name.rpartition("resnet")
    if family == "cifar10-" and depth in ("20", "56"):
        (train, _), (test, labels) = read_cifar10("train", folder), read_cifar10("test", folder)
        net = load_cifar_resnet(cast("Literal[20, 56]", int(depth)), folder)
        shuffled = Shuffled(train[:limit], batch)
        return Task(name, net, shuffled, test[:limit], labels[:limit], CIFAR10_MEAN, CIFAR10_STD)
    if name in ("resnet18", "resnet50"):
        net = load_pqf(cast("Literal['resnet18', 'resnet50']", name), folder)
        images, labels = zip(*read_imagenet_val(folder, limit=limit), strict=True)
        photos = Photos(read_photos(folder, limit).to(device), batch)
        return Task(name, net, photos, torch.cat(images), torch.cat(labels), IMAGENET_MEAN, IMAGENET_STD)
    raise SystemExit(f"--model {name}: expected one of {', '.join(CLASSIFIERS)}")


def read_photos(folder: Path, limit: int | None = None) -> Tensor:
    """The unlabelled photos, their middle squares at 224 pixels; read once and kept beside the states of fits."""
    kept = _STATES / f"photos{_PHOTO}{'' if limit is None else f'.{limit}'}.npy"
    if not kept.exists():
        squares = []
        for path in sorted((folder / "photos").glob("*.jp*g"))[:limit]:
            with Image.open(path) as photo:
                side = min(photo.size)
                left, top = ((length - side) // 2 for length in photo.size)
                square = photo.convert("RGB").crop((left, top, left + side, top + side))
                squares.append(np.asarray(square.resize((_PHOTO, _PHOTO), Image.Resampling.BICUBIC)).transpose(2, 0, 1))
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.stack(squares))
    return torch.from_numpy(np.load(kept))


def _blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 56))


def _shot(picture: Image.Image) -> Image.Image:
    pixels = np.asarray(picture).astype(np.float64)
    generator = np.random.default_rng(int(pixels.sum()))  # of each picture its own, the same in every run
    return Image.fromarray(np.clip(generator.poisson(pixels / 255 * 60) / 60 * 255, 0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=20)
    return Image.open(buffer)


CONDITIONS: dict[str, Callable[[Image.Image], Image.Image]] = {"blur": _blurred, "shot noise": _shot, "jpeg 20": _jpeg}
"""Ways in which images of the field differ from those that were fitted on."""


def paired(teacher: Tensor, student: Tensor, labels: Tensor) -> dict[str, Any]:
    """Drop of the student against the teacher on the same samples, in points, with its standard error."""
    right_before, right_after = (logits.argmax(1) == labels for logits in (teacher, student))
    difference = right_before.double() - right_after.double()
    top5 = [(logits.topk(5, 1).indices == labels[:, None]).any(1).double() for logits in (teacher, student)]
    return {
        "drop": 100 * float(difference.mean()),
        "drop_stderr": 100 * float(difference.std()) / math.sqrt(len(labels)),
        "drop_top5": 100 * float((top5[0] - top5[1]).mean()),
        "drop_top5_stderr": 100 * float((top5[0] - top5[1]).std()) / math.sqrt(len(labels)),
        "drop_halves": [100 * float(half.mean()) for half in (difference[::2], difference[1::2])],
        "drop_top5_halves": [100 * float((top5[0] - top5[1])[begin::2].mean()) for begin in (0, 1)],
        "agreement": float((teacher.argmax(1) == student.argmax(1)).double().mean()),
    }
