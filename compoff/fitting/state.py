"""How far a fit has come, in one safetensors file: a killed fit goes on where it was, step for step.

Holds the bottlenecks, Adam's moments, the random state and the curves; read back only into the fit that wrote it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compoff.errors import FitError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FitState", "load_state", "save_state"]


@dataclass
class FitState:
    """Progress of a fit.

    Args:
        step: Number of steps done.
        position: Number of batches of the current round of the loader that are used up.
        seconds: Wall-clock time so far, in seconds.
        loss: Loss of every step, by split point.
        reconstruction: First-phase loss of every step, by split point; what convergence is judged by.
        distilled_from: Step at which Eq. 11 was added, by split point.
    """

    step: int = 0
    position: int = 0
    seconds: float = 0.0
    loss: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    reconstruction: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    distilled_from: dict[str, int] = field(default_factory=dict[str, int])


def save_state(
    path: Path, state: FitState, settings: dict[str, Any], bottlenecks: nn.Module, optimizer: torch.optim.Adam, rng: Tensor
) -> None:
    """Write the state; the old file stays until the new one is whole.

    Args:
        path: The file.
        state: Progress.
        settings: What makes this fit this fit; compared when it is read back.
        bottlenecks: The bottlenecks.
        optimizer: Their optimizer.
        rng: Random state at the start of the current round of the loader.
    """
    tensors = {f"bottlenecks.{name}": tensor.contiguous() for name, tensor in bottlenecks.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"adam.{index}.{name}"] = torch.as_tensor(value).contiguous()
    tensors["rng"] = rng
    metadata = {"settings": json.dumps(settings, sort_keys=True), "state": json.dumps(vars(state))}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    save_file(tensors, draft, metadata)
    os.replace(draft, path)  # noqa: PTH105 - atomic, and says so


def load_state(
    path: Path, settings: dict[str, Any], bottlenecks: nn.Module, optimizer: torch.optim.Adam
) -> tuple[FitState, Tensor]:
    """Read the state back into bottlenecks and optimizer.

    Args:
        path: The file.
        settings: What this fit is; must be what the file was written by.
        bottlenecks: The bottlenecks.
        optimizer: Their optimizer.

    Returns:
        Progress, and the random state at the start of the round.

    Raises:
        FitError: The file is damaged or belongs to another fit; nothing has been changed then.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        found, state = json.loads(metadata["settings"]), FitState(**json.loads(metadata["state"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise FitError(f"'{path}' is not the state of a fit ({error}); delete it to start afresh") from error
    expected = json.loads(json.dumps(settings))
    for key in sorted({*found, *expected}):
        if found.get(key) != expected.get(key):
            raise FitError(
                f"'{path}' was written by a fit with {key}={found.get(key)}, and this one has {key}={expected.get(key)}; "
                "give the same arguments to go on with it, or another file to start afresh"
            )
    bottlenecks.load_state_dict(_under("bottlenecks.", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("adam.", tensors).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state, tensors["rng"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
