"""Bytes against accuracy at one split point: the paper's recipe beside JPEG, WebP and 8-bit features, same images.

Each rate is a fit of its own that a killed run resumes. What is measured is what a user gets: the exported head's
payloads and the exported tail's answers.

    python -m benchmarks.rate_accuracy --model cifar10-resnet56 --split layer3 --channels 8 16 32 64 --data DATA
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import compoff
from benchmarks.networks import CIFAR10_MEAN, CIFAR10_STD, data_folder, load_cifar_resnet, read_cifar10
from benchmarks.record import record
from compoff.coding import Code
from compoff.wire.frames import OVERHEAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

_ROOT = Path(__file__).resolve().parent.parent
_STATES = _ROOT / "benchmarks" / "states"  # not committed: fits under way
# Image codecs as small as Pillow makes them: a 32 x 32 JPEG with tables of its own is about a third shorter.
_AT_BEST: dict[str, dict[str, Any]] = {"jpeg": {"optimize": True}, "png": {"optimize": True}, "webp": {"method": 6}}
_MEAN, _STD = (torch.tensor(values).view(3, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))


@dataclass
class Task:
    """A network, what it is fitted on, and what it is measured on.

    Args:
        name: Name of the network in the results.
        net: The trained network.
        train: Normalised images to fit on; their labels are not read.
        test: Normalised images to measure on.
        labels: Their classes.
    """

    name: str
    net: nn.Module
    train: Tensor
    test: Tensor
    labels: Tensor


class Shuffled:
    """Batches in a new order each round, every second image mirrored at random.

    Args:
        images: All images.
        batch: Samples in a batch.
    """

    def __init__(self, images: Tensor, batch: int) -> None:
        self.images = images
        self.batch = batch

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.images))[: len(self) * self.batch]
        for indices in order.view(-1, self.batch):
            images = self.images[indices]
            mirrored = torch.rand(self.batch) < 0.5
            yield torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def load_task(model: str, folder: Path, limit: int | None) -> Task:
    """The network and the images of one name."""
    name, _, depth = model.partition("-resnet")
    if name != "cifar10" or depth not in ("20", "56"):
        raise SystemExit(f"--model {model}: expected cifar10-resnet20 or cifar10-resnet56")
    (train, _), (test, labels) = read_cifar10("train", folder), read_cifar10("test", folder)
    return Task(model, load_cifar_resnet(int(depth), folder), train[:limit], test[:limit], labels[:limit])


def drop_row(teacher: Tensor, student: Tensor, labels: Tensor) -> dict[str, float]:
    """Paired drop of the student against the teacher on the same samples, in points, with its standard error."""
    right_before, right_after = (logits.argmax(1) == labels for logits in (teacher, student))
    difference = right_before.double() - right_after.double()
    top5 = [(logits.topk(5, 1).indices == labels[:, None]).any(1).double() for logits in (teacher, student)]
    return {
        "top1": 100 * float(right_after.double().mean()),
        "drop": 100 * float(difference.mean()),
        "drop_stderr": 100 * float(difference.std()) / math.sqrt(len(labels)),
        "drop_top5": 100 * float((top5[0] - top5[1]).mean()),
        "agreement": float((teacher.argmax(1) == student.argmax(1)).double().mean()),
    }


@torch.inference_mode()
def in_batches(net: Any, images: Tensor) -> Tensor:
    """The network's scores."""
    return torch.cat([net(batch) for batch in images.split(100)])


