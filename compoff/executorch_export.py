"""An exported PyTorch program as ExecuTorch's ``.pte``, its layers lowered to XNNPACK.

Such a program plans its memory when it is made, so it takes one sample. Knows nothing of what it computes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from compoff.errors import BackendError
from compoff.printable import told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from compoff.programs import TorchProgram

__all__ = ["to_executorch"]


def to_executorch(
    program: TorchProgram, name: str, sample: Sequence[NDArray[Any]], constants: Mapping[str, bytes]
) -> bytes:
    """Translate a program into ExecuTorch.

    Args:
        program: The program.
        name: What to call it in messages.
        sample: Its inputs, of the shapes that it will take.
        constants: Bytes that the file gives out under these names, such as whose program it is.

    Returns:
        The bytes of the ``.pte`` file.

    Raises:
        BackendError: executorch is not installed, or the program has no translation.
    """
    lower, partitioner = _packages()
    inputs = tuple(torch.from_numpy(array.copy()) for array in sample)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    methods = {key: torch.tensor(list(value), dtype=torch.uint8) for key, value in constants.items()}
    level = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # its passes tell what they do
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.export.export(program.exported.module(check_guards=False), inputs, strict=False)
            edge: Any = lower(exported, partitioner=[partitioner()], constant_methods=methods)
            return bytes(edge.to_executorch().buffer)
    except Exception as error:  # many types for one fact
        raise BackendError(f"{name} cannot be written for ExecuTorch ({told(error)}); compile it for onnx") from error
    finally:
        logging.disable(level)


def _packages() -> tuple[Any, Any]:
    """What lowers a program, and what chooses the layers for XNNPACK."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exir = importlib.import_module("executorch.exir")  # an extra, not always installed
            xnnpack = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    except ImportError as error:
        raise BackendError(f'ExecuTorch needs more packages ({error}): pip install "compoff[executorch]"') from error
    return exir.to_edge_transform_and_lower, xnnpack.XnnpackPartitioner
