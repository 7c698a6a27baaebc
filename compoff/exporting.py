"""export(): the door from training to running. A fitted Wrapped becomes a Head and a Tail that share one id."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compoff.artifact import FORMAT, Manifest, TensorSpec
from compoff.cutting.capture import capture
from compoff.device.head import Head
from compoff.device.runners.torch import TorchRunner
from compoff.edge.backends.eager import EagerBackend
from compoff.edge.tail import Tail
from compoff.errors import SplitError
from compoff.fingerprint import fingerprint
from compoff.programs import TorchProgram
from compoff.structure import flatten

if TYPE_CHECKING:
    from compoff.wrapping import Wrapped

__all__ = ["export"]


def export(wrapped: Wrapped, split: str, *, max_batch: int = 256) -> tuple[Head, Tail]:
    """Cut a wrapped model at a split point into the part for the device and the part for the edge.

    The bottleneck is taken as it is: fit it first. The wrapped model stays as it was and can be exported again.

    Args:
        wrapped: What `compoff.wrap` returned, its shapes known.
        split: The split point.
        max_batch: Largest number of samples in one payload; what the edge reserves memory for.

    Returns:
        Head and tail.

    Raises:
        SplitError: `split` is unknown, the model cannot be exported, or more than the symbols crosses the cut.
        ArtifactError: The model returns something that is not tensors in tuples, lists and dicts.

    Example:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(2048, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 16, 16))
        >>> head, tail = compoff.export(model, "input")
        >>> head.artifact_id == tail.artifact_id
        True

    Source: DeepCOD (SenSys 2020), Sec. 4.1.
    """
    bottleneck = wrapped.bottleneck(split)
    inputs = wrapped.example_inputs()
    programs = capture(wrapped.base, wrapped.gate(split), split, inputs)
    leaves, structure = flatten(programs.output, lambda value: isinstance(value, Tensor))
    if not leaves:
        raise SplitError("the model returns no tensor, so there is nothing for the tail to answer")
    tables = bottleneck.prior.tables()
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    shared: dict[str, Any] = {
        "artifact_id": _identity(wrapped, split, tables.weights.tobytes()),
        "split": split,
        "model": type(wrapped.base).__name__,
        "inputs": tuple(_spec(value) for value in tensors),
        "outputs": tuple(_spec(value) for value in leaves),
        "structure": structure,
        "latent_shape": bottleneck.latent_shape,
        "num_centers": bottleneck.num_centers,
        "qualities": (bottleneck.latent_shape[0],),
        "max_batch": max_batch,
        "report": wrapped.reports.get(split, {}),
        "versions": {"compoff": _version(), "torch": torch.__version__},
    }
    head = Head(Manifest("head", **shared), tables, TorchRunner(TorchProgram(programs.head)))
    tail = Tail(Manifest("tail", **shared), tables, EagerBackend(TorchProgram(programs.tail)))
    return head, tail


def _spec(value: Tensor) -> TensorSpec:
    """Shape and dtype of a tensor at the example batch of two."""
    batched = value.dim() > 0 and len(value) == 2
    shape = tuple(value.shape[1:] if batched else value.shape)
    return TensorSpec(shape, str(value.dtype).removeprefix("torch."), batched)


def _identity(wrapped: Wrapped, split: str, tables: bytes) -> str:
    """A name that changes with anything that head and tail must agree on."""
    parts = {
        "format": FORMAT,
        "split": split,
        "base": fingerprint(wrapped.base.state_dict()),
        "bottleneck": fingerprint(wrapped.bottleneck(split).state_dict()),
        "tables": hashlib.sha256(tables).hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _version() -> str:
    """The installed version of this package."""
    try:
        return metadata.version("compoff")
    except metadata.PackageNotFoundError:
        return "not installed"
