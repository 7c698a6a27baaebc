"""A ResNet-50 head at layer2 in PyTorch and onnxruntime, fp32 and int8: time on one core.

The runtimes take turns, run by run, so that whatever else the machine does meets them all alike. ExecuTorch takes part
where it is installed. The codec's share is that of encoder, quantizer, coder and checks in the time of a call.

    python -m benchmarks.heads --data DATA
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import compoff
from benchmarks.networks import data_folder, load_pqf, read_imagenet_val
from benchmarks.record import record
from benchmarks.tasks import load_task
from compoff.device.runners.onnx import PROGRAM

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.codec_options import CodecName

__all__ = ["CALIBRATION", "SPLIT", "heads_of", "main", "photos"]

SPLIT = "layer2"
CALIBRATION = 64
"""Photos that int8 is calibrated on."""
_CODECS: tuple[CodecName, ...] = ("deepcod", "transform")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=200, help="turns of the runtimes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # ExecuTorch's own threads have no other setting
    rows = speed_rows(data_folder(options.data), options.runs)
    record("heads", rows, seed=0, command=f"python -m benchmarks.heads --runs {options.runs}")


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
    calibration = photos(folder, CALIBRATION)
    x = next(read_imagenet_val(folder, limit=1))[0].numpy()
    rows: list[dict[str, Any]] = []
    for codec in _CODECS:
        wrapped = compoff.wrap(load_pqf("resnet50", folder), SPLIT, example_input=calibration[0][:2], codec=codec)
        head, _ = compoff.export(wrapped, SPLIT)
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
                    "split": SPLIT,
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


if __name__ == "__main__":
    main()
