"""What one run of the model showed: every operator, every call of a module, and which tensor is which.

What crosses a cut is found in this record by `flow`; where the crossing tensors can be caught, by `sites`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from compoff.cutting.flow import Flow
from compoff.errors import CompoffError

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.cutting.flow import Operator
    from compoff.trees import Place

__all__ = ["INPUT", "FunctionCall", "ModuleCall", "Trace"]

INPUT = "input"
"""Name of the split point at the model's own input."""


@dataclass
class ModuleCall:
    """One call of a module.

    Args:
        path: The module's path; empty for the model itself.
        number: How many calls of the same module came before it.
        begin: Number of operators that had run when it began.
        scope: Index of the call that it was made in; -1 for the model's own.
        entered: Values among its arguments, in order.
        end: Number of operators that had run when it returned.
        order: How many calls of modules returned before it did.
        returned: Values that it returned, in order.
        entered_at: Where each value stands among the arguments.
        returned_at: Where each value stands in what it returned.
        closed: Class of the first argument in which no tensor is looked for; None where there is none.
    """

    path: str
    number: int
    begin: int
    scope: int
    entered: tuple[int, ...]
    end: int = -1
    order: int = -1
    returned: tuple[int, ...] = ()
    entered_at: tuple[Place, ...] = ()
    returned_at: tuple[Place, ...] = ()
    closed: str | None = None


@dataclass(frozen=True)
class FunctionCall:
    """One call of a function of torch that returned tensors.

    Args:
        scope: Index of the module call that it was made in.
        name: The function's name.
        number: How many calls of the same name came before it in that module call and in those inside it.
        end: Number of operators that had run when it returned.
        returned: Values that it returned, in order.
        returned_at: Where each value stands in what it returned.
    """

    scope: int
    name: str
    number: int
    end: int
    returned: tuple[int, ...]
    returned_at: tuple[Place, ...] = ()


@dataclass
class Trace:
    """What one run showed.

    Args:
        flow: Operators and values.
        modules: Calls of modules, in the order in which they began.
        functions: Calls of functions, in order.
        batch: Number of samples in the run.
        given_at: Where each of the model's inputs stands in the call, in the order of its signature.
        again: Runs the model once more, with another number of samples.
    """

    flow: Flow = field(default_factory=Flow)
    modules: list[ModuleCall] = field(default_factory=list[ModuleCall])
    functions: list[FunctionCall] = field(default_factory=list[FunctionCall])
    batch: int = 0
    given_at: tuple[Place, ...] = ()
    again: Callable[[], Trace] | None = None

    def batch_axis(self, number: int) -> int | None:
        """The axis of a value that is the batch: its first or its second.

        Several may be as long as the batch: a second run tells which of them changes with the number of samples.

        Args:
            number: The value.

        Returns:
            The axis; None where there is none.
        """
        sizes = self.flow.values[number].shape[:2]
        axes = [axis for axis, size in enumerate(sizes) if size == self.batch]
        inputs = [self.flow.values[one].shape[1:] for one in self.flow.inputs]
        if not axes or (axes == [0] and not any(self.batch in rest for rest in inputs)) or self._other is None:
            return next(iter(axes), None)
        moved = self._other.flow.values[number].shape
        return next((axis for axis in axes if moved[axis] == self._other.batch), None)

    @cached_property
    def _other(self) -> Trace | None:
        """The second run; None where the model refuses it, or goes another way."""
        try:
            other = self.again() if self.again is not None else None
        except CompoffError:
            return None
        forms = [
            [(len(value.shape), value.dtype, value.made_by) for value in run.flow.values]
            for run in (self, other)
            if run is not None
        ]
        return other if forms[0] == forms[-1] else None

    def calls_of(self, path: str) -> list[ModuleCall]:
        """Calls of one module, in order."""
        return [call for call in self.modules if call.path == path]

    def inside(self, call: ModuleCall, operator: Operator) -> bool:
        """Whether an operator ran inside a module call."""
        return call.begin <= operator.index < call.end
