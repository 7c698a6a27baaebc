"""Whether a batch holds what the model was wrapped with. Knows no loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.errors import FitError
from compoff.signature import by_name
from compoff.trees import tensors_of

if TYPE_CHECKING:
    from compoff.batch import Batch
    from compoff.wrapping import Wrapped

__all__ = ["missing", "names_of", "refusal"]


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
