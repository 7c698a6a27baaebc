"""The moment of a cut, and what crosses then: from one watched run and the module call at which the split point lies.

Knows neither names of split points (`sites`) nor how a crossing tensor is laid out (`features`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compoff.cutting.flow import bytes_per_sample
from compoff.cutting.taps import find_tap, tap_of
from compoff.errors import SplitError
from compoff.trees import KNOWN_CONTAINERS

if TYPE_CHECKING:
    from compoff.cutting.trace import ModuleCall, Trace
    from compoff.hooks import Tap

__all__ = ["Cut", "cut_at_call"]


@dataclass(frozen=True)
class Cut:
    """What crosses at one moment of a run, by numbers of values.

    Args:
        main: The value that enters the split point.
        tap: Where it is caught.
        moment: Number of operators that had run by then.
        skips: Other floating-point values that cross.
        sides: Values that cross as they are: integers, masks, a few numbers.
    """

    main: int
    tap: Tap
    moment: int
    skips: tuple[int, ...]
    sides: tuple[int, ...]


def cut_at_call(trace: Trace, call: ModuleCall, path: str) -> Cut:
    """What crosses where a module call begins.

    Args:
        trace: The run.
        call: The call.
        path: Name of the split point, for messages.

    Returns:
        What crosses.

    Raises:
        SplitError: No floating-point tensor enters.
    """
    main = _main(trace, call, path)
    tap, moment = _tap_of_main(trace, call, main)
    skips: list[int] = []
    sides: dict[int, None] = {}
    for number in trace.flow.crossing(moment, {main}):
        inputs = trace.flow.cheaper_inputs(number)
        if inputs is not None:
            sides.update(dict.fromkeys(sorted(inputs)))
        elif trace.flow.is_light(number):
            sides[number] = None
        else:
            skips.append(number)
    return Cut(main, tap, moment, _without_views(trace, skips), tuple(sides))


def _main(trace: Trace, call: ModuleCall, path: str) -> int:
    """The value that a call goes on with: of the features that enter, the one that was made last.

    Where all of them follow from light inputs, it is the largest: a mask is made from such inputs, too, and often last.
    """
    flow = trace.flow
    entered = list(dict.fromkeys(call.entered if call.path else flow.inputs))
    floats = [number for number in entered if flow.values[number].dtype.is_floating_point]
    features = [number for number in floats if flow.values[number].depends]
    if not features:
        raise SplitError(_nothing_enters(trace, call, entered, path))
    real = [number for number in features if not flow.is_light(number) and flow.cheaper_inputs(number) is None]
    if real:
        return max(real, key=lambda number: flow.values[number].made_by)
    return max(features, key=lambda number: (bytes_per_sample(flow.values[number]), flow.values[number].made_by))


def _nothing_enters(trace: Trace, call: ModuleCall, entered: list[int], path: str) -> str:
    """Why no feature enters a split point."""
    if not entered and call.closed:
        return (
            f"what enters '{path}' is an object of class {call.closed}; tensors are looked for in {KNOWN_CONTAINERS}. "
            "Choose a block that a tensor enters, such as one inside it, or hand it one of these"
        )
    if not entered:
        return (
            f"no tensor enters '{path}'; choose a block start that a floating-point tensor enters, such as the block "
            "around it"
        )
    values = [trace.flow.values[number] for number in entered]
    if all(not value.dtype.is_floating_point for value in values):
        kinds = ", ".join(sorted({str(value.dtype) for value in values}))
        if any(value.dtype.is_complex for value in values):
            meant, where = "no symbols stand for complex numbers", "before or after it"
        else:
            meant, where = "token ids or indices, not a feature", "after the embedding"
        return (
            f"what enters '{path}' is {kinds} ({meant}); choose a split point {where}, where a floating-point tensor "
            "enters"
        )
    return (
        f"what enters '{path}' does not depend on the model's inputs, so nothing has to be sent there; choose a block "
        "that works on the inputs"
    )


def _tap_of_main(trace: Trace, call: ModuleCall, main: int) -> tuple[Tap, int]:
    """Where the main value is caught: as early as can be, so that as little as can be crosses beside it."""
    found = find_tap(trace, main, call.begin, functions=False)
    if found is not None:
        return found
    if trace.flow.values[main].own:  # it is decoded in place, for whoever holds it
        return tap_of(trace, call, "entry", call.entered.index(main)), call.begin
    live = trace.flow.live()
    elsewhere = main in trace.flow.outputs or any(
        main in operator.reads and operator.index >= call.begin and not trace.inside(call, operator)
        for operator in trace.flow.operators
        if operator.index in live
    )
    at_function = find_tap(trace, main, call.begin) if elsewhere else None
    return at_function or (tap_of(trace, call, "entry", call.entered.index(main)), call.begin)


def _without_views(trace: Trace, numbers: list[int]) -> tuple[int, ...]:
    """Leave out values that only look at the memory of another one: they change together with it."""
    chosen: list[int] = []
    for number in numbers:
        base = trace.flow.values[number].view_of
        while base is not None and not (base in numbers and trace.flow.values[base].own):
            base = trace.flow.values[base].view_of
        if base is None:
            chosen.append(number)
    return tuple(chosen)
