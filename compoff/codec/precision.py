"""The codec is made and computes in its own precision, whatever defaults or autocast the user's script has on."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["full_precision", "own_defaults"]

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@contextlib.contextmanager
def own_defaults(device: str = "cpu") -> Generator[None]:
    """Let tensors that are made in the block be in float32 and on one device, whatever the script's defaults are.

    So are the parameters of modules, those of the user's own factories too. Around no code that is the model's: that
    may count on the script's defaults.

    Args:
        device: The device.

    Yields:
        Nothing.

    Examples:
        >>> import torch
        >>> torch.set_default_dtype(torch.float64)
        >>> with own_defaults():
        ...     layer = torch.nn.Linear(2, 2)
        >>> layer.weight.dtype, torch.ones(2).dtype
        (torch.float32, torch.float64)
        >>> torch.set_default_dtype(torch.float32)
    """
    before, where = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with contextlib.nullcontext() if where.type == device else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def full_precision(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let a function compute without autocast: a step of a fine quantizer is far below the last bit of bfloat16.

    Args:
        function: The function; its first tensor says on which device.

    Returns:
        The same function. While a program is made of it, it is left alone.

    Examples:
        >>> import torch
        >>> product = full_precision(torch.mm)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     product(torch.eye(2), torch.eye(2)).dtype, torch.mm(torch.eye(2), torch.eye(2)).dtype
        (torch.float32, torch.bfloat16)
    """

    @functools.wraps(function)
    def called(*args: _Given.args, **keywords: _Given.kwargs) -> _Result:
        given: tuple[Any, ...] = (*args, *keywords.values())
        where = next((one.device.type for one in given if isinstance(one, Tensor)), "cpu")
        if (
            torch.compiler.is_exporting()
            or not torch.amp.is_autocast_available(where)  # pyright: ignore[reportPrivateImportUsage]
            or not torch.is_autocast_enabled(where)
        ):
            return function(*args, **keywords)
        with torch.autocast(where, enabled=False):
            return function(*args, **keywords)

    return called
