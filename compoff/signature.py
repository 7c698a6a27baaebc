"""What a model is called with, in the order of its own signature, however the caller named it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["in_order"]


def in_order(
    model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], *, defaults: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with its inputs in the order of the model's signature, however they were named.

    Args:
        model: The model.
        args: Positional inputs.
        keywords: Keyword inputs.
        defaults: Whether to name what the call leaves out, too.

    Returns:
        As much as possible by position, the rest by keyword.

    Raises:
        TypeError: The model takes no such inputs.

    Examples:
        >>> import torch
        >>> in_order(torch.nn.Bilinear(1, 1, 1), (), {"input2": 2, "input1": 1})
        ((1, 2), {})
    """
    if not keywords:
        return args, {}
    bound = inspect.signature(model.forward).bind(*args, **keywords)
    if defaults:
        bound.apply_defaults()
    return bound.args, bound.kwargs
