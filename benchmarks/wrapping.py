"""What wrapping costs where no bottleneck is on, and how long it takes to find the split points of ResNet-50.

The same model runs unwrapped, wrapped and unwrapped again; such a ratio is free of what slows the machine for a while.

    python -m benchmarks.wrapping
"""

from __future__ import annotations

import argparse
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


def overhead_row(name: str, rounds: int, passes: int) -> dict[str, Any]:
    """Some passes of a model, wrapped and unwrapped again, in turns: the same weights at the same place in memory."""
    architecture = named(name)
    model, inputs = architecture.build(reduced=False), architecture.inputs(reduced=False, batch=1)
    example = architecture.inputs(reduced=False)
    paths = list(architecture.split_points)
    plain: list[float] = []
    ratios: list[float] = []

    def median_seconds(call: Callable[..., Any]) -> float:
        with torch.inference_mode():
            call(*inputs.args, **inputs.kwargs)
            return statistics.median(seconds(lambda: call(*inputs.args, **inputs.kwargs)) for _ in range(passes))

    for _ in range(rounds):
        before = median_seconds(model)
        wrapped = compoff.wrap(model, paths, example_input=(example.args, example.kwargs)).eval()
        between = median_seconds(wrapped)
        wrapped.unwrap()
        after = median_seconds(model)
        plain += [before, after]
        ratios.append(2 * between / (before + after))
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "measured": "teacher",
        "architecture": name,
        "split_points": len(paths),
        "rounds": rounds,
        "passes": passes,
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
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--passes", type=int, default=15, help="of each of the three, a round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [listing_row("ResNet-50", 3), *(overhead_row(name, options.rounds, options.passes) for name in _MODELS)]
    for row in rows:
        print(row)
    shape = f"--rounds {options.rounds} --passes {options.passes} --threads {options.threads}"
    print(record("wrapping", rows, seed=0, command=f"python -m benchmarks.wrapping {shape}"))


if __name__ == "__main__":
    main()