def measure_compoff(task: Task, model: compoff.Wrapped, split: str, teacher: Tensor) -> dict[str, Any]:
    """Head, bytes, tail: every test image by itself."""
    head, tail = compoff.export(model, split)
    lengths: list[int] = []
    answers: list[Tensor] = []
    for batch in task.test.split(100):
        payloads = [head.payload_format.encode([sample[None]]) for sample in head.symbols(batch)[0]]
        lengths += [len(payload) for payload in payloads]
        answers.append(torch.cat(tail(payloads)))
    bottleneck = model.bottleneck(split)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        bottleneck.decode(torch.zeros(1, *bottleneck.latent_shape, dtype=torch.uint8))
    report = model.reports[split]
    return {
        "bytes": float(np.mean(lengths)),
        "bytes_p99": float(np.percentile(lengths, 99)),
        "ceiling_bytes": report["ceiling_bytes"],
        "wire_bytes": float(np.mean(lengths)) + OVERHEAD_BYTES,
        **drop_row(teacher, torch.cat(answers), task.labels),
        "encoder_macs": report["encoder_macs"],
        "decoder_macs": flops.get_total_flops() // 2,
        "encode_ms": encode_ms(head, bottleneck),
        "semi_orthogonality_error": report["semi_orthogonality_error"],
        "lipschitz_bound": report["lipschitz_bound"],
        "local_gain": report["local_gain"],
    }


def encode_ms(head: compoff.Head, bottleneck: compoff.Bottleneck) -> float:
    """Median time of what compoff adds on the device (encoder, quantizer, coder) for one sample, in milliseconds."""
    y = torch.randn(1, *bottleneck.geometry.shape)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(50):
            start = time.perf_counter()
            head.payload_format.encode([bottleneck.encode(y).numpy()])
            times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def fit_row(task: Task, split: str, channels: int, options: argparse.Namespace, teacher: Tensor) -> dict[str, Any]:
    """Fit one codec and measure it."""
    torch.manual_seed(options.seed)
    model = compoff.wrap(task.net, split, example_input=task.test[:2], channels=channels, num_centers=options.centers)
    state = _STATES / f"{task.name}.{split}.{channels}x{options.centers}.{options.steps}.safetensors"
    try:
        report = compoff.fit(
            model,
            Shuffled(task.train, options.batch),
            steps=options.steps,
            recipe=options.recipe,
            seed=options.seed,
            resume=state,
            device=options.device,
        )
        # Measured on the CPU wherever it was fitted: the artifact is the same.
        row = measure_compoff(task, model.to("cpu").eval(), split, teacher)
    finally:
        model.unwrap()
    settings = {"channels": channels, "centers": options.centers, "steps": options.steps, "batch": options.batch}
    return {
        "system": options.recipe,
        "model": task.name,
        "split": split,
        "quality": 0,
        **row,
        "fit_seconds": report.seconds,
        **settings,
    }


def as_image(sample: Tensor) -> Image.Image:
    """A normalised sample as the 8-bit image that it came from."""
    pixels = ((sample * _STD + _MEAN) * 255).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def picture_rows(task: Task, teacher: Tensor) -> list[dict[str, Any]]:
    """JPEG and WebP at several qualities, and PNG, in front of the unmodified network."""
    rows: list[dict[str, Any]] = []
    pictures = [as_image(sample) for sample in task.test]
    for system, quality in (
        [("jpeg", q) for q in (10, 25, 50, 75, 90)] + [("webp", q) for q in (10, 50, 90)] + [("png", 0)]
    ):
        lengths, decoded, times = [], [], []
        for picture in pictures:
            buffer, start = io.BytesIO(), time.perf_counter()
            picture.save(buffer, system, **_AT_BEST[system], **({} if system == "png" else {"quality": quality}))
            times.append(time.perf_counter() - start)
            lengths.append(buffer.tell())
            pixels = torch.from_numpy(np.array(Image.open(buffer).convert("RGB"))).permute(2, 0, 1)
            decoded.append((pixels.float() / 255 - _MEAN) / _STD)
        scores = in_batches(task.net, torch.stack(decoded))
        rows.append(
            {
                "system": system,
                "model": task.name,
                "split": "input",
                "quality": quality,
                "bytes": float(np.mean(lengths)),
                "wire_bytes": float(np.mean(lengths)) + OVERHEAD_BYTES,
                **drop_row(teacher, scores, task.labels),
                "encoder_macs": None,
                "decoder_macs": None,
                "encode_ms": 1000 * float(np.median(times)),
                "fit_seconds": 0.0,
            }
        )
    return rows


