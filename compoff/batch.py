"""What the model is called with, and what it says of a call that it was not made for. Knows no split points."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from compoff.errors import CompoffError, FeatureError, FitError
from compoff.hooks import stop_listening
from compoff.printable import first_line
from compoff.trees import map_tensors, tensors_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor, nn

__all__ = ["Batch", "batch_of", "refusals_named"]


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

    @property
    def num_bytes(self) -> int:
        """Size of its tensors."""
        return sum(value.numel() * value.element_size() for value in tensors_of((self.args, self.kwargs)))

    def copy(self) -> Batch:
        """The same in memory of its own.

        Returns:
            A batch that neither a model that writes to its inputs nor a loader that fills its buffer again can change
            this one through, nor the other way round.

        Examples:
            >>> import torch
            >>> batch = Batch((torch.zeros(2),))
            >>> _ = batch.copy().args[0].add_(1.0)
            >>> batch.args[0].tolist()
            [0.0, 0.0]
        """
        copies: dict[Tensor, Tensor] = {}  # what is given twice stays one tensor

        def copied(tensor: Tensor) -> Tensor:
            if tensor not in copies:
                copies[tensor] = tensor.clone()
            return copies[tensor]

        args, kwargs = map_tensors((self.args, self.kwargs), copied)
        return Batch(args, kwargs)

    def call(self, model: nn.Module) -> Any:
        """Call a model with it, which stays as it is whatever the model writes to.

        However the pass ends, nothing of it goes on afterwards.

        Args:
            model: The model.

        Returns:
            What the model returns.

        Examples:
            >>> import torch
            >>> batch = Batch((torch.tensor([-1.0, 1.0]),))
            >>> batch.call(torch.nn.ReLU(inplace=True)).tolist(), batch.args[0].tolist()
            ([0.0, 1.0], [-1.0, 1.0])
        """
        given = self.copy()
        try:
            return model(*given.args, **given.kwargs)
        finally:
            if not torch.compiler.is_compiling():  # which no Ctrl-C gets into
                stop_listening(model)


def batch_of(inputs: tuple[Any, ...], keywords: Any) -> Batch:
    """The batch that somebody's own loop gives as the arguments of a call.

    Args:
        inputs: Positional inputs.
        keywords: Keyword inputs, by name; or None.

    Returns:
        The batch.

    Raises:
        FitError: `keywords` is no dict, or there is no tensor in either.

    Examples:
        >>> batch_of((torch.zeros(4, 3),), None).size
        4
    """
    if keywords is not None and not isinstance(keywords, Mapping):
        raise FitError(f"keywords is a {type(keywords).__name__}; expected a dict of inputs by name, or None")
    batch = Batch(inputs, dict(cast("Mapping[str, Any]", keywords or {})))
    if not torch.compiler.is_compiling() and not tensors_of((batch.args, batch.kwargs)):
        told = ", ".join(type(value).__name__ for value in (*inputs, *batch.kwargs.values())) or "nothing"
        raise FitError(f"the batch is {told}; give tensors, as the model takes them (torch.from_numpy for an array)")
    return batch


@contextlib.contextmanager
def refusals_named(batch: Batch, model: nn.Module | None = None) -> Generator[None]:
    """Turn what a model raises at inputs that it was not made for into an error that says so.

    Args:
        batch: What the model is called with inside the block.
        model: The model, where inputs may be on another device than it is.

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
    listed = len(batch.args) == 1 and isinstance(batch.args[0], list) and not batch.kwargs
    try:
        yield
    except (CompoffError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError) as error:
        if isinstance(error, AttributeError) and not listed:  # a list has no shape; other models have mistakes
            raise
        tensors = tensors_of((batch.args, batch.kwargs))
        given = ", ".join(f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}" for tensor in tensors)
        raise FeatureError(
            f"the model refuses a {'list' if listed else 'batch'} of {given}: {first_line(error)}. "
            + (_elsewhere(tensors, model) or (_LISTED if listed else _AS_THE_MODEL))
        ) from error


def _elsewhere(tensors: list[Tensor], model: nn.Module | None) -> str:
    """What to do where the model is on another device than a batch; nothing where both are on one."""
    first = None if model is None else next(model.parameters(), None)
    apart = [] if first is None else [tensor.device for tensor in tensors if tensor.device != first.device]
    if first is None or not apart:
        return ""
    return f"The batch is on {apart[0]}, and the model on {first.device}: move it there, with .to('{first.device}')"


_AS_THE_MODEL = (
    "Give the batches that the model itself takes: the same shapes, floating-point where it expects them, inputs "
    "before labels"
)
_LISTED = (
    "A list is taken for one input; where it is what a loader gives, inputs and labels, give its inputs alone: "
    "batch[0] in place of batch, and several of them as a tuple"
)
