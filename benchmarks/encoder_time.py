"""What the device does at the input of a 224 x 224 network beside Pillow's JPEG of the same image, on one core.

The head as PyTorch runs it, as onnxruntime does, and its parts: of the normalized image, and of its pixels, which is
what JPEG starts from, too. The codec is started from real images but not trained, which changes no time. The ways take
turns, in a new order each round, and each turn is a few runs: the first finds the caches full of another way's data, as
on a device that did something else meanwhile, the others find them as they left them.

    python -m benchmarks.encoder_time --data DATA
"""

from __future__ import annotations

import argparse
import functools
import io
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import compoff
from benchmarks.networks import data_folder
from benchmarks.record import record
from benchmarks.tasks import CLASSIFIERS, load_task
from compoff.batch import Batch
from compoff.codec import code_of
from compoff.coding import Coding, Payload, PayloadFormat
from compoff.fitting.measure import count_symbols

if TYPE_CHECKING:
    from collections.abc import Callable

_QUALITIES = (0, 5, 10)
_RUNS = 4  # a turn
_JPEG = (10, 25, 50, 75)


def in_turns(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float, int]]:
    """Median milliseconds of each way, of a turn's first run and of the others, and the bytes that it gives."""
    first: dict[str, list[float]] = {name: [] for name in ways}
    others: dict[str, list[float]] = {name: [] for name in ways}
    sizes, order = {name: way() for name, way in ways.items()}, random.Random(0)
    for _ in range(rounds):
        for name in order.sample([*ways], len(ways)):
            for run in range(_RUNS):
                start = time.perf_counter()
                ways[name]()
                (others if run else first)[name].append(time.perf_counter() - start)
    median = {name: [1000 * float(np.median(times[name])) for times in (first, others)] for name in ways}
    return {name: (*median[name], sizes[name]) for name in ways}


def decoded_size(coder: PayloadFormat, payload: Payload) -> int:
    """Decode a payload; the number of symbols in it."""
    return coder.decode(payload).symbols[0].size


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", choices=CLASSIFIERS)
    parser.add_argument("--images", type=int, default=96, help="to start the codec from")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--target-bytes", type=float, default=4000.0)
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(options.model, data_folder(options.data), batch=16, limit=options.images)
    batches = list(task.test.split(16))
    model = compoff.wrap(task.net, "input", example_input=task.test[:2]).eval()
    compoff.calibrate(model, batches, target_bytes=options.target_bytes)
    count_symbols(model, "input", [Batch((batch,)) for batch in batches])
    head = compoff.export(model, "input")[0]
    compiled = head.compile("onnx", threads=1)
    small = head.compile("onnx", threads=1, precision="int8", batches=batches, least_agreement=0.0)
    pixels = compoff.Pixels(task.mean, task.std)
    camera = compoff.export(model, "input", pixels=pixels)[0]
    quick = camera.compile("onnx", threads=1)
    integers = camera.compile("onnx", threads=1, precision="int8", batches=batches, least_agreement=0.0)
    bottleneck, picture = model.bottleneck("input"), task.pictures()[0]
    x = task.test[:1]
    plain, symbols, frame = x.numpy(), bottleneck.encode(x).numpy(), np.asarray(picture)[None]
    mean, std = (np.array(numbers, np.float32).reshape(3, 1, 1) for numbers in (task.mean, task.std))

    def normalized() -> int:
        scaled: np.ndarray[Any, Any] = (frame.astype(np.float32).transpose(0, 3, 1, 2) / 255 - mean) / std
        return np.ascontiguousarray(scaled).nbytes

    code = code_of(bottleneck)
    coder = PayloadFormat(bytes(32), [code])

    def coded(quality: int, coding: Coding) -> Payload:
        return coder.encode([code.sent(symbols, quality)], quality=quality, coding=coding)

    def jpeg(quality: int) -> int:
        buffer = io.BytesIO()
        picture.save(buffer, "jpeg", quality=quality)
        return buffer.tell()

    ways: dict[str, Callable[[], int]] = {
        "encoder and rounding alone, PyTorch": lambda: bottleneck.encode(x).numel(),
        "pixels normalized alone, numpy": normalized,
    }
    for index in _QUALITIES:
        ways |= {
            f"head, PyTorch, quality {index}": lambda index=index: len(head(x, quality=index)),
            f"head, onnxruntime, quality {index}": lambda index=index: len(compiled(plain, quality=index)),
            f"head, onnxruntime int8, quality {index}": lambda index=index: len(small(plain, quality=index)),
            f"head of pixels, onnxruntime, quality {index}": lambda index=index: len(quick(frame, quality=index)),
            f"head of pixels, onnxruntime int8, quality {index}": lambda index=index: len(
                integers(frame, quality=index)
            ),
            f"head of pixels, onnxruntime int8, quality {index}, static": lambda index=index: len(
                integers(frame, quality=index, coding="static")
            ),
        }
        for how, name in (("range", ""), ("static", ", static")):
            ways[f"coder alone, quality {index}{name}"] = lambda index=index, how=how: len(coded(index, how))
            decoder = f"decoder alone, on the edge, quality {index}{name}"
            ways[decoder] = functools.partial(decoded_size, coder, coded(index, how))
    ways |= {f"Pillow JPEG, quality {quality}": lambda quality=quality: jpeg(quality) for quality in _JPEG}
    with torch.inference_mode():
        found = in_turns(ways, options.rounds)
    encoder = bottleneck.encoder
    macs = int(getattr(encoder, "macs", 0))
    rows: list[dict[str, Any]] = [
        {
            "way": name,
            "ms": ms,
            "first_ms": first,
            "bytes": size if "quality" in name and "decoder" not in name else None,
            "encoder_macs": macs,
        }
        for name, (first, ms, size) in found.items()
    ]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.encoder_time {' '.join(sys.argv[1:]).replace(str(options.data), 'DATA')}".strip()
    print(record("encoder_time", rows, seed=0, command=command))


if __name__ == "__main__":
    main()
