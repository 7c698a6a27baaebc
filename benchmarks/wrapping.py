"""What wrapping costs where no bottleneck is on, and how long it takes to find the split points of ResNet-50.

The same model runs wrapped and unwrapped in turns; the ratio of a pair is free of what slows the machine for a while.

    python -m benchmarks.wrapping
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

import compoff
from benchmarks.record import record
from benchmarks.zoo import named

if TYPE_CHECKING:
    from collections.abc import Callable

_MODELS = ("ResNet-50", "MobileNetV3-Small", "ViT-Tiny")


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call: other programs on the machine take none of it."""
    began = time.process_time()
    call()
    return time.process_time() - began


def overhead_row(name: str, pairs: int) -> dict[str, Any]:
    """Teacher against model, one sample a batch, in turns."""
    architecture = named(name)
    model, inputs = architecture.build(reduced=False), architecture.inputs(reduced=False, batch=1)
    example = architecture.inputs(reduced=False)
    twin = copy.deepcopy(model)
    wrapped = compoff.wrap(twin, list(architecture.split_points), example_input=(example.args, example.kwargs)).eval()
    plain: list[float] = []
    ratios: list[float] = []
    with torch.inference_mode():
        calls = [lambda: model(*inputs.args, **inputs.kwargs), lambda: wrapped(*inputs.args, **inputs.kwargs)]
        for call in calls * 3:
            call()
        for number in range(pairs):
            order = (0, 1) if number % 2 else (1, 0)
            took = {which: seconds(calls[which]) for which in order}
            plain.append(took[0])
            ratios.append(took[1] / took[0])
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "measured": "teacher",
        "architecture": name,
        "split_points": len(architecture.split_points),
        "pairs": pairs,
        "plain_ms": 1000 * statistics.median(plain),
        "overhead_percent": 100 * (statistics.median(ratios) - 1),
        "overhead_low_percent": 100 * (quartiles[0] - 1),
        "overhead_high_percent": 100 * (quartiles[2] - 1),
    }


def listing_row(name: str, runs: int) -> dict[str, Any]:
    """Time to list the split points of a model."""
    architecture = named(name)
    model, example = architecture.build(reduced=False), architecture.inputs(reduced=False, batch=2)
    took: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        points = compoff.list_split_points(model, (example.args, example.kwargs))
        took.append(time.perf_counter() - began)
    return {
        "measured": "list_split_points",
        "architecture": name,
        "found": len(points),
        "runs": runs,
        "median_seconds": statistics.median(took),
        "largest_seconds": max(took),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [listing_row("ResNet-50", 3), *(overhead_row(name, options.pairs) for name in _MODELS)]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.wrapping --pairs {options.pairs} --threads {options.threads}"
    print(record("wrapping", rows, seed=0, command=command))


if __name__ == "__main__":
    main()
