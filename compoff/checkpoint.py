"""Fitted bottlenecks in one safetensors file, tied to the model they were fitted for.

Holds the bottlenecks and how to make them again, never the model's own weights. Knows no hooks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from compoff.errors import ArtifactError
from compoff.fingerprint import fingerprint

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["read_bottlenecks", "save_bottlenecks"]

_FORMAT = "compoff-bottlenecks-1"


def save_bottlenecks(path: str | Path, base: nn.Module, bottlenecks: nn.Module, description: dict[str, Any]) -> None:
    """Write bottlenecks to a file.

    Args:
        path: The file.
        base: The model they were fitted for.
        bottlenecks: The bottlenecks.
        description: How to make them again, as JSON can hold it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": _FORMAT, "base": fingerprint(base.state_dict()), "description": json.dumps(description)}
    draft = target.with_name(target.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in bottlenecks.state_dict().items()}, draft, metadata)
    os.replace(draft, target)  # noqa: PTH105 - atomic, and says so


def read_bottlenecks(path: str | Path, base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read bottlenecks and check that they belong to this model.

    Args:
        path: The file.
        base: The model.

    Returns:
        The description, and the tensors by name.

    Raises:
        ArtifactError: The file is damaged or foreign, or was fitted for a model with other weights.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        description = json.loads(metadata.get("description", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); expected a file that Wrapped.save wrote") from error
    if metadata.get("format") != _FORMAT or not isinstance(description, dict):
        raise ArtifactError(f"'{path}': format is {metadata.get('format')!r}, expected {_FORMAT!r}; save again with this version")
    found, given = metadata.get("base", ""), fingerprint(base.state_dict())
    if found != given:
        raise ArtifactError(
            f"'{path}': base is {found[:8]}…, but this {type(base).__name__} has the fingerprint {given[:8]}…; the bottlenecks "
            "were fitted for a model with other weights: load those, or fit again"
        )
    return description, tensors  # pyright: ignore[reportUnknownVariableType]
