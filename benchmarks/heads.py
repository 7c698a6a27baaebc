"""A ResNet-50 head at layer2 in PyTorch and onnxruntime, fp32 and int8: time on one core.

The runtimes take turns, run by run, so that whatever else the machine does meets them all alike. ExecuTorch takes part
where it is installed. The codec's share is that of encoder, quantizer, coder and checks in the time of a call. The
paper's codec is as `wrap` makes it; the transform codec, which computes the channels of a quality only, is fitted
first, and the export kept under benchmarks/states.

    python -m benchmarks.heads --data DATA
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

import compoff
from benchmarks.networks import data_folder, read_imagenet_val
from benchmarks.record import record
from benchmarks.tasks import load_task
from compoff.device.runners.onnx import PROGRAM

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.tasks import Task

__all__ = ["CALIBRATION", "EXPORT", "SPLIT", "fitted", "heads_of", "main"]

SPLIT = "layer2"
CALIBRATION = 64
"""Photos that int8 is calibrated on."""
EXPORT = Path(__file__).resolve().parent / "states" / "heads.resnet50"
"""Where the fitted export is kept."""
_STEPS = 60  # of the fit


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=200, help="turns of the runtimes")
    parser.add_argument("--export", type=Path, default=EXPORT, help="where the fitted export is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # ExecuTorch's own threads have no other setting
    rows = speed_rows(data_folder(options.data), options.runs, options.export)
    record("heads", rows, seed=0, command=f"python -m benchmarks.heads --runs {options.runs}")


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


def fitted(task: Task, export: Path, steps: int) -> tuple[compoff.Head, compoff.Tail]:
    """The fitted export, made where it is not kept."""
    if not (export / "tail" / "manifest.yaml").exists():
        wrapped = compoff.wrap(task.net, SPLIT, example_input=task.test[:2], codec="transform")
        compoff.fit(wrapped, task.train, steps=steps, target_bytes=1500, progress=sys.stderr.isatty())
        head, tail = compoff.export(wrapped, SPLIT)
        wrapped.unwrap()
        head.save(export / "head")
        tail.save(export / "tail")
    return compoff.Head.load(export), compoff.Tail.load(export)


def speed_rows(folder: Path, runs: int, export: Path) -> list[dict[str, Any]]:
    """Times of each runtime with each codec; with the transform codec at its least, a middle, and its best quality."""
    task = load_task("resnet50", folder, batch=8, limit=600)
    calibration = list(itertools.islice(task.train, CALIBRATION // 8))
    x = next(read_imagenet_val(folder, limit=1))[0].numpy()
    wrapped = compoff.wrap(task.net, SPLIT, example_input=calibration[0][:2], codec="deepcod")
    head, _ = compoff.export(wrapped, SPLIT)
    wrapped.unwrap()
    layers = itertools.takewhile(lambda layer: layer[0] != SPLIT, task.net.named_modules())
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for _, layer in layers)
    rows = rows_of("deepcod", heads_of(head, calibration), x, [None], runs, convolutions)
    head, _ = fitted(task, export, _STEPS)
    best = len(head.manifest.codes[0].qualities) - 1
    return rows + rows_of("transform", heads_of(head, calibration), x, [0, best // 2, best], runs, convolutions)


def rows_of(
    codec: str, heads: dict[str, compoff.Head], x: Any, qualities: list[int | None], runs: int, convolutions: int
) -> list[dict[str, Any]]:
    """Times of one export in each runtime, the split point behind so many convolutions."""
    rows: list[dict[str, Any]] = []
    for quality, (name, one) in itertools.product(qualities, heads.items()):
        if name == "torch":
            programs, _ = timed(heads, x, runs, quality)
        program = statistics.median(programs[name])
        # Alone, as on a device: another runtime's turn would leave its own data in the caches.
        alone, calls = (times[name] for times in timed({name: one}, x, runs, quality))
        around = statistics.median(after - before for before, after in zip(alone, calls, strict=True))
        profile = profiled(one, x, quality) if name.startswith("onnx") else None
        share = None if profile is None else encoder_share(profile, convolutions)
        (code,) = one.manifest.codes
        rows.append(
            {
                "model": "resnet50",
                "split": SPLIT,
                "codec": codec,
                "runtime": name,
                "quality": quality,
                "channels": code.latent_shape[0] if quality is None else code.qualities[quality],
                "call_ms": 1e3 * statistics.median(calls),
                "program_ms": 1e3 * program,
                "fastest_ms": 1e3 * min(programs[name]),
                "times_torch": statistics.median(map(ratio, programs["torch"], programs[name])),
                "codec_share": None
                if share is None
                else (share * statistics.median(alone) + around) / statistics.median(calls),
                "coder_ms": 1e3 * around,
                "layer_gops": layer_rates(profile) if profile is not None and name == "onnx fp32" else None,
                "core_gops": core_rate() if name == "onnx fp32" else None,
                "head_macs": one.manifest.report.get("head_macs"),
                "file_bytes": len(next(iter(one.runner.files.values()))),
                "payload_bytes": len(one(x, quality=quality)),
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

    def run(self, *given: Any) -> Any:
        """Run it."""
        begin = time.perf_counter()
        outputs = self.runner.run(*given)
        self.seconds = time.perf_counter() - begin
        return outputs


def timed(
    heads: dict[str, compoff.Head], x: Any, runs: int, quality: int | None
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each head's program and of the whole call around it, the heads in turn."""
    programs: dict[str, list[float]] = {name: [] for name in heads}
    calls: dict[str, list[float]] = {name: [] for name in heads}
    watched = {
        name: compoff.Head(one.manifest, one.tables, cast("Any", Watched(one.runner))) for name, one in heads.items()
    }
    for turn in range(runs + 3):
        for name, one in watched.items():
            begin = time.perf_counter()
            one(x, quality=quality)
            end = time.perf_counter()
            if turn >= 3:  # the first turns warm up
                programs[name].append(cast("Any", one.runner).seconds)
                calls[name].append(end - begin)
    return programs, calls


