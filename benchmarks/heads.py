"""A ResNet-50 head at layer2 in PyTorch and onnxruntime, fp32 and int8: time on one core, and what int8 costs.

The runtimes take turns, run by run, so that whatever else the machine does meets them all alike. ExecuTorch takes part
where it is installed. The codec's share is that of encoder, quantizer, coder and checks in the time of a call.
`--part task` measures what changes for the task: symbols, payloads, and the paired drop against PyTorch's head with the
same tail. It fits a codec first, and keeps the export under benchmarks/states.

    python -m benchmarks.heads --part speed --data DATA
    python -m benchmarks.heads --part task --data DATA
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch

import compoff
from benchmarks.networks import data_folder, load_pqf, read_imagenet_val
from benchmarks.record import record
from benchmarks.tasks import Task, load_task, paired
from compoff.device.runners.onnx import PROGRAM

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.codec_options import CodecName

    Answers: TypeAlias = tuple[Tensor, list[bytes], np.ndarray[Any, Any]]

__all__ = ["main"]

_STATES = Path(__file__).resolve().parent / "states"
_SPLIT = "layer2"
_CALIBRATION = 64  # photos that int8 is calibrated on
_CODECS: tuple[CodecName, ...] = ("deepcod", "transform")


def main() -> None:
    """Measure one part and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["speed", "task"], required=True)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=200, help="turns of the runtimes")
    parser.add_argument("--images", type=int, default=300, help="images to measure the task on")
    parser.add_argument("--qualities", type=int, nargs="+", default=[2, 3, 4, 5], help="qualities to measure it at")
    parser.add_argument("--steps", type=int, default=60, help="steps of the fit")
    parser.add_argument(
        "--export", type=Path, default=_STATES / "heads.resnet50", help="where the fitted export is kept"
    )
    options = parser.parse_args()
    folder = data_folder(options.data)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.part == "speed":
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # ExecuTorch's own threads have no other setting
        command = f"python -m benchmarks.heads --part speed --runs {options.runs}"
        record("heads", speed_rows(folder, options.runs), seed=0, command=command)
    else:
        qualities = " ".join(map(str, options.qualities))
        settings = f"--images {options.images} --qualities {qualities} --steps {options.steps}"
        command = f"python -m benchmarks.heads --part task {settings}"
        record("heads.task", task_rows(folder, options), seed=0, command=command)


