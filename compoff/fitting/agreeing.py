"""What counts as an answer that is kept: the same class, or what a function of the user's makes of two answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from compoff.checks import NEARLY
from compoff.errors import FitError

__all__ = ["Agreement", "require_agreement", "require_whole", "shares_of"]

Agreement: TypeAlias = Callable[[Any, Any], Tensor]
"""Student's and model's answer for a batch, each as the model returns it, to what is kept of each sample's, 0 to 1."""


def require_agreement(agreement: Any) -> None:
    """Refuse what cannot be called.

    Args:
        agreement: What a user gave.

    Raises:
        FitError: It is neither a function nor None.
    """
    if agreement is not None and not callable(agreement):
        raise FitError(
            f"agreement is {agreement!r:.80}; expected a function of two answers, the student's and the model's, that "
            "gives the share of each sample's that is kept"
        )


def shares_of(agreement: Agreement, student: Any, teacher: Any, samples: int) -> Tensor:
    """What is kept of each sample's answer, once it is known to be a share.

    Args:
        agreement: The user's function.
        student: The student's answer for a batch.
        teacher: The model's.
        samples: Number of samples in the batch.

    Returns:
        A share each, in float64 on the CPU.

    Raises:
        FitError: The function gives something else.

    Examples:
        >>> import torch
        >>> same_signs = lambda ours, theirs: ((ours > 0) == (theirs > 0)).float().mean(1)
        >>> shares_of(same_signs, torch.ones(2, 4), torch.tensor([[1.0] * 4, [1.0, -1.0, 1.0, -1.0]]), 2).tolist()
        [1.0, 0.5]
    """
    found: Any = agreement(student, teacher)
    expected = f"expected a tensor of {samples} shares from 0 to 1, one a sample"
    if not isinstance(found, Tensor) or found.is_complex() or found.shape != (samples,):
        given = f"{tuple(found.shape)}" if isinstance(found, Tensor) else f"{found!r:.80}"
        raise FitError(f"agreement gives {given} for a batch of {samples}; {expected}")
    shares = found.detach().cpu().double()
    wrong = ~((shares >= -NEARLY) & (shares <= 1 + NEARLY))  # so that NaN is wrong, too
    if bool(wrong.any()):
        raise FitError(f"agreement gives {float(shares[wrong][0]):g} for a sample; {expected}")
    return shares.clamp(0, 1)


def require_whole(agreement: Agreement, answer: Any, samples: int) -> None:
    """Refuse a function that finds an answer to differ from itself, as a loss or a distance would.

    Args:
        agreement: The user's function.
        answer: Any answer of the model.
        samples: Number of samples in it.

    Raises:
        FitError: It does, or gives something else than shares.
    """
    shares = shares_of(agreement, answer, answer, samples)
    if float(shares.min()) < 1 - NEARLY:
        raise FitError(
            f"agreement gives {float(shares.min()):g} for an answer beside itself; expected 1, since nothing "
            "differs (not a loss or a distance; and 1 where there is nothing to compare)"
        )
