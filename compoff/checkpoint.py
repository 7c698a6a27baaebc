"""Fitted bottlenecks in one safetensors file, tied to the model they were fitted for.

Holds the bottlenecks and how to make them again, never the model's own weights. Knows no hooks.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
from safetensors import SafetensorError, safe_open

from compoff.checks import check_path, reaching
from compoff.drafts import write_whole
from compoff.errors import ArtifactError
from compoff.fingerprint import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["read_bottlenecks", "read_checkpoint", "save_bottlenecks"]

_FORMAT = "compoff-bottlenecks-3"
# The first knew one feature a split point, the second neither units nor, at first, the quality that was chosen.
_FORMATS = {_FORMAT, "compoff-bottlenecks-2", "compoff-bottlenecks-1"}
_KEYS = {"format", "base", "description", "checksum"}


def save_bottlenecks(path: str | Path, base: str, bottlenecks: nn.Module, description: dict[str, Any]) -> None:
    """Write bottlenecks to a file.

    Args:
        path: The file.
        base: Fingerprint of the model they were fitted for.
        bottlenecks: The bottlenecks.
        description: How to make them again, as JSON can hold it.

    Raises:
        ArtifactError: The file cannot be written.
    """
    target = check_path("path", path, ArtifactError)
    with reaching(target, ArtifactError):
        is_folder = target.is_dir()
    if is_folder:
        raise ArtifactError(f"'{target}' is a folder; give a file to save the bottlenecks in")
    tensors = {name: tensor.contiguous() for name, tensor in bottlenecks.state_dict().items()}
    text = json.dumps(description)
    metadata = {"format": _FORMAT, "base": base, "description": text}
    metadata["checksum"] = _checksum(text, tensors)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not the library's own way to a file, which leaves it to nobody but who wrote it.
        write_whole(target, safetensors.torch.save(tensors, metadata))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"the bottlenecks cannot be saved in '{target}' ({error}); give another file") from error


def read_bottlenecks(path: str | Path, base: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Read bottlenecks and check that they belong to this model.

    Args:
        path: The file.
        base: The model.

    Returns:
        The description, the tensors by name, and the model's fingerprint.

    Raises:
        ArtifactError: The file is damaged or foreign, or was fitted for a model with other weights.
    """
    description, tensors, found = read_checkpoint(path)
    given = fingerprint(base.state_dict())
    if found != given:
        raise ArtifactError(
            f"'{path}': base is {found[:8]}…, but this {type(base).__name__} has the fingerprint {given[:8]}…; the "
            "bottlenecks were fitted for a model with other weights: load those, or fit again"
        )
    return description, tensors, given


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Read bottlenecks, whichever model they belong to.

    Args:
        path: The file.

    Returns:
        The description, the tensors by name, and the fingerprint of the model.

    Raises:
        ArtifactError: The file is damaged or foreign.
    """
    path = check_path("path", path, ArtifactError)
    with reaching(path, ArtifactError):
        is_folder = path.is_dir()
    if is_folder:
        raise ArtifactError(f"'{path}' cannot be read (it is a folder); expected a file that Wrapped.save wrote")
    try:
        with cast("Any", safe_open)(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        text = metadata.get("description", "null")
        description: Any = json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' cannot be read ({error}); expected a file that Wrapped.save wrote") from error
    if metadata.get("format") not in _FORMATS or not isinstance(description, dict):
        raise ArtifactError(
            f"'{path}': format is {metadata.get('format')!r}, expected {_FORMAT!r} or one before: read it "
            "with the version that wrote it, or save again with this one"
        )
    checksum = _checksum(text, tensors)
    # The first files had no checksum; a key of another name may be one that was damaged.
    if metadata.get("checksum", checksum) != checksum or not metadata.keys() <= _KEYS:
        raise ArtifactError(
            f"'{path}': checksum does not fit the rest of the file; it was changed or damaged: save again"
        )
    return description, tensors, metadata.get("base", "")  # pyright: ignore[reportUnknownVariableType]


def _checksum(description: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that the file holds of the bottlenecks."""
    return hashlib.sha256(f"{description}|{fingerprint(tensors)}".encode()).hexdigest()
