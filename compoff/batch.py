"""What the model is called with, and what it says of a call that it was not made for. Knows no split points."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compoff.errors import CompoffError, FeatureError
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Batch", "refusals_named"]


@dataclass(frozen=True)
class Batch:
    """What the model is called with.

    Args:
        args: Positional inputs.
        kwargs: Keyword inputs.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def size(self) -> int:
        """Number of samples."""
        return next(len(value) for value in tensors_of((self.args, self.kwargs)) if value.dim())


@contextlib.contextmanager
def refusals_named(batch: Batch) -> Generator[None]:
    """Turn what a model raises at inputs that it was not made for into an error that says so.

    Args:
        batch: What the model is called with inside the block.

    Yields:
        Nothing.

    Raises:
        FeatureError: The model refused the batch; its own error is the cause.

    Examples:
        >>> import torch
        >>> with refusals_named(Batch((torch.zeros(2, 3, dtype=torch.uint8),))):
        ...     raise RuntimeError("expected Float, found Byte")
        Traceback (most recent call last):
        compoff.errors.FeatureError: the model refuses a batch of uint8 (2, 3): expected Float, found Byte. ...
    """
    try:
        yield
    except (CompoffError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        tensors = tensors_of((batch.args, batch.kwargs))
        given = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in tensors)
        raise FeatureError(
            f"the model refuses a batch of {given}: {error}. Give the batches that the model itself takes: the same "
            "shapes, floating-point where it expects them, inputs before labels"
        ) from error
