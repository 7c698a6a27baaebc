"""A tail's program compiled ahead of time by TorchInductor: C++ for this CPU, or Triton kernels for this GPU.

The package that AOTInductor writes holds a shared library. Loading it runs it, so bytes get here only from `engine`.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from compoff.edge.backends.cuda_graphs import CudaGraphs
from compoff.edge.backends.eager import PROGRAM
from compoff.edge.backends.engine import Engine, engine_key
from compoff.edge.backends.graphs import example_tensors, prepared
from compoff.errors import BackendError
from compoff.printable import told
from compoff.programs import TorchProgram, to_tensor
from compoff.threads import has_lost_threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.manifest import Manifest

__all__ = ["InductorBackend"]

_OPTIONS = {"freezing": True}  # weights are packed for the kernels when they are compiled: twice as fast on a CPU


class InductorBackend:
    """Runs a tail that AOTInductor has compiled; on a GPU as CUDA graphs, one a batch size.

    Args:
        engine: The package; it is native code and has been checked by whoever gives it.
        manifest: What the tail is.
        device: Where to run it; the kind of device that it was compiled for.

    Raises:
        BackendError: PyTorch cannot load the package.
    """

    def __init__(self, engine: Engine, manifest: Manifest, device: str = "cpu") -> None:
        del manifest
        self._engine = engine
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        try:
            with tempfile.TemporaryDirectory(prefix="compoff-") as folder:  # only this user can write there
                path = Path(folder, "engine.pt2")
                path.write_bytes(engine.data)
                # A CUDA graph records one thread; otherwise the package has a lock of its own.
                index = self._device.index or 0 if on_gpu else -1
                model: Any = _inductor().aoti_load_package(str(path), run_single_threaded=on_gpu, device_index=index)
        except Exception as error:  # it raises many types for one fact
            raise BackendError(
                f"torch {torch.__version__} cannot load the engine ({told(error)}); compile the tail again"
            ) from error
        self._call: Any = CudaGraphs(model) if on_gpu else model

    @property
    def files(self) -> dict[str, bytes]:
        """The program and the engine as files of an artifact, by name."""
        return self._engine.files

    def run(self, parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Turn what crossed the cut into the leaves of the model's output.

        Args:
            parts: Of one batch, the symbols of each code, then the side tensors.

        Returns:
            One array a leaf.

        Raises:
            BackendError: This process was forked, and the engine's threads are in its parent.
        """
        if self._device.type == "cpu" and has_lost_threads():  # their number is compiled into the engine
            raise BackendError(
                "an engine of inductor runs in threads, and this process was forked from the one that has them; start "
                "it with multiprocessing's 'spawn', or load the tail with backend='eager'"
            )
        with torch.inference_mode():
            tensors = [to_tensor(part).to(self._device) for part in parts]
            outputs = self._call(*tensors)
            leaves = [outputs] if isinstance(outputs, Tensor) else outputs
            return [leaf.cpu().numpy() for leaf in leaves]

    @staticmethod
    def missing() -> str:
        """What is not installed of what this needs; a compiler is only looked for when it is needed."""
        return ""

    @staticmethod
    def key(manifest: Manifest, source: bytes, device: str) -> dict[str, str]:
        """What an engine made here and now is good for: this torch on this processor."""
        versions = {"torch": str(torch.__version__)}
        if torch.device(device).type == "cuda":
            versions["cuda"] = str(torch.version.cuda)
        return engine_key(manifest, source, device, versions)

    @classmethod
    def compile(cls, manifest: Manifest, source: bytes, device: str) -> Engine:
        """Compile a tail's program for this machine; takes from seconds to minutes.

        Args:
            manifest: What the tail is.
            source: The program as a ``.pt2`` file.
            device: Where to run it.

        Returns:
            The engine.

        Raises:
            BackendError: There is no C++ compiler or no such device here, or the program cannot be compiled.
        """
        key = cls.key(manifest, source, device)
        exported = TorchProgram.load(source, PROGRAM).exported
        try:
            if torch.device(device).type != "cpu":
                exported = move_to_device_pass(exported, device)
            exported = prepared(exported, manifest, device)
            exported.example_inputs = (example_tensors(manifest, device), {})
            with tempfile.TemporaryDirectory(prefix="compoff-") as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations inside the compiler
                path = str(Path(folder, "engine.pt2"))
                _inductor().aoti_compile_and_package(exported, package_path=path, inductor_configs=dict(_OPTIONS))
                data = Path(path).read_bytes()
        except Exception as error:  # the compiler raises many types for one fact
            raise BackendError(
                f"the tail at '{manifest.split}' cannot be compiled by inductor on '{device}' ({told(error)}); it "
                "needs a C++ compiler such as g++, on a GPU also Triton. Or choose backend='eager'"
            ) from error
        return Engine("inductor", key, data, source)


def _inductor() -> Any:
    """The compiler, which takes a while to import."""
    return importlib.import_module("torch._inductor")
