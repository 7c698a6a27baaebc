"""Find the place at which a tensor of a watched run can be caught the next time.

A tensor is an input of the model, is returned by a module or by a function, or enters a module. Does not know which
tensors are wanted (`moment`, `sites`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from compoff.hooks import Tap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compoff.cutting.trace import ModuleCall, Trace

__all__ = ["find_tap", "tap_of"]


def find_tap(trace: Trace, number: int, before: int, *, functions: bool = True) -> tuple[Tap, int] | None:
    """The first place at which a value can be caught.

    Args:
        trace: The run.
        number: The value.
        before: Number of operators that may have run by then.
        functions: Whether the result of a function will do where no module returned the value.

    Returns:
        The place, and how many operators had run by then; None where there is no such place.

    Examples:
        >>> import torch
        >>> from compoff.cutting.watching import watch
        >>> trace = watch(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), (torch.zeros(2, 4),))
        >>> str(find_tap(trace, trace.modules[2].entered[0], before=9)[0])
        'output of 0'
    """
    if number in trace.flow.inputs:
        leaf = trace.flow.inputs.index(number)
        return Tap("input", leaf, place=trace.given_at[leaf]), 0
    returned = [call for call in trace.modules if number in call.returned and call.path and call.end <= before]
    first = min(returned, key=lambda call: call.order, default=None)
    if first is not None:
        return tap_of(trace, first, "output", first.returned.index(number)), first.end
    if not functions:
        return None
    for call in trace.functions:
        if number in call.returned and call.end <= before:
            scope, leaf = trace.modules[call.scope], call.returned.index(number)
            tap = Tap(
                "function",
                leaf,
                scope.path,
                scope.number,
                _is_repeated(trace, scope),
                call.name,
                call.number,
                call.returned_at[leaf],
            )
            return tap, call.end
    return None


def tap_of(trace: Trace, call: ModuleCall, kind: Literal["output", "entry"], leaf: int) -> Tap:
    """The place at one end of a module call.

    Args:
        trace: The run.
        call: The call.
        kind: Which end.
        leaf: Which of the tensors there.

    Returns:
        The place.
    """
    place = (call.returned_at if kind == "output" else call.entered_at)[leaf]
    return Tap(kind, leaf, call.path, call.number, _is_repeated(trace, call), place=place)


def _is_repeated(trace: Trace, call: ModuleCall) -> bool:
    others: Iterator[ModuleCall] = (other for other in trace.modules if other.path == call.path)
    return any(other.number != call.number for other in others)
