"""What is said of a cut that cannot be made: what crosses, how many bytes each, and what to choose instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.cutting.flow import bytes_per_sample
from compoff.cutting.points import points_of
from compoff.cutting.taps import find_tap

if TYPE_CHECKING:
    from compoff.cutting.moment import Cut
    from compoff.cutting.trace import ModuleCall, Trace

__all__ = ["crossing_told", "nearest_clean"]

_TOLD = 6  # tensors named one by one


def crossing_told(trace: Trace, cut: Cut, path: str) -> str:
    """What crosses at a cut, in one sentence.

    Args:
        trace: The run.
        cut: The cut.
        path: The split point.

    Returns:
        The sentence.

    Examples:
        >>> import torch
        >>> from compoff.cutting.moment import cut_at_call
        >>> from compoff.cutting.watching import watch
        >>> trace = watch(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()), (torch.zeros(2, 64),))
        >>> crossing_told(trace, cut_at_call(trace, trace.modules[2], "1"), "1")
        "1 tensor crosses at '1': the feature (64,), 256 bytes a sample."
    """
    numbers = [cut.main, *cut.skips, *cut.sides]
    told = [_told(trace, cut, number) for number in numbers[:_TOLD]]
    if len(numbers) > _TOLD:
        told.append(f"{len(numbers) - _TOLD} more")
    count = "1 tensor crosses" if len(numbers) == 1 else f"{len(numbers)} tensors cross"
    return f"{count} at '{path}': {'; '.join(told)}."


def _told(trace: Trace, cut: Cut, number: int) -> str:
    """One tensor in words."""
    value = trace.flow.values[number]
    size = f"{bytes_per_sample(value):,.0f} bytes a sample"
    if number == cut.main:
        return f"the feature {value.shape[1:]}, {size}"
    found = find_tap(trace, number, cut.moment)
    origin = f" ({found[0]})" if found else ""
    kind = "skip" if number in cut.skips else f"{str(value.dtype).removeprefix('torch.')} side tensor"
    return f"{kind} {value.shape[1:]}{origin}, {size}"


def nearest_clean(trace: Trace, call: ModuleCall) -> str:
    """The nearest split points before and after a call at which one feature crosses.

    Args:
        trace: The run.
        call: The call.

    Returns:
        Words that follow "choose".
    """
    here = trace.modules.index(call)
    named = {f"{one.path}#{one.number}": index for index, one in enumerate(trace.modules)}
    points = [point.path for point in points_of(trace)]
    places = [(named[path if path in named else f"{path}#0"], path) for path in points]
    before = max((place for place in places if place[0] < here), default=None)
    after = min((place for place in places if place[0] > here), default=None)
    names = [f"'{place[1]}'" for place in (before, after) if place]
    return f"{' or '.join(names)}, which one tensor enters" if names else '"input"'
