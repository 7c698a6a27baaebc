"""PyTorch's tensors as arrays and back. Never imports it: where it is not loaded, there are no tensors of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["from_numpy", "to_numpy"]


def to_numpy(value: Any) -> NDArray[Any] | None:
    """The array behind a tensor.

    Args:
        value: Anything.

    Returns:
        Its array, or None if it is no tensor.

    Raises:
        FeatureError: Numpy has no array like it.

    Examples:
        >>> import torch
        >>> to_numpy(torch.ones(2)), to_numpy("two ones")
        (array([1., 1.], dtype=float32), None)
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    try:
        return value.detach().cpu().resolve_conj().resolve_neg().numpy()
    except (TypeError, NotImplementedError, RuntimeError) as error:
        told = f"an input is {value.dtype}, {value.layout}, on {value.device}, which numpy does not know"
        raise FeatureError(f"{told}; convert it") from error


def from_numpy(array: NDArray[Any]) -> Any:
    """An array as a tensor; where PyTorch is not loaded, as it is.

    Args:
        array: The array.

    Returns:
        A tensor of its own memory, since what comes off the wire cannot be written to.

    Examples:
        >>> import numpy as np, torch
        >>> from_numpy(np.ones(2))
        tensor([1., 1.], dtype=torch.float64)
    """
    torch: Any = sys.modules.get("torch")
    return array if torch is None else torch.from_numpy(array.copy())
