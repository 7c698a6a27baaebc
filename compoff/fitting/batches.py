"""Batches as people have them, turned into what the model is called with; labels fall away here.

Knows the shapes of loaders (tensors, tuples, dicts), nothing of training.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.distilling import Batch
from compoff.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["to_batch"]

_LABELS = {"label", "labels", "target", "targets"}


def to_batch(item: Any, model: nn.Module, device: torch.device | None = None) -> Batch:
    """Take the model's inputs out of one item of a loader.

    Args:
        item: A tensor; a tuple or list, whose first entry is the input (or a tuple of inputs) and whose others are
            labels; or a dict, of which the model's own argument names are taken, labels excepted.
        model: The model.
        device: Where to move the tensors; None to leave them.

    Returns:
        The inputs.

    Raises:
        FitError: The item holds no tensor, or no samples.

    Example:
        >>> import torch
        >>> to_batch((torch.ones(2, 3), torch.tensor([0, 1])), torch.nn.Linear(3, 1)).args[0].shape
        torch.Size([2, 3])
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(item, dict):
        kwargs = _arguments(item, model)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(item, (tuple, list)):
        first: Any = item[0] if item else None  # pyright: ignore[reportUnknownVariableType]
        args = tuple(first) if isinstance(first, (tuple, list)) else (first,)  # pyright: ignore[reportUnknownArgumentType]
    else:
        args = (item,)
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    if not tensors:
        raise FitError(
            f"a batch is {type(item).__name__} without a tensor where the input is expected; give tensors, (input, label) "
            "tuples, or dicts with the model's argument names"
        )
    if any(tensor.dim() == 0 or tensor.shape[0] == 0 for tensor in tensors):
        raise FitError("a batch is empty (no samples in its first axis); drop empty batches from the loader")
    return Batch(tuple(_move(value, device) for value in args), {k: _move(v, device) for k, v in kwargs.items()})


def _arguments(item: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The entries of a dict that the model takes, without labels."""
    names = set(inspect.signature(model.forward).parameters)
    return {key: value for key, value in item.items() if key in names and key not in _LABELS}


def _move(value: Any, device: torch.device | None) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) and device is not None else value
