"""A tail's program in onnxruntime, on the CPU."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from compoff.edge.backends.eager import PROGRAM
from compoff.edge.backends.engine import Engine, engine_key
from compoff.edge.backends.graphs import prepared
from compoff.edge.backends.samples import sample_parts
from compoff.errors import BackendError
from compoff.onnx_export import to_onnx
from compoff.onnx_session import OnnxSession
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.manifest import Manifest

__all__ = ["OnnxBackend"]

_PORTABLE = ("system", "processor")  # ONNX is no machine code


class OnnxBackend:
    """Runs a tail with onnxruntime, in as many threads as PyTorch takes.

    Args:
        engine: The program in ONNX.
        manifest: What the tail is.
        device: Where to run it; only the CPU.

    Raises:
        BackendError: onnxruntime is missing or cannot read the program.
    """

    def __init__(self, engine: Engine, manifest: Manifest, device: str = "cpu") -> None:
        del manifest
        _check_device(device)
        self._engine = engine
        self._session = OnnxSession(engine.data, "the tail in ONNX", threads=torch.get_num_threads())

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
        """
        return self._session.run(parts)

    @staticmethod
    def missing() -> str:
        """What is not installed of what this needs; empty where nothing is missing."""
        for name in ("onnxruntime", "onnx", "onnxscript"):  # by module: onnxruntime comes in several packages
            if importlib.util.find_spec(name) is None:
                return f'{name} is not installed: pip install "compoff[onnx]"'
        return ""

    @staticmethod
    def key(manifest: Manifest, source: bytes, device: str) -> dict[str, str]:
        """What an engine made here and now is good for: any machine, since ONNX is no machine code."""
        key = engine_key(manifest, source, device, {})
        return {name: value for name, value in key.items() if name not in _PORTABLE}

    @classmethod
    def compile(cls, manifest: Manifest, source: bytes, device: str) -> Engine:
        """Translate a tail's program into ONNX and compare the two.

        Args:
            manifest: What the tail is.
            source: The program as a ``.pt2`` file.
            device: Where to run it.

        Returns:
            The engine.

        Raises:
            BackendError: Something is not installed, an operator has no translation, or the two do not agree.
        """
        _check_device(device)
        samples = [sample_parts(manifest, min(batch, manifest.max_batch)) for batch in (1, 3)]
        program = TorchProgram(prepared(TorchProgram.load(source, PROGRAM).exported, manifest))
        data, _ = to_onnx(program, f"the tail at '{manifest.split}'", samples)
        return Engine("onnx", cls.key(manifest, source, device), data, source)


def _check_device(device: str) -> None:
    if torch.device(device).type != "cpu":
        raise BackendError(f"the backend 'onnx' runs on the CPU, device is '{device}'; choose 'inductor' or 'tensorrt'")
