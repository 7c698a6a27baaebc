"""A program computes in the precision that it was exported in, whatever autocast is on around the call."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["no_autocast"]

_KINDS = ("cpu", "cuda", "mps", "xpu")


@contextlib.contextmanager
def no_autocast() -> Generator[None]:
    """Compute without autocast while the block runs; also a decorator.

    A training script may call from inside its own autocast, which would change symbols, or be written into a program.

    Examples:
        >>> import torch
        >>> with torch.autocast("cpu", torch.bfloat16), no_autocast():
        ...     torch.mm(torch.eye(2), torch.eye(2)).dtype
        torch.float32

    Source: this project.
    """
    with contextlib.ExitStack() as off:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield
