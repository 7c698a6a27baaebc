"""A model's output as its tensors alone, and whether that is all that a call of the model gives."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.batch import Batch
from compoff.cutting.proof import answers_alike
from compoff.cutting.watching import frozen
from compoff.errors import SplitError
from compoff.structure import flatten

if TYPE_CHECKING:
    from collections.abc import Generator

    from compoff.cutting.inputs import ExampleInputs

__all__ = ["flat_output", "require_plain_call"]


@contextlib.contextmanager
def flat_output(base: nn.Module) -> Generator[list[dict[str, Any]]]:
    """Let a model return its tensors only, in a tuple, while the block runs.

    Args:
        base: The model.

    Yields:
        A list that gets the description of what the model returned, one entry a pass.

    Examples:
        >>> import torch
        >>> net = torch.nn.LSTM(4, 3)
        >>> with flat_output(net) as structures:
        ...     len(net(torch.zeros(5, 2, 4)))
        3
    """
    structures: list[dict[str, Any]] = []

    def flat(module: nn.Module, args: Any, output: Any) -> tuple[Tensor, ...]:
        del module, args
        leaves, structure = flatten(output, _is_tensor)
        structures.append(structure)
        return tuple(leaves)

    handle = base.register_forward_hook(flat)
    try:
        yield structures
    finally:
        handle.remove()


def _is_tensor(value: Any) -> bool:
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise SplitError("the model returns a number that depends on the batch; return a tensor, or leave it out")
    return isinstance(value, Tensor)


class _Flat(nn.Module):
    """A model that returns its tensors only."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.structure: dict[str, Any] = {}

    def forward(self, *args: Any, **keywords: Any) -> Any:
        with flat_output(self.base) as structures:
            leaves = self.base(*args, **keywords)
        self.structure = structures[-1]
        return leaves


def require_plain_call(base: nn.Module, example: ExampleInputs) -> None:
    """Refuse a class that goes on after forward: no program would hold what its ``__call__`` makes of the output.

    Args:
        base: The model.
        example: What to call it with.

    Raises:
        SplitError: The answer of a call is another than what `forward` returns.
    """
    if type(base).__call__ is nn.Module.__call__:
        return
    given, flat, name = Batch(example.args, example.keywords), _Flat(base), type(base).__name__
    with frozen(base):
        try:
            structure = flatten(given.call(base), _is_tensor)[1]
        except Exception:  # as it is, the model refuses zeros, which is said where it is exported
            return
        with contextlib.suppress(Exception):
            given.call(flat)
        if structure == flat.structure and answers_alike(base, flat, example):
            return
    raise SplitError(
        f"{name}.__call__ changes what {name}.forward returns, and only what lies in forward becomes a head and a "
        "tail; move it there, or wrap a module whose forward calls this one"
    )
