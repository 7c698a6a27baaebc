"""A head's PyTorch program for another runtime, compared with it. Needs torch; what it makes does not."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from compoff.device.runners.onnx import OWNER, OnnxRunner
from compoff.device.runners.torch import PROGRAM as TORCH_PROGRAM
from compoff.errors import BackendError
from compoff.onnx_export import Agreement, agreement, to_onnx
from compoff.onnx_int8 import quantized
from compoff.onnx_session import OnnxSession
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from compoff.manifest import Manifest, TensorSpec

__all__ = ["Precision", "compiled_for_onnx"]

Precision: TypeAlias = Literal["fp32", "int8"]
"""What a compiled head computes in."""

_Arrays: TypeAlias = "list[NDArray[Any]]"


def compiled_for_onnx(
    manifest: Manifest,
    files: Mapping[str, bytes],
    samples: Sequence[_Arrays],
    sent: Callable[[_Arrays], _Arrays],
    *,
    precision: Precision = "fp32",
    least_agreement: float = 0.8,
    threads: int | None = None,
) -> tuple[Manifest, OnnxRunner]:
    """Compile a head for onnxruntime.

    Args:
        manifest: What the head is.
        files: Its programs, by name.
        samples: Inputs to compare the programs on, and to calibrate int8 on; none for inputs that are made up.
        sent: What of a program's outputs is sent.
        precision: ``"fp32"``, or ``"int8"``.
        least_agreement: Share of the sent symbols that int8 has to leave as they are.
        threads: Threads that work on one run; None for one a core.

    Returns:
        The manifest, with what was found under ``report``, and the runner.

    Raises:
        BackendError: A package is missing, there is no PyTorch program, it cannot be translated or quantized, or what
            comes out does not agree with it.
    """
    if precision not in get_args(Precision):
        raise BackendError(f"there is no precision {precision!r}; expected {', '.join(get_args(Precision))}")
    program = _torch_program(files)
    batches = samples or _made_up(manifest.inputs)
    data, agreed = to_onnx(program, "the head", batches, metadata={OWNER: manifest.artifact_id})
    if precision == "int8":
        data = quantized(data, "the head", samples)
        session = OnnxSession(data, "the head in int8")
        agreed = agreement([(sent(program.run(batch)), sent(session.run(batch))) for batch in batches])
        _check(agreed, least_agreement)
    runner = OnnxRunner(data, manifest, others=files, threads=threads)
    found = {"precision": precision, **asdict(agreed), "samples": sum(len(batch[0]) for batch in batches)}
    versions = {**manifest.versions, "onnxruntime": runner.version}
    return replace(manifest, report={**manifest.report, "onnx": found}, versions=versions), runner


def _torch_program(files: Mapping[str, bytes]) -> TorchProgram:
    if TORCH_PROGRAM not in files:
        raise BackendError(
            f"this head has no {TORCH_PROGRAM} to compile, but {', '.join(files) or 'nothing'}; export it again"
        )
    return TorchProgram.load(files[TORCH_PROGRAM], TORCH_PROGRAM)


def _made_up(specs: Sequence[TensorSpec]) -> list[_Arrays]:
    """Inputs of one and of three samples: noise, index 0, masks that hide nothing."""
    rng = np.random.default_rng(0)

    def array(spec: TensorSpec, batch: int) -> NDArray[Any]:
        shape = (batch, *spec.shape) if spec.batched else spec.shape
        if np.dtype(spec.dtype).kind == "f":
            return rng.standard_normal(shape).astype(spec.dtype)
        return np.full(shape, spec.dtype == "bool", spec.dtype)

    return [[array(spec, batch) for spec in specs] for batch in (1, 3)]


def _check(agreed: Agreement, least: float) -> None:
    if agreed.symbols < least:
        raise BackendError(
            f"in int8 only {agreed.symbols:.1%} of the symbols are those of PyTorch, expected at least {least:.1%}; "
            "calibrate on more and on typical batches, or use fp32; if the task does not mind, pass least_agreement="
        )
