"""Names for weights: SHA-256 over the names, shapes, dtypes and bytes of a state dict."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["fingerprint"]


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a state dict.

    Args:
        state: Tensors by name.

    Returns:
        64 hexadecimal digits, the same for the same names and values on every little-endian platform; extra state that
        is no tensor does not count.

    Examples:
        >>> import torch
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2).clone()})
        True

    Source: this project.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if not isinstance(state[name], torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - extra state may be
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
