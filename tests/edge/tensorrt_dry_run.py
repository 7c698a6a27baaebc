"""What torch_tensorrt makes of a tail, on a machine without TensorRT and without a GPU; a program of its own.

A stand-in for the package `tensorrt` lets torch_tensorrt be imported. Its lowering, its table of converters and its
partitioning are the real ones; nothing is built. Prints JSON: coverage, engines, and how the lowered graph, which runs
on the CPU, agrees with PyTorch.
"""

from __future__ import annotations

import importlib.machinery
import io
import json
import logging
import os
import re
import sys
import types
import warnings
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn


class _Anything:
    """Stands for every object of TensorRT."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return _Anything()

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Kind(type):
    """Stands for every class and enumeration; members are made when they are asked for, and stay the same."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, _Anything())
        return cls.__dict__[name]


class _Module(types.ModuleType):
    """Stands for the package."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "tensorrt_rtx":
            raise AttributeError(name)
        setattr(self, name, _Kind(name, (_Anything,), {}) if name[:1].isupper() else _Anything())
        return self.__dict__[name]


class _Properties:
    """Stands for a GPU."""

    name, major, minor, total_memory, multi_processor_count = "none", 9, 0, 1 << 34, 1


def import_torch_tensorrt() -> Any:
    """The library, over the stand-in."""
    package = _Module("tensorrt")
    package.__path__, package.__version__, package.__file__ = [], "11.0.0", "tensorrt.py"  # type: ignore[attr-defined]
    package.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None, is_package=True)
    package.tensorrt = package  # type: ignore[attr-defined]
    sys.modules |= {"tensorrt": package, "tensorrt.tensorrt": package}
    isfile = os.path.isfile
    os.path.isfile = lambda path: "libtorchtrt" not in str(path) and isfile(path)  # its libraries need CUDA
    cuda: Any = torch.cuda
    cuda.get_device_capability, cuda.current_device = lambda *_: (9, 0), lambda: 0
    cuda.get_device_properties, cuda.mem_get_info = lambda *_: _Properties, lambda *_: (1 << 34, 1 << 34)
    library: Any = torch._C
    if not hasattr(library, "_CudaDeviceProperties"):
        library._CudaDeviceProperties = _Properties
    with redirect_stdout(sys.stderr):
        import torch_tensorrt
    return torch_tensorrt


def dry_run(library: Any, codec: str) -> dict[str, Any]:
    """One tail through everything but the building of its engine."""
    import compoff
    from compoff.edge.backends.graphs import prepared
    from compoff.edge.backends.samples import sample_parts
    from compoff.edge.backends.tensorrt import build
    from compoff.programs import TorchProgram

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)]
    model = compoff.wrap(nn.Sequential(*layers).eval(), "1", example_input=torch.zeros(2, 3, 8, 8), codec=codec)
    compoff.fit(model, [torch.randn(8, 3, 8, 8)], steps=1, progress=False)
    tail = compoff.export(model, "1", max_batch=64)[1]
    exported = TorchProgram.load(tail.backend.files["tail.pt2"], "tail.pt2").exported
    exported = prepared(exported, tail.manifest, decompose=False)
    words = io.StringIO()
    logging.getLogger("torch_tensorrt").addHandler(logging.StreamHandler(words))
    logging.getLogger("torch_tensorrt").setLevel(logging.INFO)
    with redirect_stdout(words):
        graph = build(library, exported, tail.manifest, "cuda", dryrun=True)
    deviations = []
    for batch in (1, 5, 64):
        parts = sample_parts(tail.manifest, batch)
        (expected,), (found,) = tail.backend.run(parts), graph(*map(torch.from_numpy, parts))
        deviations.append(float(abs(found.float().numpy() - expected).max() / abs(expected).max()))
    coverage = re.search(r"([\d.]+)% coverage", words.getvalue())
    return {
        "coverage": None if coverage is None else float(coverage[1]),
        "input": re.findall(r"Engine Inputs: List\[Tensor: (.*)\]", words.getvalue()),
        "dtype": str(found.dtype),
        "deviation": max(deviations),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    runtime = import_torch_tensorrt()
    sys.stdout.write(json.dumps({codec: dry_run(runtime, codec) for codec in ("deepcod", "transform")}))
