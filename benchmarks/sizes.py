"""One fit for inputs of several sizes: what its payloads take and lose at sizes that it was not fitted for.

    python -m benchmarks.sizes --model resnet50 --split layer2 --steps 400 --kept 2560 --target-bytes 1500 --data DATA

The fit is that of `benchmarks.rate_accuracy` with the same options, and goes on from what that has left. Up to 227
pixels images are cropped to their middle; larger ones are enlarged from it, so their drop says more than their bytes.
The network itself answers at every size, and is what is compared with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

import compoff
from benchmarks.fitted import Fitted
from benchmarks.networks import data_folder, read_imagenet_val
from benchmarks.rate_accuracy import fit, parse
from benchmarks.record import record
from benchmarks.scoring import Scorer
from benchmarks.tasks import Photos, Task, load_task, paired

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 227  # side of the images that there are, in pixels
_COUNTED = 16  # batches of photos that tables are counted on


def images_at(folder: Path, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Validation images of a size, and their classes."""
    images, labels = zip(*read_imagenet_val(folder, limit=count, size=min(size, _LARGEST)), strict=True)
    pictures = torch.cat(images)
    if size > _LARGEST:
        pictures = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
    return pictures, torch.cat(labels)


def rows_at(size: int, task: Task, file: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a quality: with the tables of the fit, and with tables that are counted at this size."""
    images, labels = images_at(data_folder(options.data), size, options.measure)
    task = replace(task, test=images, labels=labels)
    scorer = Scorer(task.net, options.split, images[:2], runtime="onnxruntime", threads=options.threads)
    model = compoff.load(file, task.net, example_input=images[:2])
    fitted = Fitted(task, model, options.split, scorer)
    teacher, symbols = scorer.scores(scorer.features(images)), fitted.symbols(images)
    as_fitted = {index: np.mean(fitted.lengths(symbols, index)) for index in options.qualities}
    scores = {
        index: fitted.answers(images, symbols, fitted.bottleneck.qualities()[index]) for index in options.qualities
    }
    assert isinstance(task.train, Photos)
    torch.manual_seed(0)
    photos = Photos(task.train.pixels, options.batch, size)
    batches = [batch for batch, _ in zip(photos, range(_COUNTED), strict=False)]
    compoff.finish(model, batches, validation=batches[:1])  # counts the tables; its figures are not looked at
    counted = Fitted(task, model, options.split, scorer)
    rows = [
        {
            "model": task.name,
            "split": options.split,
            "size": size,
            "quality": index,
            "bytes": float(as_fitted[index]),
            "counted_bytes": float(np.mean(counted.lengths(symbols, index))),
            "top1": float((teacher.argmax(1) == labels).double().mean()),
            **paired(teacher, scores[index], labels),
        }
        for index in options.qualities
    ]
    model.unwrap()
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=["resnet18", "resnet50"])
    parser.add_argument("--split", default="layer2")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--kept", type=int, required=True)
    parser.add_argument("--target-bytes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 192, 224, 288])
    parser.add_argument("--qualities", type=int, nargs="+", default=[4, 7, 10])
    parser.add_argument("--measure", type=int, default=325, help="images at each size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task(options.model, data_folder(options.data), batch=options.batch)
    like = parse(["--split", options.split, "--steps", str(options.steps), "--bf16", "--runtime", "onnxruntime"])
    fitting = argparse.Namespace(**vars(like) | vars(options), until=float("inf"), seed=0)
    model, _ = fit(task, options.split, "transform", fitting)
    command = f"python -m benchmarks.sizes {' '.join(sys.argv[1:]).replace(str(options.data), 'DATA')}"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fitted.safetensors"
        model.save(file)
        model.unwrap()
        for size in options.sizes:
            rows += rows_at(size, task, file, options)
            record(f"sizes.{options.model}.{options.split}", rows, seed=0, command=command)
            print(*rows[-len(options.qualities) :], sep="\n", flush=True)


if __name__ == "__main__":
    main()
