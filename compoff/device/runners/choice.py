"""Which runtime runs a head that was read from a folder: the one asked for, or the first that is installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from compoff.checks import check_flag, check_whole
from compoff.errors import BackendError

if TYPE_CHECKING:
    from compoff.artifact import Folder
    from compoff.device.runners.runner import Runner

__all__ = ["Runtime", "load_runner", "programs", "require_torch"]

Runtime: TypeAlias = Literal["torch", "onnx", "executorch"]
"""A runtime for heads."""

_PROGRAMS: dict[str, Runtime] = {"head.pt2": "torch", "head.onnx": "onnx", "head.pte": "executorch"}
_PACKAGES: dict[Runtime, str] = {"torch": "torch", "onnx": "onnxruntime", "executorch": "executorch"}


def load_runner(folder: Folder, runtime: Runtime | None = None, threads: int | None = None) -> Runner:
    """Load a head's program.

    Args:
        folder: The folder, read and checked.
        runtime: What to run it with; None for the first program of the folder whose runtime is installed, which is the
            one that the head ran with when it was saved.
        threads: Threads that work on one run; None for one a core.

    Returns:
        The runner.

    Raises:
        BackendError: There is no such runtime or it is not installed, the folder has no program for it, or the program
            is damaged or another head's.
        ArtifactError: PyTorch cannot read its program.
    """
    check_whole("threads", threads, BackendError, least=0, or_none=True)
    there: list[Runtime] = [_PROGRAMS[name] for name in folder.files if name in _PROGRAMS]
    chosen = _asked_for(folder, there, runtime) if runtime else _installed(folder, there)
    if chosen == "onnx":
        from compoff.device.runners.onnx import OnnxRunner  # imports onnxruntime

        return OnnxRunner.load(folder, threads)
    if threads is not None:
        raise BackendError("threads= is for onnxruntime; PyTorch has one setting for all: torch.set_num_threads")
    if chosen == "executorch":
        from compoff.device.runners.executorch import ExecuTorchRunner  # imports executorch

        return ExecuTorchRunner.load(folder)
    from compoff.device.runners.torch import TorchRunner  # imports torch

    return TorchRunner.load(folder)


def programs(runner: Runner, *, torch: bool) -> dict[str, bytes]:
    """The programs of a head, as they are saved.

    Args:
        runner: The runtime that holds them.
        torch: Whether PyTorch's is to be among them.

    Returns:
        The files by name.

    Raises:
        BackendError: `torch` is no truth value, or without PyTorch's program there is none.
    """
    check_flag("torch", torch, BackendError)
    files = {name: data for name, data in runner.files.items() if torch or _PROGRAMS.get(name) != "torch"}
    if not torch and not any(name in _PROGRAMS for name in files):
        raise BackendError(
            "torch is False, but this head has no program for another runtime; save what compile('onnx') gives"
        )
    return files


def require_torch() -> None:
    """Refuse to compile a head where there is no PyTorch.

    Raises:
        BackendError: There is none.
    """
    if not _is_installed("torch"):
        raise BackendError(
            "compiling a head needs torch, which is not installed; compile and save it where the model was exported, "
            "and copy the folder"
        )


def _asked_for(folder: Folder, there: list[Runtime], runtime: Runtime) -> Runtime:
    if runtime not in get_args(Runtime):
        raise BackendError(f"there is no runtime {runtime!r}; expected {', '.join(get_args(Runtime))} or None")
    if runtime not in there:
        raise BackendError(
            f"'{folder.path}' holds no program for {runtime}, but for {', '.join(there) or 'none that is known'}; "
            f"where torch is, make one: Head.load(…).compile('{runtime}').save(…)"
        )
    if not _is_installed(_PACKAGES[runtime]):
        raise BackendError(f"runtime {runtime} needs {_PACKAGES[runtime]}, which is not installed; install it")
    return runtime


def _installed(folder: Folder, there: list[Runtime]) -> Runtime:
    for runtime in there:
        if _is_installed(_PACKAGES[runtime]):
            return runtime
    packages = " or ".join(_PACKAGES[runtime] for runtime in there) or "a program that this compoff knows"
    hint = "" if "onnx" in there else "; for a device without torch, compile('onnx') the head where torch is"
    raise BackendError(f"'{folder.path}' needs {packages}, which is not installed; install it{hint}")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an import system that refuses it, a module without a spec
        return False
