"""Writes one benchmark's rows as ``benchmarks/results/NAME.json``, with what is needed to measure them again.

It knows the machine, the installed versions and the commit, and nothing of what was measured.
No host name, user name or folder of the machine is written.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from compoff.demo.machine import describe_machine, describe_versions

__all__ = ["hardware", "record", "versions"]

_ROOT = Path(__file__).resolve().parent.parent
_RUNTIMES = ("torch", "numpy", "constriction", "safetensors", "onnxruntime", "executorch", "tensorrt", "compoff")
_MODELS = ("torchvision", "timm", "transformers", "diffusers")


def record(name: str, rows: list[dict[str, Any]], *, seed: int, command: str) -> Path:
    """Write the rows of one benchmark to its file of results and return that file.

    Args:
        name: the benchmark; the file is ``benchmarks/results/<name>.json``.
        rows: what was measured, one flat dictionary a row, JSON-able.
        seed: the seed that every random choice came from.
        command: the command line, relative to the repository root, that measures it again.

    Returns:
        The file written.

    Raises:
        ValueError: ``rows`` is empty or holds a value that is not finite: such a result says nothing.

    Source: this project.
    """
    if not rows:
        raise ValueError(f"benchmark {name!r} has no rows to record; measure something first")
    result = {
        "name": name,
        "command": _priority() + command,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "seed": seed,
        "hardware": hardware(),
        "versions": versions(),
        "rows": rows,
    }
    text = json.dumps(result, indent=1, allow_nan=False)
    path = _ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, cores this process may use, memory in GB, GPU, operating system."""
    machine = describe_machine()
    return {
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "memory_gb": machine["memory_gb"],
        "gpu": _gpu(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """List the versions of Python and of those packages that are installed, without importing them."""
    return describe_versions((*_RUNTIMES, *_MODELS))


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None


@functools.cache
def _commit() -> str:
    """The commit, with a ``+`` where the working tree differs from it in anything but results."""
    commit = _output("git", "rev-parse", "HEAD")
    if not commit:
        return "none"
    changes = _output("git", "status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return commit + ("+" if changes else "")


def _priority() -> str:
    """What gives this process its real-time priority, if it has one: then other work on the machine is no excuse."""
    if not hasattr(os, "SCHED_FIFO") or os.sched_getscheduler(0) != os.SCHED_FIFO:
        return ""
    return f"chrt -f {os.sched_getparam(0).sched_priority} "


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
