"""What each choice of the transform codec is worth: the same fit with one thing changed, at the same number of steps.

Fitted on kept features (`benchmarks.behind`), measured on the test images. Rows are added to the file as they are
measured; what it already holds of the same command is not measured again. What is changed is in `variations`.

    python -m benchmarks.ablations --model cifar10-resnet56 --split layer3 --steps 300 --data DATA
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

import compoff
from benchmarks.behind import Behind, KeptFeatures, features_at
from benchmarks.networks import data_folder
from benchmarks.plain_codecs import in_batches
from benchmarks.rate_accuracy import Fitted
from benchmarks.record import record
from benchmarks.tasks import CLASSIFIERS, Photos, Shuffled, Task, endless, load_task, paired
from benchmarks.variations import BASELINE, SEEDS, VARIATIONS, Variation, context_bytes
from compoff.recipe import recipe_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_RESULTS = Path(__file__).resolve().parent / "results"


class Kept:
    """The features that the variations are fitted and measured on, each kind computed once.

    Args:
        task: The whole network and its images.
        split: The split point.
        options: How many, and in which batches.
    """

    def __init__(self, task: Task, split: str, options: argparse.Namespace) -> None:
        self.task = task
        self.split = split
        self.options = options
        self._kinds: dict[str, Tensor] = {}
        features = features_at(task.net, split, iter(task.test.split(50)), len(task.test)).float()
        net = Behind(task.net, split).eval()
        self.behind = Task(task.name, net, task.train, features, task.labels, task.mean, task.std)

    def batches(self, augmentation: str) -> KeptFeatures:
        """Features to fit on, of images that were augmented in one way."""
        if augmentation not in self._kinds:
            torch.manual_seed(0)
            images = _augmented(self.task.train, augmentation)
            self._kinds = {augmentation: features_at(self.task.net, self.split, images, self.options.kept)}
        return KeptFeatures(self._kinds[augmentation], self.options.batch)


def _augmented(train: Shuffled | Photos, augmentation: str) -> Iterator[Tensor]:
    """Round after round: as they are, mirrored at random, or mirrored and moved by up to four pixels."""
    if isinstance(train, Photos):  # seen from nearer or farther, and mirrored, each time
        yield from endless(train)
    while True:
        for batch in Shuffled(train.images, train.batch) if augmentation != "none" else train.images.split(train.batch):
            if augmentation != "moved":
                yield batch
                continue
            padded = torch.nn.functional.pad(batch, (4, 4, 4, 4), mode="reflect")
            down, right = torch.randint(9, (2,)).tolist()
            yield padded[..., down : down + 32, right : right + 32]


def measured(kept: Kept, variation: Variation, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit with one thing changed; one row a quality."""
    torch.manual_seed(variation.seed)
    wrapping: dict[str, Any] = {"codec": "transform", **variation.options}
    recipe = replace(recipe_named(wrapping["codec"]), **variation.recipe)
    target = variation.target_bytes or options.target_bytes
    batches, task = kept.batches(variation.augmentation), kept.behind
    with contextlib.ExitStack() as stack:
        for name, value in variation.patches.items():
            stack.enter_context(mock.patch(name, value))
        task.net.reduced = options.bf16
        model = compoff.wrap(task.net, "input", example_input=task.test[:2], **wrapping)
        if variation.prepare is not None:
            variation.prepare(model, batches, target)
        report = compoff.fit(
            model,
            batches,
            steps=options.steps,
            recipe=recipe,
            target_bytes=target if wrapping["codec"] == "transform" else None,
            validation=list(_first(batches, 2)),
            seed=variation.seed,
        )
        task.net.reduced = False  # measured in full
        counted = batches.features[:6000].float() if variation is BASELINE else None
        rows = _rows(Fitted(task, model, "input"), report.seconds, counted)
        model.unwrap()
    return rows


def _first(batches: KeptFeatures, count: int) -> Iterator[Tensor]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch


def _rows(fitted: Fitted, seconds: float, counted: Tensor | None) -> list[dict[str, Any]]:
    """One row a quality: bytes, and what the output loses; with features to count on, what other tables would save."""
    task, rows = fitted.task, list[dict[str, Any]]()
    teacher, symbols = in_batches(task.net, task.test), fitted.symbols(task.test)
    for index, quality in enumerate(fitted.bottleneck.qualities()):
        lengths, scores = fitted.lengths(symbols, index), fitted.answers(task.test, symbols, quality)
        error = (scores - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum()
        divergence = torch.nn.functional.kl_div(
            scores.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean"
        )
        row = {
            "quality": index,
            "bytes": sum(lengths) / len(lengths),
            **paired(teacher, scores, task.labels),
            "output_error": float(error),
            "divergence": float(divergence),
            **fitted.macs(),
            "fit_seconds": seconds,
        }
        if counted is not None:
            entropy = context_bytes(fitted, counted, symbols, quality)
            row |= {f"entropy_bytes_{name}": value for name, value in entropy.items()}
        rows.append(row)
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet56", choices=CLASSIFIERS)
    parser.add_argument("--split", default="layer3")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--target-bytes", type=float, default=100.0, help="what every variation is aimed at")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--kept", type=int, default=20000, help="images whose features are fitted on")
    parser.add_argument("--bf16", action="store_true", help="fit with bfloat16 where autocast takes it")
    parser.add_argument("--measure", type=int, default=None, help="images to measure on; all without it")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=None, help="only the first images, for a trial")
    parser.add_argument("--only", nargs="+", default=None, help="groups of variations; all without it")
    parser.add_argument("--name", default=None, help="suffix of the file of results")
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    task = load_task(
        options.model, data_folder(options.data), batch=options.batch, device=options.device, limit=options.limit
    )
    task = replace(task, test=task.test[: options.measure], labels=task.labels[: options.measure])
    task.net.to(options.device)
    command = f"python -m benchmarks.ablations {shlex.join(sys.argv[1:]).replace(str(options.data), 'DATA')}"
    name = ".".join(filter(None, ["ablations", options.model, options.split, options.name]))
    path = _RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict[str, Any]] = found["rows"] if found.get("command") == command else []
    kept = Kept(task, options.split, options)
    for change, variation in {**VARIATIONS, **SEEDS}.items():
        if any(row["change"] == change for row in rows) or variation.group not in (options.only or [variation.group]):
            continue
        if isinstance(task.train, Photos) and variation.augmentation != BASELINE.augmentation:
            print(f"{change}: left out, photos are always sampled anew")
            continue
        named = {"group": variation.group, "change": change, "model": task.name, "split": options.split}
        rows += [{**named, "steps": options.steps, **row} for row in measured(kept, variation, options)]
        record(name, rows, seed=0, command=command)
        print(change, [(round(row["bytes"]), round(row["output_error"], 4)) for row in rows if row["change"] == change])


if __name__ == "__main__":
    main()