def ratio(first: float, second: float) -> float:
    """The first in times of the second."""
    return first / second


def profiled(head: compoff.Head, array: Any, quality: int | None, runs: int = 20) -> list[list[dict[str, Any]]]:
    """What ran in each run but the first, in order, as onnxruntime's profile has it; a choice counts as one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    chosen = head.quality if quality is None else quality
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(head.runner.files[PROGRAM], options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        feeds = dict(zip(names, (array, np.array(chosen, np.int64)), strict=False))
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in kernels]
    choices = [span for span, one in zip(spans, kernels, strict=True) if one["args"]["op_name"] == "If"]
    outer = [
        one
        for one, span in zip(kernels, spans, strict=True)
        if not any(a <= span[0] and span[1] <= b and (a, b) != span for a, b in choices)
    ]
    outer.sort(key=lambda event: event["ts"])
    a_run = len(outer) // runs
    return [outer[begin : begin + a_run] for begin in range(a_run, len(outer), a_run)]


def encoder_share(profile: list[list[dict[str, Any]]], convolutions: int) -> float:
    """The part of the program's time in which encoder and quantizer run, behind so many convolutions of the network."""
    shares: list[float] = []
    for run in profile:
        places = [place for place, event in enumerate(run) if "Conv" in event["args"]["op_name"]]
        first = places[convolutions - 1] + 1
        while re.search("Add|Relu", run[first]["args"]["op_name"]):  # the network's, where they are not fused
            first += 1
        shares.append(sum(event["dur"] for event in run[first:]) / sum(event["dur"] for event in run))
    return statistics.median(shares)


def layer_rates(profile: list[list[dict[str, Any]]]) -> list[float]:
    """Billions of operations a second of the slowest and the fastest convolution in fp32."""
    rates: list[float] = []
    for events in zip(*profile, strict=True):
        told = events[0]["args"]
        if told["op_name"] == "Conv":
            (shape,) = told["output_type_shape"][0].values()
            weights = int(told["parameter_size"]) / 4 - shape[1]  # without the biases
            operations = 2 * weights * math.prod(shape[2:])
            rates.append(1e-3 * operations / statistics.median(event["dur"] for event in events))
    return [min(rates), max(rates)]


def core_rate(size: int = 512, runs: int = 30) -> float:
    """Billions of operations a second that one core does at best: onnxruntime's product of two square matrices in fp32.

    No head that multiplies and adds what the network says can be faster than its own operations at this rate.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.default_rng(0).random((size, size), np.float32)
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "xy")
    node, weights = helper.make_node("MatMul", ["x", "w"], ["y"]), numpy_helper.from_array(matrix, "w")
    graph = helper.make_graph([node], "product", [given], [made], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    times: list[float] = []
    for _ in range(runs):
        begin = time.perf_counter()
        session.run(None, {"x": matrix})
        times.append(time.perf_counter() - begin)
    return 2e-9 * size**3 / min(times)


if __name__ == "__main__":
    main()
