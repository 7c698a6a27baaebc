"""What a task loses by its head's runtime: symbols, payloads and answers of ResNet-50 at layer2, beside PyTorch's head.

The heads of one export speak to the same tail. Each image is looked at in several views, crops a few pixels apart and
their mirror images: they are right or wrong mostly together, but which of them a changed symbol turns is chance. The
error of the extra drop is that of the images, each with the mean of its views. Only the first view, the middle of the
image, counts for the drop against the network itself. It fits a codec first, and keeps the export under
benchmarks/states.

    python -m benchmarks.heads_task --data DATA
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.heads import CALIBRATION, EXPORT, SPLIT, fitted, heads_of
from benchmarks.networks import data_folder, read_imagenet_val
from benchmarks.record import record
from benchmarks.tasks import Task, load_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    import compoff

__all__ = ["Found", "main", "views"]

_SIDE, _CROP = 227, 224
_CORNERS = ((1, 1, False), (1, 1, True), (0, 0, False), (3, 3, True), (0, 3, True), (3, 0, False))
"""Top, left, and whether mirrored; the middle comes first."""


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--images", type=int, default=1300)
    parser.add_argument("--views", type=int, default=4, help=f"of each image, at most {len(_CORNERS)}")
    parser.add_argument("--qualities", type=int, nargs="+", default=[7])
    parser.add_argument("--steps", type=int, default=60, help="steps of the fit")
    parser.add_argument("--export", type=Path, default=EXPORT, help="where the fitted export is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = data_folder(options.data)
    task = load_task("resnet50", folder, batch=8, limit=600)
    head, tail = fitted(task, options.export, options.steps)
    heads = heads_of(head, list(itertools.islice(task.train, CALIBRATION // 8)))
    images = read_imagenet_val(folder, limit=options.images, batch_size=10, size=_SIDE)
    rows = task_rows(task, heads, tail.compile("onnx"), images, options.views, options.qualities)
    settings = f"--images {options.images} --views {options.views} --qualities {' '.join(map(str, options.qualities))}"
    record("heads.task", rows, seed=0, command=f"python -m benchmarks.heads_task {settings} --steps {options.steps}")


def views(images: Tensor, count: int) -> Iterator[Tensor]:
    """Crops of some images, the middle first, every second one mirrored.

    Args:
        images: The images, with three pixels more than a network takes.
        count: Number of views.

    Yields:
        One crop of all images.
    """
    for top, left, mirrored in _CORNERS[:count]:
        crop = images[:, :, top : top + _CROP, left : left + _CROP]
        yield crop.flip(-1) if mirrored else crop


@dataclass
class Found:
    """What one runtime at one quality gave, view by view and image by image.

    Args:
        right: Whether the answer was the label's, one list a view.
        same: Whether the answer was that of PyTorch's head, likewise.
        sizes: Bytes of each payload.
        equal: Whether it was byte for byte that of PyTorch's head.
        changed: Share of its symbols that were not those of PyTorch's head.
    """

    right: list[list[bool]]
    same: list[list[bool]]
    sizes: list[int] = field(default_factory=list)
    equal: list[bool] = field(default_factory=list)
    changed: list[float] = field(default_factory=list)

    @classmethod
    def nothing(cls, count: int) -> Found:
        """Before the first image."""
        return cls([[] for _ in range(count)], [[] for _ in range(count)])

    def row(self, plain: Found, teacher: list[bool]) -> dict[str, Any]:
        """The figures, in points and shares, beside PyTorch's head and the network itself."""
        lost = np.mean(np.array(plain.right, float) - np.array(self.right, float), axis=0)
        return {
            "images": len(lost),
            "views": len(self.right),
            "bytes": float(np.mean(self.sizes)),
            "symbols_changed": float(np.mean(self.changed)),
            "payloads_equal": float(np.mean(self.equal)),
            "drop": 100 * float(np.mean(teacher) - np.mean(self.right[0])),
            "extra_drop": 100 * float(lost.mean()),
            "extra_drop_stderr": 100 * float(lost.std(ddof=1)) / math.sqrt(len(lost)),
            "agreement": float(np.mean(self.same)),
        }


def task_rows(
    task: Task,
    heads: dict[str, compoff.Head],
    tail: compoff.Tail,
    batches: Iterator[tuple[Tensor, Tensor]],
    count: int,
    qualities: list[int],
) -> list[dict[str, Any]]:
    """What changes with the runtime, at each quality."""
    found = {(quality, name): Found.nothing(count) for quality in qualities for name in heads}
    teacher: list[bool] = []
    for images, labels in batches:
        for place, crops in enumerate(views(images, count)):
            if not place:
                with torch.inference_mode():
                    teacher += (task.net(crops).argmax(1) == labels).tolist()
            for x, label in zip(crops.split(1), labels.tolist(), strict=True):
                for quality in qualities:
                    look(x.contiguous(), label, place, quality, heads, tail, found)
        print(len(teacher), *(f"{key}: {one.row(found[key[0], 'torch'], teacher)}" for key, one in found.items()))
    return [
        {"model": "resnet50", "split": SPLIT, "codec": "transform", "runtime": name, "quality": quality}
        | one.row(found[quality, "torch"], teacher)
        for (quality, name), one in found.items()
    ]


def look(
    x: Tensor,
    label: int,
    place: int,
    quality: int,
    heads: dict[str, compoff.Head],
    tail: compoff.Tail,
    found: dict[tuple[int, str], Found],
) -> None:
    """One view of one image through every head at one quality."""
    answers: dict[bytes, int] = {}  # equal payloads, equal answers
    plain = heads["torch"](x, quality=quality)
    expected = heads["torch"].payload_format.decode(plain).symbols[0]
    for name, head in heads.items():
        payload = plain if name == "torch" else head(x, quality=quality)
        data, row = bytes(payload), found[quality, name]
        if data not in answers:
            answers[data] = int(tail(data).argmax())
        row.right[place].append(answers[data] == label)
        row.same[place].append(answers[data] == answers[bytes(plain)])
        row.sizes.append(len(data))
        row.equal.append(data == bytes(plain))
        row.changed.append(float((head.payload_format.decode(payload).symbols[0] != expected).mean()))


if __name__ == "__main__":
    main()