@torch.no_grad()
def feature_rows(task: Task, split: str, teacher: Tensor) -> list[dict[str, Any]]:
    """The feature itself at 8, 4 and 2 bits with a range coder: what one gets without a learned codec."""
    rows: list[dict[str, Any]] = []
    model = compoff.wrap(task.net, split, example_input=task.test[:2])
    gate, kept = model.gate(split), list[Any]()
    try:
        gate.replace = lambda y: (kept.append(y), y)[1]
        in_batches(model.base, task.test)
        y = torch.cat(kept)
        low, high = float(y.amin()), float(y.amax())
        for bits in (8, 4, 2):
            levels = 2**bits
            symbols = ((y - low) / (high - low) * (levels - 1)).round()
            pieces = iter((symbols / (levels - 1) * (high - low) + low).split(100))
            gate.replace = lambda _, pieces=pieces: next(pieces)
            scores = in_batches(model.base, task.test)
            flat = symbols.flatten(2).to(torch.uint8).numpy()
            counts = [[int((flat[:, c] == k).sum()) for k in range(levels)] for c in range(flat.shape[1])]
            tables = compoff.SymbolTables.from_counts(np.array(counts))
            coder = compoff.PayloadFormat(bytes(32), [Code(tables, flat.shape[1:])])
            lengths = [len(coder.encode([sample[None]])) for sample in flat]
            rows.append(
                {
                    "system": f"{bits}-bit features",
                    "model": task.name,
                    "split": split,
                    "quality": bits,
                    "bytes": float(np.mean(lengths)),
                    "wire_bytes": float(np.mean(lengths)) + OVERHEAD_BYTES,
                    **drop_row(teacher, scores, task.labels),
                    "encoder_macs": 0,
                    "decoder_macs": 0,
                    "encode_ms": None,
                    "fit_seconds": 0.0,
                }
            )
    finally:
        gate.replace = None
        model.unwrap()
    return rows


def bytes_at_drop(rows: list[dict[str, Any]], system: str, limit: float) -> float | None:
    """Fewest bytes at which a system's drop is at most `limit` points; None where it never is."""
    fitting = [row["bytes"] for row in rows if row["system"] == system and row["drop"] <= limit]
    return min(fitting) if fitting else None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet56")
    parser.add_argument("--split", required=True)
    parser.add_argument("--channels", type=int, nargs="+", required=True, help="channels of the latent, one fit each")
    parser.add_argument("--centers", type=int, default=8)
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps of each fit")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--recipe", default="deepcod")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu", help="where to fit")
    parser.add_argument("--name", default=None, help="suffix of the file of results")
    parser.add_argument("--limit", type=int, default=None, help="only the first images, for a trial")
    parser.add_argument("--data", type=Path, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    task = load_task(options.model, data_folder(options.data), options.limit)
    teacher = in_batches(task.net, task.test)
    rows = feature_rows(task, options.split, teacher)
    rows += picture_rows(task, teacher) if options.split == "input" else []
    command = (
        f"python -m benchmarks.rate_accuracy --model {options.model} --split {options.split} --channels "
        f"{' '.join(map(str, options.channels))} --centers {options.centers} --steps {options.steps}"
        + (f" --batch {options.batch} --device {options.device} --name {options.name}" if options.name else "")
        + " --data DATA"
    )
    name = ".".join(filter(None, ["rate_accuracy", options.model, options.split, options.name]))
    for channels in options.channels:
        rows.append(fit_row(task, options.split, channels, options, teacher))
        path = record(name, rows, seed=options.seed, command=command)
        print(json.dumps(rows[-1]), flush=True)
    for limit in (1, 2, 5):
        found = {system: bytes_at_drop(rows, system, limit) for system in dict.fromkeys(row["system"] for row in rows)}
        print(f"bytes at <= {limit} points of drop: {found}")
    print(path)


if __name__ == "__main__":
    main()
