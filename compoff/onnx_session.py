"""ONNX bytes ready to run in onnxruntime, on numpy arrays: what head and tail share where there is no torch.

Knows nothing of what a program computes, nor where its bytes come from.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compoff.errors import BackendError
from compoff.forks import leave_to_parent
from compoff.printable import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["OnnxSession", "OnnxTensor", "described"]

_DTYPES = {
    "bool": "bool",
    "double": "float64",
    "float": "float32",
    "float16": "float16",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_ERRORS_ONLY = 3
_MOST_THREADS = 1024


@dataclass(frozen=True)
class OnnxTensor:
    """What a program says of one of its inputs or outputs.

    Args:
        shape: Its shape; None for a size that is free.
        dtype: Name of the dtype as numpy has it.
    """

    shape: tuple[int | None, ...]
    dtype: str


class OnnxSession:
    """An ONNX program in onnxruntime, on the CPU. Threads may share it, and forked processes that nobody ran it at.

    Args:
        data: The bytes of the program.
        name: Its name, for messages.
        threads: Threads that work on one run; None for one a core.

    Raises:
        BackendError: onnxruntime is not installed, or cannot read or run these bytes.

    Examples:
        >>> import numpy as np, onnx.helper
        >>> value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch"])
        >>> relu = onnx.helper.make_node("Relu", ["x"], ["y"])
        >>> graph = onnx.helper.make_graph([relu], "graph", [value("x")], [value("y")])
        >>> opsets = [onnx.helper.make_opsetid("", 20)]
        >>> model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
        >>> OnnxSession(model.SerializeToString(), "relu.onnx", threads=1).run([np.array([-1, 2], np.float32)])
        [array([0., 2.], dtype=float32)]
    """

    def __init__(self, data: bytes, name: str, *, threads: int | None = None) -> None:
        try:
            runtime: Any = importlib.import_module("onnxruntime")  # an extra, without annotations
        except ImportError as error:
            raise BackendError(
                f'{name} needs onnxruntime, which cannot be imported ({error}): pip install "compoff[onnx]", or where '
                "torch is not wanted, pip install onnxruntime"
            ) from error
        options = runtime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if threads is not None:
            if threads > _MOST_THREADS:
                raise BackendError(f"threads is {threads}; expected at most {_MOST_THREADS}")
            options.intra_op_num_threads = threads
        self.name = name
        self._running: list[None] = []  # one for each thread that is in it
        self._left: str | None = None  # why it can be used no more
        self.version: str = runtime.__version__
        try:
            self._session: Any = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # its own classes, made at run time
            told = f"onnxruntime {self.version} cannot load {name} ({first_line(error)})"
            if "NOT_IMPLEMENTED" in str(error):
                told += ": it lacks an operator for numbers of this type; use a model in float32, or run it in PyTorch"
                raise BackendError(told) from error
            raise BackendError(f"{told}: it is damaged, or was made for another version; compile it again") from error
        self.names: tuple[str, ...] = tuple(one.name for one in inputs)
        self.inputs: tuple[OnnxTensor, ...] = tuple(map(described, inputs))
        self.outputs: tuple[OnnxTensor, ...] = tuple(map(described, outputs))
        if threads != 1:
            leave_to_parent(self)

    def abandon(self) -> None:
        """Never end the session, in a forked child: it would wait for threads that were left in the parent.

        It runs there as it is, in one thread, unless another was in it: what that had begun is not ended there.
        """
        if self._running:
            self._left = "was running in another thread when this process was forked; load it again here"
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # outlives the interpreter, as no list would
        leave_to_parent(self)

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run on arrays.

        Args:
            inputs: One array an input.

        Returns:
            One array an output.

        Raises:
            BackendError: These are not the program's inputs, or it fails on them.
        """
        if len(inputs) != len(self.names):
            raise BackendError(f"{self.name} takes {len(self.names)} inputs, {len(inputs)} were given")
        if self._left is not None:
            raise BackendError(f"{self.name} {self._left}")
        self._running.append(None)
        try:
            return self._session.run(None, dict(zip(self.names, inputs, strict=True)))
        except Exception as error:  # its own classes, made at run time
            raise BackendError(f"onnxruntime {self.version} failed in {self.name}: {first_line(error)}") from error
        finally:
            self._running.pop()


def described(node: Any) -> OnnxTensor:
    """One input or output of a program.

    Args:
        node: What onnxruntime says of it.

    Returns:
        Its shape and dtype.
    """
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    return OnnxTensor(tuple(size if isinstance(size, int) else None for size in node.shape), _DTYPES.get(kind, kind))
