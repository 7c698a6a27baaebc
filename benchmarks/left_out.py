"""What the channels of a codec leave out before anything is rounded, and so is lost at any rate.

python -m benchmarks.left_out --model yolo-fastest-1.1-xl --split layers.61 --sizes 7x294 7x1024 4x640 --data DATA
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import compoff
from benchmarks.networks import data_folder
from benchmarks.rate_accuracy import MODELS, load
from benchmarks.record import record
from benchmarks.scoring import WholeScorer
from benchmarks.tasks import endless

if TYPE_CHECKING:
    from benchmarks.tasks import Task


def row(task: Task, scorer: WholeScorer, options: argparse.Namespace, stride: int, channels: int) -> dict[str, Any]:
    """Start a codec from the directions of some features, and restore others from it as they are measured."""
    torch.manual_seed(0)
    model = compoff.wrap(task.net, options.split, example_input=task.test[:2], channels=channels, stride=stride)
    compoff.calibrate(model, list(itertools.islice(endless(task.train), options.batches)), target_bytes=1000)
    bottleneck, features = model.bottleneck(options.split), scorer.features(task.test)
    with torch.inference_mode():
        restored = bottleneck.decoder(bottleneck.encoder(features))
    teacher, answers = scorer.scores(features), scorer.scores(restored)
    model.unwrap()
    return {
        "model": task.name,
        "split": options.split,
        "stride": stride,
        "channels": channels,
        "feature_error": float((restored - features).square().sum() / (features - features.mean(0)).square().sum()),
        "output_error": float((answers - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum()),
        "samples": options.batches * options.batch,
        "encoder_macs": bottleneck.encoder.macs_of(channels),
        **task.compared(teacher, answers),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--split", required=True)
    parser.add_argument("--sizes", nargs="+", required=True, help="stride and channels, such as 7x294")
    parser.add_argument("--batches", type=int, default=40, help="batches whose features the directions are of")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--limit", type=int, default=None, help="only the first images, for a trial")
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.kept, options.bf16, options.clean, options.device, options.runtime = None, False, True, "cpu", "torch"
    task = load(options, data_folder(options.data))
    scorer = WholeScorer(task.net, options.split, task.test[:2])
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes]
    rows: list[dict[str, Any]] = []
    for stride, channels in sizes:
        rows.append(row(task, scorer, options, stride, channels))
        print(rows[-1], flush=True)
    command = f"python -m benchmarks.left_out {' '.join(sys.argv[1:]).replace(str(options.data), 'DATA')}"
    print(record(f"left_out.{options.model}.{options.split}", rows, seed=0, command=command))


if __name__ == "__main__":
    main()
