"""The task of a detector: YOLO-Fastest on COCO, fitted on photos without boxes, measured by the boxes that it finds.

Names: ``yolo-fastest-1.1`` and ``yolo-fastest-1.1-xl``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.boxes import Boxes, detected, found_again, matched, mean_precision
from benchmarks.tasks import Task, read_photos
from benchmarks.zoo.darknet import Darknet, load_weights, parse_sections

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


__all__ = ["DETECTORS", "DetectionTask", "Mosaics", "load_detection"]

DETECTORS = ("yolo-fastest-1.1", "yolo-fastest-1.1-xl")
_DRAWS = 1000  # of images, with replacement, for the standard error of a difference in precision


class Mosaics:
    """Batches of mosaics of four photos, each seen from nearer or farther and mirrored at random.

    Detectors see many small things, photos of ImageNet and Caltech-101 one large one.

    Args:
        pixels: The photos, ``(count, 3, side, side)`` uint8.
        batch: Mosaics in a batch.
        size: Side of a mosaic, in pixels.
    """

    def __init__(self, pixels: Tensor, batch: int, size: int) -> None:
        self.pixels = pixels
        self.batch = batch
        self.size = size

    def __len__(self) -> int:
        return len(self.pixels) // (4 * self.batch)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.pixels))[: len(self) * 4 * self.batch]
        for indices in order.view(-1, self.batch, 4):
            tiles = torch.stack([self._tile(self.pixels[index]) for index in indices.flatten().tolist()])
            rows = tiles.unflatten(0, (self.batch, 2, 2)).permute(0, 3, 1, 4, 2, 5)
            yield rows.reshape(self.batch, 3, self.size, self.size)

    def _tile(self, photo: Tensor) -> Tensor:
        """A square of a photo: not enlarged, unless the whole of it is smaller."""
        least, most = self.size // 2, photo.shape[-1]
        side = int(torch.randint(min(least, most), most + 1, ()))
        left, top = torch.randint(most - side + 1, (2,)).tolist()
        square = photo[None, :, top : top + side, left : left + side].float() / 255
        tile = F.interpolate(square, (least, least), mode="bilinear", antialias=True)[0]
        return tile.flip(-1) if torch.rand(()) < 0.5 else tile


@dataclass
class DetectionTask(Task):
    """A detector, and images with labelled boxes.

    Args:
        labelled: The labelled boxes of each image to measure on.
    """

    labelled: list[Boxes] = field(default_factory=list[Boxes])
    _teacher: tuple[Tensor, list[Boxes]] | None = None

    def compared(self, teacher: Tensor, student: Tensor) -> dict[str, Any]:
        """Drop of mean average precision at an overlap of a half, in points, and which boxes are found again.

        Its standard error is that of the images: both detectors are measured on the same draws of them.
        """
        if self._teacher is None or self._teacher[0] is not teacher:
            self._teacher = teacher, [detected(raw) for raw in teacher]
        sides = [self._teacher[1], [detected(raw) for raw in student]]
        classes, count = teacher.shape[-1] - 5, len(teacher)
        ours, theirs = (matched(found, self.labelled[:count], classes) for found in sides)
        generator = np.random.default_rng(0)
        draws = [np.bincount(generator.integers(0, count, count), minlength=count) for _ in range(_DRAWS)]
        differences = [mean_precision(ours, times) - mean_precision(theirs, times) for times in draws]
        return {
            "map50": 100 * mean_precision(theirs),
            "drop": 100 * (mean_precision(ours) - mean_precision(theirs)),
            "drop_stderr": 100 * float(np.std(differences)),
            "agreement": found_again(*sides),
        }


def load_detection(
    name: str, folder: Path, *, batch: int, device: str = "cpu", limit: int | None = None
) -> DetectionTask:
    """A detector, what it is fitted on and what it is measured on.

    Args:
        name: Name of the detector.
        folder: The data folder.
        batch: Samples in a batch of the images to fit on.
        device: Where those are made.
        limit: Number of images, of both kinds; None for all.

    Returns:
        The task.
    """
    network = Darknet(parse_sections((folder / "weights" / f"{name}.cfg").read_text()))
    load_weights(network, folder / "weights" / f"{name}.weights")
    images, labelled = _read_coco(folder / "coco_val128", network.size, limit)
    mosaics = Mosaics(read_photos(folder, limit).to(device), batch, network.size[0])
    numbers = torch.zeros(len(images), dtype=torch.long)
    return DetectionTask(name, network.eval(), mosaics, images, numbers, (0, 0, 0), (1, 1, 1), labelled)


def _read_coco(folder: Path, size: tuple[int, int], limit: int | None) -> tuple[Tensor, list[Boxes]]:
    """Images stretched to the detector's size, and their boxes."""
    images, labelled = list[Tensor](), list[Boxes]()
    for path in sorted((folder / "images").glob("*.jpg"))[:limit]:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        images.append(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        lines = [line.split() for line in (folder / "labels" / f"{path.stem}.txt").read_text().splitlines()]
        numbers = np.array(lines, np.float64).reshape(-1, 5)
        labelled.append(Boxes.of(numbers[:, 0].astype(np.int64), np.ones(len(numbers)), numbers[:, 1:]))
    return torch.stack(images), labelled
