"""Which runtime a tail's program runs in: the one that was asked for, or the best that is here; and from which engine.

Knows the backends by name and nothing of what they do.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

import torch

from compoff.autocast import no_autocast
from compoff.edge.backends.eager import PROGRAM, EagerBackend
from compoff.edge.backends.engine import has_engine, read_engine
from compoff.edge.backends.inductor import InductorBackend
from compoff.edge.backends.onnx import OnnxBackend
from compoff.edge.backends.samples import check_agreement
from compoff.edge.backends.tensorrt import TensorrtBackend
from compoff.errors import BackendError
from compoff.programs import TorchProgram, device_trouble, settled

if TYPE_CHECKING:
    from compoff.artifact import Folder
    from compoff.edge.backends.backend import Backend
    from compoff.edge.backends.engine import Engine
    from compoff.manifest import Manifest
    from compoff.weights import WeightPool

__all__ = ["BackendName", "Choice", "check_backend", "check_device", "compile_backend", "load_backend", "missing_of"]

_log = logging.getLogger("compoff.engine")

BackendName: TypeAlias = Literal["eager", "inductor", "onnx", "tensorrt", "auto"]
"""A runtime; ``"auto"`` takes the best that is here."""


class _Compiled(Protocol):
    """What a backend that runs engines can do before there is one."""

    def __call__(self, engine: Engine, manifest: Manifest, device: str) -> Backend: ...
    def missing(self) -> str: ...
    def key(self, manifest: Manifest, source: bytes, device: str) -> dict[str, str]: ...
    def compile(self, manifest: Manifest, source: bytes, device: str) -> Engine: ...


_COMPILED: dict[str, _Compiled] = {"inductor": InductorBackend, "onnx": OnnxBackend, "tensorrt": TensorrtBackend}
_BEST = {"cpu": ("onnx", "inductor"), "cuda": ("tensorrt", "inductor")}
"""For each kind of device the backends from the fastest on, as `benchmarks/engines.py` measures them."""

_MOST_DEVIATION = {"inductor": 1e-3, "onnx": 1e-3, "tensorrt": 5e-2}


@dataclass(frozen=True)
class Choice:
    """Which runtime a tail runs in.

    Args:
        backend: Its name.
        reason: Why it was taken.
        device: Where it runs.
        deviation: Largest difference of an output from PyTorch's when it was compiled, relative to its largest value;
            None where nothing was compiled just now.
    """

    backend: str
    reason: str
    device: str = "cpu"
    deviation: float | None = None


def check_device(device: Any) -> str:
    """Refuse a device that is not here.

    Args:
        device: What was given as one.

    Returns:
        The device, with its number.

    Raises:
        BackendError: There is no such device.
    """
    if reason := device_trouble(device):
        raise BackendError(f"the program cannot run on device '{device}' ({reason}); choose another")
    return str(settled(device))


def check_backend(name: str, device: Any) -> str:
    """Refuse a name that no backend has, a backend that cannot be used here, and a device that is not here.

    Args:
        name: The name.
        device: What was given as a device.

    Returns:
        The device, with its number.

    Raises:
        BackendError: There is no such backend or device, or something that the backend needs is missing.
    """
    if name not in get_args(BackendName):
        known = ", ".join(map(repr, get_args(BackendName)))
        raise BackendError(f"there is no backend '{name}'; choose one of {known}")
    if name in _COMPILED:
        _installed(name)
    return check_device(device)


@no_autocast()
def compile_backend(
    manifest: Manifest, source: bytes, name: str, device: Any, like: Backend | None = None
) -> tuple[Backend, Choice]:
    """Compile a tail's program.

    Args:
        manifest: What the tail is.
        source: The program as a ``.pt2`` file.
        name: Which runtime.
        device: Where to run it.
        like: A backend of the same network whose TensorRT engine takes over this program's weights.

    Returns:
        The backend, and which it is and why.

    Raises:
        BackendError: There is no such backend or device, it is not installed, it cannot run the program, or it does
            not agree with PyTorch.
    """
    device = check_backend(name, device)
    if name == "auto":
        return _best(manifest, source, device)
    if name == "eager":
        return _eager(source, device), Choice("eager", "asked for", device)
    kind = _installed(name)
    if like is None:
        engine = kind.compile(manifest, source, device)
    elif isinstance(like, TensorrtBackend) and name == "tensorrt":
        engine = TensorrtBackend.compile(manifest, source, device, like.engine)
    else:
        raise BackendError("only an engine of TensorRT takes over other weights; compile the tail without like=")
    backend = kind(engine, manifest, device)
    deviation = check_agreement(manifest, name, _eager(source, device).run, backend.run, _MOST_DEVIATION[name])
    return backend, Choice(name, "asked for", device, deviation)


def load_backend(folder: Folder, name: str, device: Any, pool: WeightPool | None = None) -> tuple[Backend, Choice]:
    """Run the program of a folder, from its engine where that may be run here.

    Args:
        folder: The folder, read and checked.
        name: Which runtime.
        device: Where to run it.
        pool: Weights that a program in PyTorch shares with others.

    Returns:
        The backend, and which it is and why.

    Raises:
        ArtifactError: The folder has no program, or PyTorch cannot read it.
        BackendError: As for `compile_backend`; or the engine's bytes are not those that the manifest lists.
    """
    device = check_backend(name, device)
    if name == "eager":
        return EagerBackend.load(folder, device, pool), Choice("eager", "asked for", device)
    wanted = _BEST.get(torch.device(device).type, ()) if name == "auto" else (name,)
    why_not: list[str] = []
    for one in wanted:
        if name == "auto" and (_COMPILED[one].missing() or not has_engine(folder, one)):
            continue
        kind = _installed(one)
        key = kind.key(folder.manifest, folder.file(PROGRAM), device)
        engine, reason = read_engine(folder, one, key)
        if engine is not None:
            return kind(engine, folder.manifest, device), Choice(
                one, "its folder has an engine for this machine", device
            )
        why_not.append(reason)
    _log.warning(
        "compoff: the tail at '%s' is compiled for '%s', which takes a while: its folder has no engine for it that may "
        "be run here (%s). To store one: compoff compile %s --backend %s",
        folder.manifest.split,
        name,
        "; ".join(why_not) or "there is none",
        folder.path,
        name,
    )
    return compile_backend(folder.manifest, folder.file(PROGRAM), name, device)


def _best(manifest: Manifest, source: bytes, device: str) -> tuple[Backend, Choice]:
    """The first that works, from the fastest on; PyTorch itself where none does."""
    passed_over: list[str] = []
    for name in _BEST.get(torch.device(device).type, ()):
        if missing := _COMPILED[name].missing():
            passed_over.append(f"not {name}, {missing}")
            continue
        try:
            backend, choice = compile_backend(manifest, source, name, device)
        except BackendError as error:
            passed_over.append(f"not {name}, {error}")
            _log.warning("compoff: '%s' cannot run the tail at '%s': %s", name, manifest.split, error)
            continue
        reason = "; ".join([f"the fastest for '{device}' that works here", *passed_over])
        _log.info("compoff: the tail at '%s' runs in '%s': %s", manifest.split, name, reason)
        return backend, replace(choice, reason=reason)
    reason = "; ".join(["nothing faster works here", *passed_over])
    _log.warning("compoff: the tail at '%s' runs in PyTorch: %s", manifest.split, reason)
    return _eager(source, device), Choice("eager", reason, device)


def missing_of() -> dict[str, str]:
    """What each compiled backend lacks here.

    Returns:
        What is not installed of what it needs, by name of the backend; empty where nothing is missing.

    Examples:
        >>> missing_of()["inductor"]
        ''
    """
    return {name: kind.missing() for name, kind in _COMPILED.items()}


def _installed(name: str) -> _Compiled:
    kind = _COMPILED[name]
    if missing := kind.missing():
        raise BackendError(f"the backend '{name}' cannot be used: {missing}; or choose another backend")
    return kind


def _eager(source: bytes, device: str) -> EagerBackend:
    return EagerBackend(TorchProgram.load(source, PROGRAM, device))
