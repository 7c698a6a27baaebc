"""What a model is called with, in the order of its own signature, however the caller named it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["by_name", "in_order"]


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


def by_name(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """What a call gives, by the names of the model's own signature.

    Args:
        model: The model.
        args: Positional inputs.
        keywords: Keyword inputs.

    Returns:
        The inputs that are there, in the order of the signature; of a call that the model does not take, none.

    Examples:
        >>> import torch
        >>> by_name(torch.nn.Bilinear(1, 1, 1), (1,), {}), by_name(torch.nn.Linear(1, 1), (), {"labels": 2})
        ({'input1': 1}, {})
    """
    try:
        bound = inspect.signature(model.forward).bind_partial(*args, **keywords)
    except TypeError:
        return {}
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found.update({f"{name}[{place}]": entry for place, entry in enumerate(value)})
        else:
            found.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
    return found
