"""What a model was called with, reduced to shapes: two samples of zeros, in the order of the model's own signature.

Kept to export with later, without keeping the user's data. Knows neither codecs nor graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from compoff.errors import FitError, SplitError
from compoff.signature import by_name, in_order
from compoff.structure import flatten, unflatten
from compoff.trees import map_tensors, tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["ExampleInputs", "as_call", "example_call", "require_known"]


_SAMPLES = 2
_MOST_ELEMENTS = 1 << 28  # a small file that was forged would else have a model compute on more than any memory holds


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example input as positional and keyword inputs.

    Args:
        example: A tensor, a tuple of positional inputs, a mapping of keyword inputs, or ``(tuple, dict)`` of both.

    Returns:
        Positional and keyword inputs.

    Examples:
        >>> as_call({"input_ids": 1}), as_call(((1, 2), {"mask": 3}))
        (((), {'input_ids': 1}), ((1, 2), {'mask': 3}))
    """
    if isinstance(example, Mapping):
        return (), dict(cast("Mapping[str, Any]", example))
    if not isinstance(example, tuple):
        return (example,), {}
    parts = cast("tuple[Any, ...]", example)
    if len(parts) == 2 and isinstance(parts[0], tuple) and isinstance(parts[1], dict):
        return cast("tuple[Any, ...]", parts[0]), cast("dict[str, Any]", parts[1])
    return parts, {}


def example_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example input of the user's as positional and keyword inputs.

    Args:
        example: As for `as_call`.

    Returns:
        Positional and keyword inputs.

    Raises:
        SplitError: There is no tensor in it.
    """
    args, keywords = as_call(example)
    if not tensors_of((args, keywords)):
        raise SplitError(
            f"example_input is {example!r:.80}, which holds no tensor; expected one batch: a tensor, a tuple of "
            "positional inputs, a dict of keyword inputs, or (tuple, dict) of both"
        )
    return args, keywords


@dataclass(frozen=True)
class ExampleInputs:
    """Inputs of the shapes that a model was called with, two samples of zeros.

    Args:
        args: Positional inputs.
        keywords: Inputs that the model takes by keyword only.
        batched: For each tensor in them, in order, whether its first axis is the batch.

    Examples:
        >>> import torch
        >>> example = ExampleInputs.of_call(torch.nn.Identity(), (torch.ones(8, 3),))
        >>> example.args[0].tolist(), example.batched
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], (True,))

    Source: this project.
    """

    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict[str, Any])
    batched: tuple[bool, ...] = ()

    @classmethod
    def of_call(cls, model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> ExampleInputs:
        """Keep the shapes of one call.

        A tensor is taken to have a batch axis if its first axis is as long as that of the first tensor.

        Args:
            model: The model that was called.
            args: Positional inputs.
            keywords: Keyword inputs; those that the model also takes by position are put there.

        Returns:
            The same call with two samples of zeros.
        """
        args, keywords = in_order(model, args, keywords or {}, defaults=True)
        tensors = tensors_of((args, keywords))
        length = next((len(tensor) for tensor in tensors if tensor.dim()), None)
        batched = tuple(tensor.dim() > 0 and len(tensor) == length for tensor in tensors)
        flags = iter(batched)

        def empty(tensor: Tensor) -> Tensor:
            return tensor.new_zeros((_SAMPLES, *tensor.shape[1:]) if next(flags) else tensor.shape)

        with torch.inference_mode(mode=False):
            zeros: Any = map_tensors((args, keywords), empty)
        return cls(zeros[0], zeros[1], batched)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors, in order: what a head takes."""
        return tensors_of((self.args, self.keywords))

    def of_size(self, size: int) -> ExampleInputs:
        """The same inputs with another number of samples.

        Args:
            size: Number of samples.

        Returns:
            Zeros of the shapes that so many have; what has no batch axis, as it is.
        """
        flags = iter(self.batched)
        return self.map(lambda tensor: tensor.new_zeros(size, *tensor.shape[1:]) if next(flags) else tensor)

    def map(self, function: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """Change every tensor.

        Args:
            function: What to do with each, keeping its shape.

        Returns:
            The changed inputs.
        """
        args, keywords = map_tensors((self.args, self.keywords), function)
        return ExampleInputs(args, keywords, self.batched)

    def describe(self) -> dict[str, Any]:
        """These inputs as JSON can hold them.

        Returns:
            Shapes and dtypes under ``"inputs"``, their nesting under ``"call"``.

        Raises:
            ArtifactError: An input is something else than tensors in tuples, lists and dicts, and plain constants.
        """
        leaves, call = flatten([list(self.args), self.keywords], _is_tensor, "the model was called with")
        inputs = [
            [list(tensor.shape), str(tensor.dtype).removeprefix("torch."), batched]
            for tensor, batched in zip(leaves, self.batched, strict=True)
        ]
        return {"inputs": inputs, "call": call}

    @classmethod
    def of_description(cls, description: dict[str, Any]) -> ExampleInputs:
        """Make the inputs again that `describe` described.

        Args:
            description: The description; one without ``"call"`` holds positional tensors only.

        Returns:
            The inputs, on the CPU.

        Raises:
            ArtifactError: The nesting is damaged.
            ValueError: Something else is.
        """
        shapes: list[tuple[list[int], str]] = []
        batched: list[bool] = []
        elements = 0
        for shape, dtype, *has_batch in description["inputs"]:
            batched.append(has_batch != [False] and len(shape) > 0)
            shape = [min(shape[0], _SAMPLES), *shape[1:]] if batched[-1] else shape
            elements += math.prod(shape)
            if elements > _MOST_ELEMENTS:
                raise ValueError(f"its inputs hold more than {_MOST_ELEMENTS} numbers")
            shapes.append((shape, dtype))
        zeros = [torch.zeros(shape, dtype=_dtype(dtype), device="cpu") for shape, dtype in shapes]
        call: list[Any] = unflatten(description["call"], zeros) if "call" in description else [zeros, {}]
        return cls(tuple(call[0]), dict(call[1]), tuple(batched))


def require_known(model: nn.Module, example: ExampleInputs, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Refuse tensors that a model was not wrapped with: what is fitted with them would be exported without.

    Args:
        model: The model.
        example: What it was wrapped with; without a tensor where that is not known yet.
        args: Positional inputs of a batch.
        keywords: Keyword inputs of the batch.

    Raises:
        FitError: There are such tensors.

    Examples:
        >>> import torch
        >>> net, ones = torch.nn.MultiheadAttention(4, 1), torch.ones(3, 2, 4)
        >>> require_known(net, ExampleInputs.of_call(net, (ones,) * 3), (ones,) * 3, {"key_padding_mask": ones[..., 0]})
        Traceback (most recent call last):
        compoff.errors.FitError: a batch gives the model 'key_padding_mask', which it was not wrapped with: ...

    Source: this project.
    """
    if not example.tensors:
        return
    known = by_name(model, example.args, example.keywords)
    given = by_name(model, args, keywords)
    beyond = [name for name, value in given.items() if tensors_of(value) and not tensors_of(known.get(name))]
    if beyond:
        told = " and ".join(f"'{name}'" for name in beyond)
        raise FitError(
            f"a batch gives the model {told}, which it was not wrapped with: what is exported would have no such "
            "input, and answer as if it were left out. Wrap the model with it in example_input, or take it out of the "
            "batches"
        )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"there is no dtype {name!r}")
    return found
