"""In which line of the user's own code something happened, for messages."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch.overrides import TorchFunctionMode

from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["fixing_line", "users_line"]


def users_line(error: BaseException) -> str:
    """Where something was raised.

    Args:
        error: What was raised.

    Returns:
        File and line of the innermost frame that is neither PyTorch's nor ours; empty where there is none.
    """
    own = [str(Path(module.__file__).parent) for module in (torch, sympy) if module.__file__]
    own.append(str(Path(__file__).parents[1]))
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith((*own, "<")):
            found = f"{frame.filename}:{frame.lineno}"
    return found


def fixing_line(export: Callable[[], object]) -> str:
    """Where a model makes a fixed number of the size of its batch; torch.export says only in the end that it did.

    Args:
        export: Exports the model once more.

    Returns:
        File and line; empty where that is not found.
    """
    try:
        with _Sizes():
            export()
    except _FixedError as error:
        line = users_line(error)
        return f"{line}{error}" if line else ""
    except Exception:
        return ""  # the reason is known without it
    return ""


class _FixedError(Exception):
    """The size of the batch has become a number; says whether that was before the function that is being called."""


class _Sizes(TorchFunctionMode):
    """Leaves a trace where the size of its batch has become a number."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: list[Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if self._sizes is None:  # before the first call, which may be what fixes them
            shapes = [tensor.shape for tensor in tensors_of((args, kwargs))]
            self._sizes = [size for shape in shapes for size in shape if isinstance(size, torch.SymInt)] or None
        self._look(" or before")
        output = func(*args, **(kwargs or {}))
        self._look("")
        return output

    def _look(self, when: str) -> None:
        if any(size.node.expr.is_number for size in self._sizes or ()):
            self._sizes = []  # the tracer's way out calls functions, too
            raise _FixedError(when)
