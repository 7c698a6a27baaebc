"""An exported PyTorch program as ONNX, and how closely the two agree.

`onnx_session` runs the bytes; where they lie is for `artifact`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from compoff.errors import BackendError
from compoff.onnx_session import OnnxSession
from compoff.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from numpy.typing import NDArray

    from compoff.programs import TorchProgram

__all__ = ["Agreement", "agreement", "every_other", "to_onnx"]

_OPSET = 20  # the newest that every onnxruntime from 1.20 on runs whole
_MOST_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message


@dataclass(frozen=True)
class Agreement:
    """How closely two programs agree.

    Args:
        symbols: Share of the whole numbers and truth values that are equal.
        deviation: Largest difference of a floating-point output, relative to the largest value of that output.
    """

    symbols: float
    deviation: float


def to_onnx(
    program: TorchProgram,
    name: str,
    samples: Sequence[Sequence[NDArray[Any]]],
    *,
    metadata: Mapping[str, str] | None = None,
    least_symbols: float = 0.99,
    most_deviation: float = 1e-3,
    advice: str = "run it in PyTorch",
) -> tuple[bytes, Agreement]:
    """Translate a program into ONNX, its batch size free, and compare the two.

    Args:
        program: The program.
        name: What to call it in messages.
        samples: Inputs to compare the two on, one sequence of arrays a batch; use batches of different sizes.
        metadata: Words to store in the file, such as whose program it is.
        least_symbols: Share of the whole numbers in the outputs that have to be equal.
        most_deviation: Most that a floating-point output may differ, relative to its largest value.
        advice: What to do where they do not agree, for messages.

    Returns:
        The bytes of the ONNX file, and how closely it agrees with the program.

    Raises:
        BackendError: onnx or onnxruntime is not installed, an operator has no translation, or the two do not agree.

    Examples:
        >>> import numpy as np, torch
        >>> from compoff.programs import TorchProgram
        >>> free = {0: torch.export.Dim.DYNAMIC}
        >>> exported = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),), dynamic_shapes=[free])
        >>> data, agreed = to_onnx(TorchProgram(exported), "relu", [[np.ones((5, 3), np.float32)]])
        >>> agreed.deviation
        0.0
    """
    onnx = _onnx()
    exported = program.exported
    with _explained(name), quiet("torch.onnx", contextlib.redirect_stdout):
        translated: Any = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
            custom_translation_table=_translations(),
        )
        model = translated.model_proto
        if model.ByteSize() > _MOST_BYTES:
            raise BackendError(f"{name} has {model.ByteSize()} bytes in ONNX, where one file holds {_MOST_BYTES}")
        _tidy(model)
        for key, value in (metadata or {}).items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
    session = OnnxSession(data, name)
    agreed = agreement([(program.run(inputs), session.run(inputs)) for inputs in samples])
    if not (agreed.symbols >= least_symbols and agreed.deviation <= most_deviation):
        raise BackendError(
            f"{name} in ONNX does not agree with PyTorch: {agreed.symbols:.2%} of its whole numbers are equal and "
            f"others differ by {agreed.deviation:.2g} of the largest, expected at least {least_symbols:.2%} and at "
            f"most {most_deviation:.2g}; {advice}"
        )
    return data, agreed


def agreement(pairs: Sequence[tuple[Sequence[NDArray[Any]], Sequence[NDArray[Any]]]]) -> Agreement:
    """Compare what two programs gave for the same inputs.

    Args:
        pairs: What should have come out and what did, one pair a batch, one array an output.

    Returns:
        How closely they agree; not at all where a shape or dtype differs, or a value is not finite in one only.

    Examples:
        >>> import numpy as np
        >>> agreement([([np.array([1, 2])], [np.array([1, 3])])])
        Agreement(symbols=0.5, deviation=0.0)
    """
    equal, whole, deviation = 0, 0, 0.0
    for expected, found in pairs:
        for one, other in zip(expected, found, strict=True):
            if one.shape != other.shape or one.dtype != other.dtype:
                return Agreement(0.0, math.inf)
            if one.dtype.kind == "f":
                deviation = max(deviation, _deviation(one, other))
            else:
                equal, whole = equal + int((one == other).sum()), whole + one.size
    return Agreement(equal / whole if whole else 1.0, deviation)


def every_other(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask to compare programs with, since one that is all true hides everything where true means hidden.

    Args:
        shape: Its shape.

    Returns:
        True at every other place of the last axis, from the first on.

    Examples:
        >>> every_other((1, 3)).tolist()
        [[True, False, True]]
    """
    mask = np.ones(shape, np.bool_)
    if mask.ndim:
        mask[..., 1::2] = False
    return mask


def _deviation(expected: NDArray[Any], found: NDArray[Any]) -> float:
    one, other = expected.astype(np.float64), found.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))  # masks hold infinities
    if same.all():
        return 0.0
    largest = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    difference = np.abs(one[~same] - other[~same]).max()
    return float(difference / max(largest, 1e-30)) if np.isfinite(difference) else math.inf


def _onnx() -> Any:
    """The onnx package with its checker."""
    try:
        onnx = importlib.import_module("onnx")
        importlib.import_module("onnx.checker")
        importlib.import_module("onnxscript")  # torch.onnx needs it and says so late
    except ImportError as error:
        raise BackendError(f'ONNX needs more packages ({error}): pip install "compoff[onnx]"') from error
    return onnx


def _translations() -> dict[Any, Any]:
    """Translations of our own: a negative number counts rows from the end in ONNX, and is an error in PyTorch."""
    op: Any = importlib.import_module("onnxscript").opset20
    embedding: Any = torch.ops.aten.embedding.default

    def translated(
        weight: Any, indices: Any, padding_idx: int = -1, scale_grad: bool = False, sparse: bool = False
    ) -> Any:
        rows = op.CastLike(op.Shape(weight, start=0, end=1), indices)
        return op.Gather(weight, op.Where(op.Less(indices, op.CastLike(0, indices)), rows, indices))

    return {embedding: translated}


def _tidy(model: Any) -> None:
    """Call the batch by its name, and leave out the exporter's notes, which name files of this machine."""
    graph = model.graph
    batches = {value.type.tensor_type.shape.dim[0].dim_param for value in graph.input if _has_axes(value)} - {""}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(batches)))})\b")
    values = [*graph.input, *graph.output, *graph.value_info]
    for value in values if batches else []:
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = pattern.sub("batch", size.dim_param)
    for entry in (graph, *graph.node, *values):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")


def _has_axes(value: Any) -> bool:
    return len(value.type.tensor_type.shape.dim) > 0


@contextlib.contextmanager
def _explained(name: str) -> Generator[None]:
    """Turn whatever the exporter raises, which is of many types, into what it means to the user."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise BackendError(
            f"{name} cannot be written as ONNX ({type(error).__name__}: {' '.join(lines)[:300]}); run it in PyTorch"
        ) from error
