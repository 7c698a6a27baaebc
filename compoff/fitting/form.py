"""Whether a batch holds what the model was wrapped with. Knows no loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.errors import FitError
from compoff.signature import by_name
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from compoff.batch import Batch
    from compoff.wrapping import Wrapped

__all__ = ["missing", "names_of", "refusal", "require_samples"]


def names_of(wrapped: Wrapped) -> list[str]:
    """Names of the inputs that a model was wrapped with, as far as there are tensors in them.

    Args:
        wrapped: The model.

    Returns:
        The names, in the order of the model's signature; none where its shapes are not known yet.

    Examples:
        >>> import torch, compoff
        >>> names_of(compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)))
        ['input']
    """
    given = by_name(wrapped.base, wrapped.example.args, wrapped.example.keywords)
    return [name for name, value in given.items() if tensors_of(value)]


def missing(batch: Batch, wrapped: Wrapped) -> list[str]:
    """Names of inputs that the model was wrapped with and that a batch leaves out.

    Args:
        batch: The batch; what it gives as None is not left out.
        wrapped: The model.

    Returns:
        The names.
    """
    given = by_name(wrapped.base, batch.args, batch.kwargs)
    return [name for name in names_of(wrapped) if name not in given]


def require_samples(batch: Batch, wrapped: Wrapped) -> None:
    """Refuse a batch in which other inputs have a part for each sample than those that had when the model was wrapped.

    Args:
        batch: The batch.
        wrapped: The model.

    Raises:
        FitError: There is such an input.
    """
    example, flags = wrapped.example, iter(wrapped.example.batched)
    given = by_name(wrapped.base, batch.args, batch.kwargs)
    first, size = "", 0
    for name, value in by_name(wrapped.base, example.args, example.keywords).items():
        known = [(tensor, next(flags)) for tensor in tensors_of(value)]
        found = tensors_of(given.get(name))
        for (expected, batched), tensor in zip(known, found, strict=False) if len(known) == len(found) else ():
            shape, length = tuple(tensor.shape), len(tensor) if tensor.dim() else 1
            if batched and not first:
                first, size = name, length
            elif batched and length != size:
                raise FitError(
                    f"'{name}' of a batch has shape {shape}, and '{first}' is {size} long; the model was wrapped with "
                    "both of one length, which was taken for the number of samples. Give as many of each, or, where "
                    "one is the same for all samples, wrap the model with an example_input where their lengths differ"
                )
            elif not batched and len(expected.shape) == len(shape) and length == size > 1 == len(expected):
                raise FitError(
                    f"'{name}' of a batch has shape {shape}, one for each sample; the model was wrapped with one for "
                    f"all, {tuple(expected.shape)}. Give that, or wrap the model with one for each in example_input"
                )


def refusal(absent: list[str], wrapped: Wrapped, why: str) -> FitError:
    """Why a batch is not taken as it is.

    Args:
        absent: What `missing` found.
        wrapped: The model.
        why: What was taken for something else.

    Returns:
        The error to raise, with the forms in which the input is taken.
    """
    example, names = wrapped.example, names_of(wrapped)
    given = by_name(wrapped.base, example.args, {})
    count = 1 + max((place for place, name in enumerate(given) if name in names), default=-1)
    by_place = [name if name in names else f"{value!r:.20}" for name, value in given.items()][:count]
    forms: list[str] = []
    if not example.keywords:
        forms.append(f"(({', '.join(by_place)}), label)")
    if not any("[" in name for name in names):
        forms.append("a dict {" + ", ".join(f"'{name}': …" for name in names) + "}, None for what is left out")
    told = " and ".join(f"'{name}'" for name in absent)
    return FitError(f"the model was wrapped with {told}, which a batch does not give: {why}. Give {' or '.join(forms)}")
