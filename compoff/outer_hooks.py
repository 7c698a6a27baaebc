"""Hooks on the object that `compoff.wrap` returned: they may look, but not change what passes.

A fit, its figures and an export run the model inside, without that object: what such a hook changes would be in none of
them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from compoff.trees import tensors_of

if TYPE_CHECKING:
    from compoff.errors import CompoffError
    from compoff.wrapped import Wrapped

__all__ = ["require_onlookers"]


def require_onlookers(wrapped: Wrapped, kind: type[CompoffError]) -> None:
    """Refuse forward hooks on a wrapped model itself that change what goes in or comes out.

    Args:
        wrapped: The wrapped model, its shapes known.
        kind: Class of the error.

    Raises:
        CompoffError: One of the hooks gives other inputs or another output, or writes into them.

    Examples:
        >>> import compoff
        >>> model = compoff.wrap(torch.nn.Linear(3, 1), "input", example_input=torch.zeros(2, 3))
        >>> _ = model.register_forward_pre_hook(lambda module, args: (args[0] / 255,))
        >>> require_onlookers(model, compoff.SplitError)
        Traceback (most recent call last):
        compoff.errors.SplitError: a hook on what compoff.wrap returned changes its input, but ...

    Source: this project.
    """
    if not (wrapped._forward_hooks or wrapped._forward_pre_hooks):  # pyright: ignore[reportPrivateUsage] - no other way to see them
        return
    example, entered, left = wrapped.example_inputs(), list[Any](), list[Any]()

    def enter(module: torch.nn.Module, args: Any, keywords: Any) -> None:
        entered.extend(_marks((args, keywords)))

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        left.append((output, _marks(output)))

    handles = [
        wrapped.register_forward_pre_hook(enter, with_kwargs=True),  # behind the others
        wrapped.register_forward_hook(leave, prepend=True),
    ]
    given, output = _marks((example.args, example.keywords)), None
    try:
        with torch.no_grad(), contextlib.suppress(Exception):  # what fails here is refused where it is run in earnest
            output = wrapped(*example.args, **example.keywords)
    finally:
        for handle in handles:
            handle.remove()
    same_input = not entered or entered == given
    if same_input and (output is None or (output is left[0][0] and _marks(output) == left[0][1])):
        return
    what = "output" if same_input else "input"
    raise kind(
        f"a hook on what compoff.wrap returned changes its {what}, but a fit and an export run the model inside, where "
        "nothing of that happens; register it on wrapped.base before the fit, or make it a part of the model"
    )


def _marks(values: Any) -> list[tuple[int, int]]:
    """Which tensors there are, and how often each has been written to."""
    return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in tensors_of(values)]  # pyright: ignore[reportPrivateUsage]
