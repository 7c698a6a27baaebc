"""How long a tail takes in each of its runtimes: PyTorch, onnxruntime, inductor, TensorRT, the same batches in turns.

    COMPOFF_DATA=FOLDER python -m benchmarks.engines
    COMPOFF_DATA=FOLDER python -m benchmarks.engines --device cuda --backends eager inductor --batches 1 8 64 --name gpu
    python -m benchmarks.engines --model toy --pairs 3

The codec is not fitted: what it computes takes as long. On a CPU the runtimes get one core each, and a time is the
processor's; a GPU's is the wall's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import compoff


def one_core() -> None:
    """Keep this process, and every thread that a runtime starts, on one core; to be called before they are loaded."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def make_tail(model: str, split: str, codec: str) -> compoff.Tail:
    """The tail of a network at a split point."""
    import torch

    import compoff
    from benchmarks.networks import load_pqf

    torch.manual_seed(0)
    if model == "toy":
        net, size = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten()), 8
        split = "1"
    else:
        net, size = load_pqf(model), 224  # type: ignore[arg-type]
    wrapped = compoff.wrap(net.eval(), split, example_input=torch.zeros(2, 3, size, size), codec=codec)  # type: ignore[arg-type]
    return compoff.export(wrapped, split, max_batch=64)[1]


def compiled(tail: compoff.Tail, backends: list[str], device: str) -> dict[str, tuple[compoff.Tail, float]]:
    """The tail in each runtime that works here, with the seconds that compiling took."""
    from compoff.errors import BackendError

    made: dict[str, tuple[Any, float]] = {}
    for backend in backends:
        began = time.perf_counter()
        try:
            made[backend] = tail.compile(backend, device=device), time.perf_counter() - began  # type: ignore[arg-type]
        except BackendError as error:
            print(f"{backend}: {error}")
    return made


def timed(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    began = clock()
    call()
    return clock() - began


def rows_of(
    made: dict[str, tuple[compoff.Tail, float]], batch: int, pairs: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """One row a runtime: all of them answer the same batch in turns, and each is compared with PyTorch pair by pair."""
    from compoff.edge.backends.samples import sample_parts

    tail = next(iter(made.values()))[0]
    parts = sample_parts(tail.manifest, batch)
    calls = {name: (lambda one=one: one.backend.run(parts)) for name, (one, _) in made.items()}
    for call in calls.values():
        for _ in range(3):
            call()
    took: dict[str, list[float]] = {name: [] for name in made}
    for number in range(pairs):
        order = list(made) if number % 2 else list(reversed(made))
        for name in order:
            took[name].append(timed(calls[name], clock))
    return [
        {
            "backend": name,
            "batch": batch,
            "pairs": pairs,
            "median_ms": 1000 * statistics.median(took[name]),
            "times_eager": statistics.median(a / b for a, b in zip(took["eager"], took[name], strict=True)),
            "deviation": one.choice.deviation,
            "compile_seconds": seconds,
            "engine_bytes": sum(len(data) for file, data in one.backend.files.items() if file.startswith("engine.")),
        }
        for name, (one, seconds) in made.items()
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("resnet50", "resnet18", "toy"), default="resnet50")
    parser.add_argument("--split", default="layer2")
    parser.add_argument("--codecs", nargs="+", default=["deepcod", "transform"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backends", nargs="+", default=["eager", "onnx", "inductor"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--name", default="")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    if on_cpu:
        one_core()
    clock = time.process_time if on_cpu else time.perf_counter
    rows: list[dict[str, Any]] = []
    for codec in options.codecs:
        tail = make_tail(options.model, options.split, codec)
        made = compiled(tail, options.backends, options.device)
        for batch in options.batches:
            for row in rows_of(made, batch, options.pairs, clock):
                rows.append({"model": options.model, "split": options.split, "codec": codec, **row})
                print(rows[-1])
    if options.model != "toy":  # which only shows that the program runs
        from benchmarks.record import record

        print(record("engines" + (f".{options.name}" if options.name else ""), rows, seed=0, command=_command(options)))


def _command(options: argparse.Namespace) -> str:
    words = [f"--model {options.model} --split {options.split} --codecs {' '.join(options.codecs)}"]
    words += [f"--device {options.device} --backends {' '.join(options.backends)}"]
    words += [f"--batches {' '.join(map(str, options.batches))} --pairs {options.pairs}"]
    return " ".join(["python -m benchmarks.engines", *words, *([f"--name {options.name}"] if options.name else [])])


if __name__ == "__main__":
    main()
