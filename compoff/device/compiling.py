"""A head's PyTorch program for another runtime, compared with it. Needs torch; what it makes does not."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from compoff.autocast import no_autocast
from compoff.checks import check_number, check_whole
from compoff.device.runners.executorch import OWNER as PTE_OWNER
from compoff.device.runners.executorch import ExecuTorchRunner
from compoff.device.runners.onnx import OWNER, OnnxRunner
from compoff.device.runners.torch import PROGRAM as TORCH_PROGRAM
from compoff.errors import BackendError
from compoff.executorch_export import to_executorch
from compoff.onnx_export import agreement, every_other, to_onnx
from compoff.onnx_int8 import quantized
from compoff.onnx_narrowing import with_quality
from compoff.onnx_pixels import take_in_normalization
from compoff.printable import told
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from compoff.device.runners.runner import Runner
    from compoff.manifest import Manifest, TensorSpec

__all__ = ["CompiledRuntime", "Precision", "compiled_head"]

CompiledRuntime: TypeAlias = Literal["onnx", "executorch"]
"""What a head can be compiled for."""

Precision: TypeAlias = Literal["fp32", "int8"]
"""What a compiled head computes in."""

_Way: TypeAlias = Literal["alternate", "ones", "zeros"]
_Arrays: TypeAlias = "list[NDArray[Any]]"
_LEAST_IN_FLOATS = 0.99  # share of the symbols; a translation that loses more is wrong, not rounded
_WAYS = get_args(_Way)
_MOST_TRIALS = 81  # every way for four inputs of whole numbers
_MOST_DEVIATION = {"fp32": 1e-3, "int8": 0.1}  # of what is sent as it is, relative to its largest value


@no_autocast()
def compiled_head(
    manifest: Manifest,
    files: Mapping[str, bytes],
    samples: Sequence[_Arrays],
    sent: Callable[[_Arrays], _Arrays],
    *,
    runtime: CompiledRuntime,
    precision: Precision = "fp32",
    least_agreement: float = 0.8,
    threads: int | None = None,
) -> tuple[Manifest, Runner]:
    """Compile a head.

    Args:
        manifest: What the head is.
        files: Its programs, by name.
        samples: Inputs to compare the programs on, and to calibrate int8 on; none for inputs that are made up.
        sent: What of a program's outputs is sent.
        runtime: What to compile it for.
        precision: ``"fp32"``, or ``"int8"``.
        least_agreement: Share of the sent symbols that int8 has to leave as they are.
        threads: Threads that work on one run; None for one a core.

    Returns:
        The manifest, with what was found under ``report``, and the runner.

    Raises:
        BackendError: There is no such runtime or precision, a package is missing, there is no PyTorch program, it
            cannot be translated or quantized, or what comes out does not agree with it.
    """
    _check_choice(runtime, precision, threads)
    check_number("least_agreement", least_agreement, BackendError, "a share from 0 to 1")
    if not 0 <= least_agreement <= 1:  # nothing is less than NaN, so that any translation would do
        raise BackendError(f"least_agreement is {least_agreement}; expected a share from 0 to 1")
    if precision == "int8" and not samples:  # before anything is compared on what is made up
        raise BackendError("int8 has to be calibrated on inputs as the device will see them: pass batches for the head")
    program = _torch_program(files)
    batches = samples or _made_up(manifest, program.run)
    if runtime == "executorch":
        runner, version = _for_executorch(program, manifest, files, batches[0])
    else:
        runner, version = _for_onnx(program, manifest, files, batches, precision, threads)
    agreed = agreement([(sent(program.run(batch)), sent(runner.run(batch))) for batch in batches])
    least = least_agreement if precision == "int8" else _LEAST_IN_FLOATS
    if agreed.symbols < least:
        raise BackendError(
            f"in {precision} under {runtime} only {agreed.symbols:.1%} of the symbols are those of PyTorch, expected "
            f"at least {least:.1%}; int8 may do with more and more typical batches, or pass least_agreement= if the "
            "task does not mind; else use PyTorch"
        )
    if agreed.deviation > _MOST_DEVIATION[precision]:
        raise BackendError(
            f"in {precision} under {runtime} a tensor that is sent as it is differs from PyTorch's by "
            f"{agreed.deviation:.2g} of its largest value, expected at most {_MOST_DEVIATION[precision]}; use "
            "precision='fp32', or PyTorch"
        )
    counted = next((place for place, spec in enumerate(manifest.taken) if spec.batched), 0)
    found = {"precision": precision, **asdict(agreed), "samples": sum(len(batch[counted]) for batch in batches)}
    report, versions = {**manifest.report, runtime: found}, {**manifest.versions, **version}
    return replace(manifest, report=report, versions=versions), runner


def _check_choice(runtime: CompiledRuntime, precision: Precision, threads: int | None) -> None:
    check_whole("threads", threads, BackendError, least=0, or_none=True)
    if runtime not in get_args(CompiledRuntime):
        told = ", ".join(get_args(CompiledRuntime))
        raise BackendError(f"there is no runtime {runtime!r} to compile for; expected {told}")
    if precision not in get_args(Precision):
        raise BackendError(f"there is no precision {precision!r}; expected {', '.join(get_args(Precision))}")
    if runtime == "executorch" and (precision != "fp32" or threads is not None):
        raise BackendError("executorch has fp32 and its own threads; precision='int8' and threads= are for onnx")


def _for_onnx(
    program: TorchProgram,
    manifest: Manifest,
    files: Mapping[str, bytes],
    batches: Sequence[_Arrays],
    precision: Precision,
    threads: int | None,
) -> tuple[Runner, dict[str, str]]:
    advice = "compare them on real inputs (batches=), or run it in PyTorch"
    data, _ = to_onnx(program, "the head", batches, metadata={OWNER: manifest.artifact_id}, advice=advice)
    if manifest.pixels is not None:
        data = take_in_normalization(data)
    if precision == "int8":
        codes = len(manifest.codes)
        data = quantized(data, "the head", batches, outputs=codes + len(manifest.sides), codes=codes)
    data = with_quality(data, list(zip(*(code.qualities for code in manifest.codes), strict=True)))
    runner = OnnxRunner(data, manifest, others=files, threads=threads)
    return runner, {"onnxruntime": runner.version}


def _for_executorch(
    program: TorchProgram, manifest: Manifest, files: Mapping[str, bytes], batch: _Arrays
) -> tuple[Runner, dict[str, str]]:
    sample = [array[:1] if spec.batched else array for array, spec in zip(batch, manifest.taken, strict=True)]
    data = to_executorch(program, "the head", sample, {PTE_OWNER: manifest.identity})
    runner = ExecuTorchRunner(data, manifest, others=files)
    return runner, {"executorch": importlib.metadata.version("executorch")}


def _torch_program(files: Mapping[str, bytes]) -> TorchProgram:
    if TORCH_PROGRAM not in files:
        raise BackendError(
            f"this head has no {TORCH_PROGRAM} to compile, but {', '.join(files) or 'nothing'}; export it again"
        )
    return TorchProgram.load(files[TORCH_PROGRAM], TORCH_PROGRAM)


def _made_up(manifest: Manifest, run: Callable[[_Arrays], _Arrays]) -> list[_Arrays]:
    """Inputs of one and of three samples: noise, masks that are true at every other place, and whole numbers.

    These are 1 at every other place, too, since a mask of zeros may hide everything, and what is computed from nothing
    is NaN; 1 where that is not finite, and 0 where the model has no entry 1. Of all ways the first is taken on which
    the model runs and gives finite numbers; else the first on which it runs.
    """
    crossing = len(manifest.codes) + len(manifest.sides)
    kinds = {
        place: np.dtype(spec.dtype).kind for place, spec in enumerate(manifest.taken) if place != _pixels(manifest)
    }
    integers = [place for place, kind in kinds.items() if kind in "iu"]
    fallback, refusal = list[_Arrays](), Exception()
    for ways in islice(product(_WAYS, repeat=len(integers)), _MOST_TRIALS):
        batches = [_made_up_batch(manifest, batch, dict(zip(integers, ways, strict=True))) for batch in (1, 3)]
        try:
            found = [run(batch) for batch in batches]
        except Exception as error:  # of many types for one fact
            refusal = error
            continue
        if all(finite.all() for parts in found for finite in parts[crossing:]):
            return batches
        fallback = fallback or batches
    if not fallback:
        raise BackendError(
            f"the model takes none of the inputs that were made up to compare the programs on ({told(refusal)}); give "
            "real ones, batches=, as fit takes them"
        ) from refusal
    return fallback


def _pixels(manifest: Manifest) -> int:
    """Place of the input that is a picture; -1 where there is none."""
    return -1 if manifest.pixels is None else manifest.pixels.input


def _made_up_batch(manifest: Manifest, batch: int, ways: Mapping[int, _Way]) -> _Arrays:
    """One array an input; whole numbers in the way that is chosen for each."""
    rng = np.random.default_rng(batch)

    def array(place: int, spec: TensorSpec) -> NDArray[Any]:
        shape = spec.sized(batch)
        if place == _pixels(manifest):
            return rng.integers(0, 256, shape, np.uint8)
        if np.dtype(spec.dtype).kind == "f":
            return rng.standard_normal(shape).astype(spec.dtype)
        # Not from sample to sample: one number for each, such as its length, is not to be 0 for some.
        alternate = ways.get(place, "alternate") == "alternate" and (spec.dtype == "bool" or len(spec.shape) > 0)
        return (every_other(shape) if alternate else np.full(shape, ways[place] != "zeros")).astype(spec.dtype)

    return [array(place, spec) for place, spec in enumerate(manifest.taken)]
