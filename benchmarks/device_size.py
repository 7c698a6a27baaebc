"""What a device without torch has to hold: installed bytes, import time, cold start to the first payload, memory.

Installs compoff and requirements/device.txt, nothing else, into a folder of its own, as the how-to page says, and runs
a ResNet-18 head at layer2 in fresh processes that see only this folder. Byte code counts as lines of its own: what
Python writes on the first run, and what pip makes of every file where it is not told to leave that. pip itself is not
counted. Memory is Linux's figure for the process.

    python -m benchmarks.device_size --runs 20
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import compoff
from benchmarks.networks import resnet18
from benchmarks.record import record

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parent.parent

_DEVICE = """
import time
begin = time.perf_counter()
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import compoff
from compoff.device.head import Head
import onnxruntime
imported = time.perf_counter()
head = Head.load(sys.argv[2], threads=1)
loaded = time.perf_counter()
x = np.zeros((1, 3, 224, 224), np.float32)
head(x)
first = time.perf_counter()
for _ in range(20):
    head(x)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # since exec, unlike ru_maxrss
print(json.dumps({
    "import_ms": 1e3 * (imported - begin),
    "load_ms": 1e3 * (loaded - imported),
    "first_payload_ms": 1e3 * (first - loaded),
    "cold_start_ms": 1e3 * (first - begin),
    "peak_rss_mb": int(peak.split()[1]) / 1e3,
    "torch_loaded": "torch" in sys.modules,
}))
"""


def main() -> None:
    """Install, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="fresh processes for each line")
    runs = parser.parse_args().runs
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        site, export, whole = (Path(folder) / name for name in ("site", "export", "compiled"))
        install(site, "--no-compile")
        install(whole, "--compile")
        rows = [{"what": "installed", "mb": megabytes(site), **parts(site)}]
        wrapped = compoff.wrap(resnet18().eval(), "layer2", example_input=torch.randn(2, 3, 224, 224))
        head = compoff.export(wrapped, "layer2")[0]
        int8 = head.compile("onnx", precision="int8", batches=[torch.randn(16, 3, 224, 224)])
        head.compile("onnx").save(export / "fp32", torch=False)
        int8.save(export / "int8", torch=False)
        for precision in ("fp32", "int8"):
            first = started(site, export / precision)
            later = [started(site, export / precision) for _ in range(runs)]
            rows.append(row(precision, first, later, megabytes(export / precision)))
        rows.append({"what": "installed, with the byte code of what ran", "mb": megabytes(site)})
        rows.append(
            {"what": "installed without `--no-compile`, with the byte code of everything", "mb": megabytes(whole)}
        )
    for one in rows:
        print(one, flush=True)
    record("device_size", rows, seed=0, command=f"python -m benchmarks.device_size --runs {runs}")


def install(site: Path, how: str) -> None:
    """Install as the how-to page says, with the exact versions of the project's constraints."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", how, "--target", str(site)]
    constrained = ["-c", str(_ROOT / "constraints.txt"), "-r", str(_ROOT / "requirements" / "device.txt")]
    subprocess.run([*pip, *constrained], check=True)
    subprocess.run([*pip, "--no-deps", str(_ROOT)], check=True)


def megabytes(folder: Path) -> float:
    """Bytes of all files, in units of a million."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def parts(site: Path) -> dict[str, float]:
    """The largest of what is installed."""
    sizes = {path.name: megabytes(path) for path in site.iterdir() if path.is_dir()}
    numpy = sizes.pop("numpy", 0.0) + sizes.pop("numpy.libs", 0.0)
    named = {
        "onnxruntime_mb": sizes.pop("onnxruntime", 0.0),
        "numpy_mb": numpy,
        "compoff_mb": sizes.pop("compoff", 0.0),
    }
    return {**named, "others_mb": sum(sizes.values())}


def started(site: Path, export: Path) -> dict[str, Any]:
    """One fresh process: what it says, and how long it took from outside."""
    command = [sys.executable, "-I", "-S", "-c", _DEVICE, str(site), str(export)]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return {**said, "process_ms": 1e3 * (time.perf_counter() - begin)}


def row(precision: str, first: dict[str, Any], later: list[dict[str, Any]], export_mb: float) -> dict[str, Any]:
    """Medians of many starts, beside the very first one."""
    times = [key for key in first if key.endswith("_ms")]
    return {
        "what": f"resnet18 at layer2, {precision}",
        "mb": export_mb,
        **{key: statistics.median(one[key] for one in later) for key in times},
        "slowest_cold_start_ms": max(one["cold_start_ms"] for one in later),
        "very_first_cold_start_ms": first["cold_start_ms"],
        "peak_rss_mb": max(one["peak_rss_mb"] for one in later),
        "torch_loaded": any(one["torch_loaded"] for one in later),
        "runs": len(later),
    }


if __name__ == "__main__":
    main()