def photos(folder: Path, count: int) -> list[Tensor]:
    """Photos to calibrate on; none of them is among the images that are measured."""
    batches = load_task("resnet50", folder, batch=8, limit=600).train
    return list(itertools.islice(batches, count // 8))


def heads_of(head: compoff.Head, calibration: list[Tensor]) -> dict[str, compoff.Head]:
    """One export in each runtime that is here."""
    made = {
        "torch": head,
        "onnx fp32": head.compile("onnx", batches=calibration[:1], threads=1),
        "onnx int8": head.compile("onnx", precision="int8", batches=calibration, least_agreement=0.0, threads=1),
    }
    if importlib.util.find_spec("executorch") is not None:
        made["executorch fp32"] = head.compile("executorch", batches=calibration[:1])
    return made


def speed_rows(folder: Path, runs: int) -> list[dict[str, Any]]:
    """Times of each runtime, with each codec as `wrap` makes it."""
    calibration = photos(folder, _CALIBRATION)
    x = next(read_imagenet_val(folder, limit=1))[0].numpy()
    rows: list[dict[str, Any]] = []
    for codec in _CODECS:
        wrapped = compoff.wrap(load_pqf("resnet50", folder), _SPLIT, example_input=calibration[0][:2], codec=codec)
        head, _ = compoff.export(wrapped, _SPLIT)
        heads = heads_of(head, calibration)
        programs, _ = timed(heads, x, runs)
        for name, one in heads.items():
            program = statistics.median(programs[name])
            # Alone, as on a device: another runtime's turn would leave its own data in the caches.
            alone, calls = (times[name] for times in timed({name: one}, x, runs))
            around = statistics.median(after - before for before, after in zip(alone, calls, strict=True))
            share = encoder_share(one, x) if name.startswith("onnx") else None
            rows.append(
                {
                    "model": "resnet50",
                    "split": _SPLIT,
                    "codec": codec,
                    "runtime": name,
                    "call_ms": 1e3 * statistics.median(calls),
                    "program_ms": 1e3 * program,
                    "fastest_ms": 1e3 * min(programs[name]),
                    "times_torch": statistics.median(map(ratio, programs["torch"], programs[name])),
                    "codec_share": None
                    if share is None
                    else (share * statistics.median(alone) + around) / statistics.median(calls),
                    "coder_ms": 1e3 * around,
                    "head_macs": head.manifest.report.get("head_macs"),
                    "file_bytes": len(next(iter(one.runner.files.values()))),
                    "runs": runs,
                }
            )
            print({key: value for key, value in rows[-1].items() if key not in ("model", "split")}, flush=True)
    return rows


class Watched:
    """A runner that keeps how long its last run took."""

    def __init__(self, runner: Any) -> None:
        """Watch a runner."""
        self.runner, self.seconds = runner, 0.0

    def run(self, inputs: Any) -> Any:
        """Run it."""
        begin = time.perf_counter()
        outputs = self.runner.run(inputs)
        self.seconds = time.perf_counter() - begin
        return outputs


def timed(heads: dict[str, compoff.Head], x: Any, runs: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each head's program and of the whole call around it, the heads in turn."""
    programs: dict[str, list[float]] = {name: [] for name in heads}
    calls: dict[str, list[float]] = {name: [] for name in heads}
    watched = {
        name: compoff.Head(one.manifest, one.tables, cast("Any", Watched(one.runner))) for name, one in heads.items()
    }
    for turn in range(runs + 3):
        for name, one in watched.items():
            begin = time.perf_counter()
            one(x)
            end = time.perf_counter()
            if turn >= 3:  # the first turns warm up
                programs[name].append(cast("Any", one.runner).seconds)
                calls[name].append(end - begin)
    return programs, calls


def ratio(first: float, second: float) -> float:
    """The first in times of the second."""
    return first / second


def encoder_share(head: compoff.Head, array: Any, runs: int = 20) -> float:
    """The part of the program's time in which encoder and quantizer run, as onnxruntime's profile has it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(head.runner.files[PROGRAM], options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, {session.get_inputs()[0].name: array})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    a_run = len(kernels) // runs
    shares = []
    for begin in range(a_run, len(kernels), a_run):  # the first run is the warm-up
        run = kernels[begin : begin + a_run]
        last = max(index for index, event in enumerate(run) if "Conv" in event["args"]["op_name"])
        shares.append(sum(event["dur"] for event in run[last:]) / sum(event["dur"] for event in run))
    return statistics.median(shares)


def task_rows(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What changes with the runtime: symbols, payloads, answers."""
    task = load_task("resnet50", folder, batch=8, limit=600)
    images, labels = zip(*read_imagenet_val(folder, limit=options.images), strict=True)
    task.test, task.labels = torch.cat(images), torch.cat(labels)
    head, tail = fitted(task, options)
    calibration = list(itertools.islice(task.train, _CALIBRATION // 8))
    heads = heads_of(head, calibration)
    with torch.inference_mode():
        teacher = torch.cat([task.net(batch) for batch in task.test.split(10)])
    rows: list[dict[str, Any]] = []
    for quality in options.qualities:
        found: dict[str, Answers] = {}
        for name, one in heads.items():
            found[name] = answers(one, tail, task, quality, found.get("torch"))
            rows.append(task_row(found[name], found["torch"], teacher, task, name, quality))
            print(rows[-1], flush=True)
    return rows


def fitted(task: Task, options: argparse.Namespace) -> tuple[compoff.Head, compoff.Tail]:
    """The fitted export, made where it is not kept."""
    if not (options.export / "tail" / "manifest.yaml").exists():
        wrapped = compoff.wrap(task.net, _SPLIT, example_input=task.test[:2], codec="transform")
        compoff.fit(wrapped, task.train, steps=options.steps, target_bytes=4000, progress=sys.stderr.isatty())
        head, tail = compoff.export(wrapped, _SPLIT)
        wrapped.unwrap()
        head.save(options.export / "head")
        tail.save(options.export / "tail")
    return compoff.Head.load(options.export), compoff.Tail.load(options.export)


def answers(head: compoff.Head, tail: compoff.Tail, task: Task, quality: int, plain: Answers | None) -> Answers:
    """The tail's answers to a head's payloads, the payloads, one an image, and the symbols in them."""
    payloads = [head(image, quality=quality) for image in task.test.split(1)]
    symbols = [head.payload_format.decode(payload).symbols[0] for payload in payloads]
    data = [bytes(payload) for payload in payloads]
    known = dict(zip(plain[1], plain[0].split(1), strict=True)) if plain else {}  # equal payloads, equal answers
    logits = torch.cat([known[one] if one in known else tail(one) for one in data])
    return logits, data, np.concatenate(symbols)


def task_row(
    found: Answers,
    plain: Answers,
    teacher: Tensor,
    task: Task,
    name: str,
    quality: int,
) -> dict[str, Any]:
    """One head at one quality, beside PyTorch's."""
    (logits, payloads, symbols), (before, others, expected) = found, plain
    extra = paired(before, logits, task.labels)
    return {
        "model": "resnet50",
        "split": _SPLIT,
        "codec": "transform",
        "runtime": name,
        "quality": quality,
        "images": len(payloads),
        "bytes": statistics.mean(map(len, payloads)),
        "symbols_changed": float((symbols != expected).mean()),
        "payloads_equal": statistics.mean(one == other for one, other in zip(payloads, others, strict=True)),
        "drop": paired(teacher, logits, task.labels)["drop"],
        "extra_drop": extra["drop"],
        "extra_drop_stderr": extra["drop_stderr"],
        "agreement": extra["agreement"],
    }


if __name__ == "__main__":
    main()
