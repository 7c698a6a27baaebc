"""What each choice of the transform codec is worth: the same fit with one thing changed, at the same number of steps.

Rows are added to the file as they are measured; what it already holds with the same settings is not measured again.

    python -m benchmarks.ablations --model cifar10-resnet56 --split layer3 --steps 300 --data DATA
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

import compoff
from benchmarks.networks import data_folder
from benchmarks.plain_codecs import in_batches
from benchmarks.rate_accuracy import Fitted
from benchmarks.record import record
from benchmarks.tasks import Task, load_task, paired
from compoff.codec import RefiningDecoder
from compoff.recipe import recipe_named

if TYPE_CHECKING:
    from torch import Tensor

_RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Variation:
    """One thing changed.

    Args:
        options: Keyword arguments of `compoff.wrap`.
        recipe: Fields of the recipe.
        patches: Names inside compoff that stand for something else meanwhile.
        linear: Whether the decoder stays linear.
    """

    options: dict[str, Any] = field(default_factory=dict[str, Any])
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    patches: dict[str, Any] = field(default_factory=dict[str, Any])
    linear: bool = False


def _slopes_of_nothing(
    wrapped: Any, split: str, batch: Any, generator: torch.Generator
) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
    """Gradients that favor no direction: what remains is the plain Karhunen-Loève transform."""
    from compoff.distilling import teacher_pass

    record_ = teacher_pass(wrapped.base, {split: wrapped.gate(split)}, wrapped.sites, batch, blocks=False)
    ys = record_.features[split]
    return ys, [tuple(torch.randn(y.shape, generator=generator).to(y) for y in ys)]


VARIATIONS = {
    "as it is": Variation(),
    "one rate": Variation(patches={"compoff.codec.transform.LADDER": (4,)}),
    "directions without sensitivity": Variation(patches={"compoff.fitting.calibrating._slopes": _slopes_of_nothing}),
    "tiles of 4": Variation(options={"stride": 4}),
    "64 channels": Variation(options={"channels": 64}),
    "linear decoder": Variation(linear=True),
    "reconstruction weighs as much as distillation": Variation(recipe={"reconstruction": 1.0}),
    "no reconstruction": Variation(recipe={"reconstruction": 0.0}),
    "half the weight of the rate": Variation(recipe={"rate": 0.07}),
    "three times the learning rate": Variation(recipe={"lr": 3e-3}),
    "the paper's codec, 8 channels": Variation(options={"codec": "deepcod", "channels": 8}),
    "the paper's codec, 16 channels": Variation(options={"codec": "deepcod", "channels": 16}),
    "the paper's codec, 32 channels": Variation(options={"codec": "deepcod", "channels": 32}),
}


def measured(task: Task, split: str, variation: Variation, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit with one thing changed; one row a quality."""
    torch.manual_seed(options.seed)
    wrapping = {"codec": "transform", **variation.options}
    recipe = replace(recipe_named(wrapping["codec"]), **variation.recipe)
    target = options.target_bytes if wrapping["codec"] == "transform" else None
    with contextlib.ExitStack() as stack:
        for name, value in variation.patches.items():
            stack.enter_context(mock.patch(name, value))
        example = task.test[:2].to(options.device)
        model = compoff.wrap(task.net.to(options.device), split, example_input=example, **wrapping)
        if variation.linear:
            compoff.calibrate(model, task.train, target_bytes=target, seed=options.seed)
            decoder = model.bottleneck(split).decoder
            assert isinstance(decoder, RefiningDecoder)
            decoder.leave.requires_grad_(requires_grad=False)  # the refinement starts at zero, and stays there
        report = compoff.fit(
            model, task.train, steps=options.steps, recipe=recipe, target_bytes=target, seed=options.seed
        )
        fitted = Fitted(task, model, split)
        teacher, symbols = in_batches(task.net, task.test), fitted.symbols(task.test)
        rows: list[dict[str, Any]] = []
        for index, quality in enumerate(fitted.bottleneck.qualities()):
            lengths, scores = fitted.lengths(symbols, index), fitted.answers(task.test, symbols, quality)
            error = (scores - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum()
            divergence = torch.nn.functional.kl_div(scores.log_softmax(1), teacher.log_softmax(1), log_target=True)
            rows.append(
                {
                    "quality": index,
                    "bytes": sum(lengths) / len(lengths),
                    **paired(teacher, scores, task.labels),
                    "output_error": float(error),
                    "divergence": float(divergence) * scores.shape[1],
                    "fit_seconds": report.seconds,
                }
            )
        model.unwrap()
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet56")
    parser.add_argument("--split", default="layer3")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--target-bytes", type=float, default=100.0, help="what every variation is aimed at")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=None, help="only the first images, for a trial")
    parser.add_argument("--name", default=None, help="suffix of the file of results")
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = data_folder(options.data)
    task = load_task(options.model, folder, batch=options.batch, device=options.device, limit=options.limit)
    command = f"python -m benchmarks.ablations {' '.join(sys.argv[1:]).replace(str(options.data), 'DATA')}"
    name = ".".join(filter(None, ["ablations", options.model, options.split, options.name]))
    path = _RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict[str, Any]] = found["rows"] if found.get("command") == command else []
    for change, variation in VARIATIONS.items():
        if any(row["change"] == change for row in rows):
            continue
        named = {"change": change, "model": task.name, "split": options.split, "steps": options.steps}
        rows += [{**named, **row} for row in measured(task, options.split, variation, options)]
        record(name, rows, seed=options.seed, command=command)
        print(change, [(round(row["bytes"]), round(row["agreement"], 3)) for row in rows if row["change"] == change])


if __name__ == "__main__":
    main()
