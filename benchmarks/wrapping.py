"""What wrapping costs where no bottleneck is on, and how long it takes to find the split points of ResNet-50.

The same model runs wrapped and by itself in turns; differences of neighbors are free of what slows the machine for a
while.

    python -m benchmarks.wrapping
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

import compoff
from benchmarks.record import record
from benchmarks.zoo import named

if TYPE_CHECKING:
    from collections.abc import Callable

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
WARM_UP = 10
_MODELS = ("ResNet-50", "MobileNetV3-Small", "ViT-Tiny")


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call: other programs on the machine take none of it."""
    began = time.process_time()
    call()
    return time.process_time() - began


def overhead_row(name: str, pairs: int) -> dict[str, Any]:
    """What a pass of the wrapped model takes more than one of the model itself, whose hooks are set aside meanwhile."""
    architecture = named(name)
    model, inputs = architecture.build(reduced=False), architecture.inputs(reduced=False, batch=1)
    example = architecture.inputs(reduced=False)
    paths = list(architecture.split_points)
    wrapped = compoff.wrap(model, paths, example_input=(example.args, example.kwargs)).eval()
    hung = [(module, kind, getattr(module, kind)) for module in model.modules() for kind in HOOKS]
    hung = [entry for entry in hung if entry[2]]
    none = OrderedDict[int, Any]()
    plain: list[float] = []
    more: list[float] = []

    def plain_seconds() -> float:
        for module, kind, _ in hung:
            setattr(module, kind, none)
        took = seconds(lambda: model(*inputs.args, **inputs.kwargs))
        for module, kind, hooks in hung:
            setattr(module, kind, hooks)
        return took

    def wrapped_seconds() -> float:
        return seconds(lambda: wrapped(*inputs.args, **inputs.kwargs))

    with torch.inference_mode():
        for number in range(pairs + WARM_UP):
            order = (plain_seconds, wrapped_seconds) if number % 2 else (wrapped_seconds, plain_seconds)
            took = {measure: measure() for measure in order}
            if number >= WARM_UP:
                plain.append(took[plain_seconds])
                more.append(took[wrapped_seconds] - took[plain_seconds])
    whole = statistics.median(plain)
    low, middle, high = statistics.quantiles(more, n=4)
    return {
        "measured": "teacher",
        "architecture": name,
        "split_points": len(paths),
        "pairs": pairs,
        "plain_ms": 1000 * whole,
        "overhead_us": 1e6 * middle,
        "overhead_percent": 100 * middle / whole,
        "overhead_low_percent": 100 * low / whole,
        "overhead_high_percent": 100 * high / whole,
    }


def listing_row(name: str, runs: int) -> dict[str, Any]:
    """Time to list the split points of a model."""
    architecture = named(name)
    model, example = architecture.build(reduced=False), architecture.inputs(reduced=False, batch=2)
    found = 0
    took: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        found = len(compoff.list_split_points(model, (example.args, example.kwargs)))
        took.append(time.perf_counter() - began)
    return {
        "measured": "list_split_points",
        "architecture": name,
        "found": found,
        "runs": runs,
        "median_seconds": statistics.median(took),
        "largest_seconds": max(took),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
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
