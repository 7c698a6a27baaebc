"""Bytes against accuracy at one split point: one fit for every rate, beside other codecs on the same images.

Beside it are the paper's codec, JPEG, WebP and plain features. A fit that was killed, or ran out of its budget, goes on
when the same line is run again. Bytes are those of the payloads that the exported head makes; the first images also go
through head and tail, whose answers must be the same.

    python -m benchmarks.rate_accuracy --model cifar10-resnet56 --split layer3 --steps 2000 --data DATA
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import compoff
from benchmarks.behind import Behind, KeptFeatures, features_at, in_stages
from benchmarks.detection import DETECTORS, load_detection
from benchmarks.fit_cost import fit_cost
from benchmarks.fitted import Fitted
from benchmarks.keywords import load_keywords
from benchmarks.networks import data_folder
from benchmarks.plain_codecs import feature_rows, picture_rows
from benchmarks.record import record
from benchmarks.scoring import Scorer, WholeScorer
from benchmarks.sentences import load_sentences
from benchmarks.sounds import SoundTask, sound_rows
from benchmarks.tasks import CLASSIFIERS, CONDITIONS, Task, endless, load_task
from compoff.wire.frames import OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_ROOT = Path(__file__).resolve().parent.parent
_STATES = _ROOT / "benchmarks" / "states"  # not committed: fits under way
MODELS = (*CLASSIFIERS, *DETECTORS, "bcresnet2", "deepspeech")
_SYSTEMS = {"transform": "compoff", "adapted": "compoff, adapted tail", "deepcod": "deepcod"}
_LATER = 75  # exit status of a run that is to be started again


class OutOfTime(Exception):
    """The budget is spent; what is in the state file is not lost."""


@dataclass
class Budgeted:
    """Batches that end a fit when its time is over.

    Args:
        batches: The batches.
        until: When, by the monotonic clock.
    """

    batches: Any
    until: float

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            if time.monotonic() > self.until:
                raise OutOfTime
            yield batch


def fit(task: Task, split: str, codec: str, options: argparse.Namespace) -> tuple[compoff.Wrapped, dict[str, Any]]:
    """Fit one codec, or go on with it; returns the wrapped network, and what the fit cost."""
    torch.manual_seed(options.seed)
    task.net.to(options.device)
    example = task.test[:2].to(options.device)
    channels = options.channels if codec == "deepcod" else options.directions
    wrapping: dict[str, Any] = {"codec": "transform" if codec == "adapted" else codec, "channels": channels}
    wrapping |= {"strict": codec != "adapted", "stride": options.stride}
    model = compoff.wrap(task.net, split, example_input=example, **wrapping)
    named = [task.name, split, codec, channels, options.target_bytes, options.steps, options.batch, options.limit]
    named += [options.kept, "bf16" if options.bf16 else None, options.seed or None]
    named += [f"stride{options.stride}" if options.stride else None]
    state = _STATES / f"{'.'.join(str(part) for part in named if part is not None)}.safetensors"
    fitted, batches = model, task.train
    if options.kept:
        features = _kept(task, split, options)
        batches, net = KeptFeatures(features, options.batch), Behind(task.net, split, reduced=options.bf16).eval()
        model.unwrap()
        fitted = compoff.wrap(net, "input", example_input=features[:2].float(), **wrapping)
    report = compoff.fit(
        fitted,
        Budgeted(batches, options.until),
        steps=options.steps,
        target_bytes=None if codec == "deepcod" else options.target_bytes,
        validation=list(itertools.islice(batches, 2)),  # the rows are measured here, on other images
        seed=options.seed,
        resume=state,
    )
    if options.kept:
        made = fitted.bottleneck("input").state_dict()
        fitted.unwrap()
        model = compoff.wrap(task.net, split, example_input=example, **wrapping)
        model.bottleneck(split).load_state_dict(made)
    cost = {"fit_seconds": report.seconds}
    if in_stages(task.net):
        cost |= fit_cost(model, split, example, steps=options.steps, batch=options.batch, kept=options.kept)
    return model, cost


def _kept(task: Task, split: str, options: argparse.Namespace) -> Tensor:
    """The features to fit on, computed once; a fit that goes on finds them again."""
    path = _STATES / f"features.{task.name}.{split}.{options.kept}.{options.seed}.safetensors"
    if not path.exists():
        torch.manual_seed(options.seed)
        before = scorer_of(task, options).before if options.runtime == "onnxruntime" else None
        features = features_at(task.net, split, endless(task.train), options.kept, before)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.cpu()}, path)
    return load_file(path)["features"].to(options.device)


def fitted_rows(fitted: Fitted, codec: str, teacher: Tensor, cost: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a quality."""
    task, rows, macs = fitted.task, list[dict[str, Any]](), fitted.macs()
    symbols, adapter = fitted.symbols(task.test), fitted.bottleneck.adapter
    for index, quality in enumerate(fitted.bottleneck.qualities()):
        mean = float(np.mean(fitted.lengths(symbols, index)))
        row = {
            "system": _SYSTEMS[codec],
            "model": task.name,
            "split": fitted.split,
            "quality": quality.channels if codec == "deepcod" else index,
            "bytes": mean,
            "wire_bytes": mean + OVERHEAD_BYTES,
            "static_bytes": float(np.mean(fitted.lengths(symbols, index, "static"))),
            **task.compared(teacher, fitted.answers(task.test, symbols, quality)),
            **macs,
            "encoder_macs": fitted.encoder_macs(quality),
            "adapter_bytes": adapter.bytes if adapter is not None else 0,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    fitted.check()
    for index, row in enumerate(rows):
        row.update(encode_ms=fitted.encode_ms(index), **cost)
    return rows


def shifted_rows(fitted: Fitted, scorer: Scorer | WholeScorer) -> list[dict[str, Any]]:
    """Bytes and drop of images that were blurred, noisy or JPEG before; the largest payload beside its limit."""
    task, rows, pictures = fitted.task, list[dict[str, Any]](), fitted.task.pictures()
    for condition, spoil in {"clean": lambda picture: picture, **CONDITIONS}.items():
        images = task.normalized([spoil(picture) for picture in pictures])
        teacher, symbols = scorer.scores(scorer.features(images)), fitted.symbols(images)
        for index, quality in enumerate(fitted.bottleneck.qualities()):
            lengths = fitted.lengths(symbols, index)
            rows.append(
                {
                    "system": "compoff",
                    "model": task.name,
                    "split": fitted.split,
                    "condition": condition,
                    "quality": index,
                    "bytes": float(np.mean(lengths)),
                    "largest_bytes": max(lengths),
                    "limit_bytes": fitted.coder.max_bytes(1, index),
                    **task.compared(teacher, fitted.answers(images, symbols, quality)),
                }
            )
    return rows


def bytes_at_drop(rows: list[dict[str, Any]], system: str, limit: float) -> float | None:
    """Fewest bytes at which a system's drop is at most `limit` points; None where it never is."""
    fitting = [row["bytes"] for row in rows if row["system"] == system and row["drop"] <= limit]
    return min(fitting) if fitting else None


def advise(rows: list[dict[str, Any]], limit: float) -> None:
    """Say what each system needs, and so whether a plain image codec would do better at the input."""
    found = {system: bytes_at_drop(rows, system, limit) for system in dict.fromkeys(row["system"] for row in rows)}
    print(f"bytes at <= {limit} points of drop: {found}")
    ours, plain = found.get("compoff"), {name: found[name] for name in ("jpeg", "webp") if found.get(name) is not None}
    if plain and (ours is None or min(plain.values()) < ours):
        print(f"notice: plain {min(plain, key=lambda name: plain[name])} needs fewer bytes here")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw bytes against drop, one line a system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for system in dict.fromkeys(row["system"].rpartition("-bit ")[2] for row in rows):
        points = sorted((row["bytes"], row["drop"]) for row in rows if row["system"].endswith(system))
        axes.plot(*zip(*points, strict=True), marker="o", label=system)
    axes.set(xscale="log", xlabel="bytes of a payload", ylabel="drop, points", ylim=(-1, 20))
    axes.axhline(1, color="gray", linewidth=0.5)
    axes.legend()
    axes.set_title(f"{rows[0]['model']} at {rows[0]['split']}")
    figure.savefig(path, dpi=120)


def scorer_of(task: Task, options: argparse.Namespace) -> Scorer:
    """What measures the network's answers."""
    task.net.to("cpu" if options.runtime == "onnxruntime" else options.device)
    example = task.test[:2].to(next(task.net.parameters()).device)
    return Scorer(task.net, options.split, example, runtime=options.runtime, threads=options.threads)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The options; those of the command line unless they are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet56", choices=MODELS)
    parser.add_argument("--split", required=True)
    parser.add_argument("--codecs", nargs="+", default=["transform"], choices=sorted(_SYSTEMS))
    parser.add_argument("--channels", type=int, default=None, help='of codec "deepcod", which sets its bytes')
    parser.add_argument("--directions", type=int, default=None, help="channels of the transform codec; its own without")
    parser.add_argument("--stride", type=int, default=None, help="side of the encoder's tile; the codec's own without")
    parser.add_argument("--target-bytes", type=float, default=None, help="what the ladder of rates is aimed at")
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps of each fit")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="fits of the codec, one a seed; of others the first"
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu", help="where to fit")
    parser.add_argument("--seconds", type=float, default=None, help="stop then, with status 75; run again to go on")
    parser.add_argument("--name", default=None, help="suffix of the files of results")
    parser.add_argument("--limit", type=int, default=None, help="only the first images, for a trial")
    parser.add_argument("--kept", type=int, default=None, help="fit on the features of so many images, kept")
    parser.add_argument("--measure", type=int, default=None, help="measure on the first images only")
    parser.add_argument("--bf16", action="store_true", help="fit in bfloat16 what lies behind the kept features")
    parser.add_argument("--runtime", default="torch", choices=["torch", "onnxruntime"], help="what to measure with")
    parser.add_argument("--clean", action="store_true", help="leave out the spoilt images")
    parser.add_argument("--data", type=Path, default=None)
    return parser.parse_args(given)


def load(options: argparse.Namespace, folder: Path) -> Task:
    """The task that is named, if it can be measured as is asked for."""
    named = {"batch": options.batch, "device": options.device, "limit": options.limit}
    if options.model in DETECTORS:
        task: Task = load_detection(options.model, folder, **named)
    elif options.model == "bcresnet2":
        task = load_keywords(folder, **named)
    elif options.model == "deepspeech":
        task = load_sentences(folder, **named)
    else:
        task = load_task(options.model, folder, **named)
    if not in_stages(task.net) and (options.kept or options.bf16 or options.runtime != "torch"):
        raise SystemExit(f"{options.model} has no stages: leave out --kept, --bf16 and --runtime")
    if isinstance(task, SoundTask) and not options.clean:
        raise SystemExit("spoilt images are no sounds; give --clean")
    return task


def main() -> None:
    """Run the benchmark."""
    options = parse()
    options.until = time.monotonic() + (options.seconds or float("inf"))
    if options.threads:
        torch.set_num_threads(options.threads)
    folder = data_folder(options.data)
    task = load(options, folder)
    task.test, task.labels = task.test[: options.measure], task.labels[: options.measure]
    rows: list[dict[str, Any]] = []
    shifted: list[dict[str, Any]] = []
    scorer = None if in_stages(task.net) else WholeScorer(task.net, options.split, task.test[:2])
    fits = [(seed, codec) for seed in options.seeds for codec in options.codecs]
    for seed, codec in [(seed, codec) for seed, codec in fits if seed == options.seeds[0] or codec == "transform"]:
        options.seed = seed
        try:
            model, cost = fit(task, options.split, codec, options)
        except OutOfTime:
            print("out of time; run the same line again to go on")
            sys.exit(_LATER)
        scorer = scorer or scorer_of(task, options)
        fitted = Fitted(task, model, options.split, None if codec == "adapted" else scorer)
        teacher = scorer.scores(scorer.features(task.test))
        rows += [{**row, "seed": seed} for row in fitted_rows(fitted, codec, teacher, cost)]
        model.to(options.device)  # timing has moved it
        if codec == "transform" and seed == options.seeds[0] and not options.clean:
            shifted += shifted_rows(fitted, scorer)
        model.unwrap()
    scorer = scorer or scorer_of(task, options)
    teacher = scorer.scores(scorer.features(task.test))
    rows += feature_rows(task, options.split, scorer, teacher)
    if options.split == "input" and isinstance(task, SoundTask) and isinstance(scorer, WholeScorer):
        rows += sound_rows(task, scorer, teacher)
    elif options.split == "input":
        rows += picture_rows(task, scorer, teacher)
    given = " ".join(sys.argv[1:])
    command = f"python -m benchmarks.rate_accuracy {given.replace(str(options.data), 'DATA')}"
    name = ".".join(filter(None, [options.model, options.split, options.name]))
    path = record(f"rate_accuracy.{name}", rows, seed=options.seeds[0], command=command)
    if shifted:
        record(f"robustness.{name}", shifted, seed=options.seeds[0], command=command)
    plot(rows, path.with_suffix(".png"))
    for limit in (1, 2, 5):
        advise(rows, limit)
    print(path)


if __name__ == "__main__":
    main()
