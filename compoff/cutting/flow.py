"""What crosses a cut: operators and values of one run, and which values the part after a moment still needs.

A cut is a moment in the run. What was computed before it runs on the device, what is computed after it on the edge, and
what the second part reads of the first has to cross. Knows neither models nor graphs: `trace` and `cut` fill it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

__all__ = ["LIGHT_BYTES", "SIZED", "Flow", "Operator", "Value", "bytes_per_sample"]

_aten = torch.ops.aten

SIZED = frozenset(
    {
        _aten.zeros_like.default,
        _aten.ones_like.default,
        _aten.empty_like.default,
        _aten.full_like.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.new_empty.default,
        _aten.new_full.default,
    }
)
"""Operators that look at the shape of a tensor only: what they make does not depend on its values."""

LIGHT_BYTES = 64
"""A floating-point tensor of at most so many bytes a sample crosses as it is: no codec could make it smaller."""

_RECOMPUTED_SHARE = 0.01  # of the model's multiply-accumulates: what the edge may compute again to save bytes
_TOKEN_BYTES = 2  # what an element of an integer tensor is taken to cost, packed


@dataclass(frozen=True)
class Value:
    """What a tensor held at one moment.

    Args:
        number: Its place in the flow.
        shape: Its shape, the batch included; free sizes as text.
        dtype: Its dtype.
        made_by: Index of the operator that made it; -1 for an input or a constant.
        depends: Whether it depends on the values of the model's inputs.
        own: Whether its memory is its own: neither a view nor shared with an input or a constant.
        view_of: The value whose memory it looks at, if it is a view.
        device: Where it was; None where that is not known.
    """

    number: int
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    made_by: int
    depends: bool
    own: bool = True
    view_of: int | None = None
    device: torch.device | None = None


@dataclass(frozen=True)
class Operator:
    """One operator that ran.

    Args:
        index: How many ran before it.
        name: Its name.
        reads: Values that it reads.
        makes: Values that it makes.
        macs: Multiply-accumulates of the whole batch.
        shaped: Values whose axes the next two fields speak of: its data, not its weights.
        axes: For each axis of its first result, the axis of its data that it is; None where it is none.
        channels: Axis of its data that it takes for channels, if it takes one.
        makes_channels: Axis of its first result that holds channels, if it is known.
        repeats: Whether it gives the same again for the same arguments.
    """

    index: int
    name: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    macs: int = 0
    shaped: tuple[int, ...] = ()
    axes: tuple[int | None, ...] | None = None
    channels: int | None = None
    makes_channels: int | None = None
    repeats: bool = True

    @property
    def looks(self) -> bool:
        """Whether it hands a value to the program itself, which may then go another way."""
        return self.name in {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero"}


def bytes_per_sample(value: Value, *, packed: bool = False) -> float:
    """Size of one sample of a value.

    Args:
        value: The value, its batch first.
        packed: Whether to estimate what it takes on the wire: a mask an eighth, a token about two bytes.

    Returns:
        Bytes.

    Examples:
        >>> import torch
        >>> mask = Value(0, (2, 16), torch.bool, 3, True)
        >>> bytes_per_sample(mask), bytes_per_sample(mask, packed=True)
        (16.0, 2.0)
    """
    count = math.prod(size for size in value.shape[1:] if isinstance(size, int))
    width = float(value.dtype.itemsize)
    if packed and not value.dtype.is_floating_point:
        width = 1 / 8 if value.dtype is torch.bool else min(width, _TOKEN_BYTES)
    return count * width


@dataclass
class Flow:
    """Operators and values of one run.

    Args:
        operators: In the order in which they ran.
        values: All values, by number.
        inputs: Numbers of the model's inputs.
        outputs: Numbers of what it returned.
    """

    operators: list[Operator] = field(default_factory=list[Operator])
    values: list[Value] = field(default_factory=list[Value])
    inputs: list[int] = field(default_factory=list[int])
    outputs: list[int] = field(default_factory=list[int])
    _live: dict[tuple[int, ...], frozenset[int]] = field(default_factory=dict[tuple[int, ...], "frozenset[int]"])

    def macs(self, begin: int, end: int | None = None) -> int:
        """Multiply-accumulates of a stretch of the run.

        Args:
            begin: Index of its first operator.
            end: Index behind its last; None for all the rest.

        Returns:
            Their sum over the whole batch.
        """
        return sum(operator.macs for operator in self.operators[begin:end])

    def live(self) -> frozenset[int]:
        """Indices of the operators that the output depends on, or that the program looked at."""
        run = (len(self.operators), *self.outputs)
        if run not in self._live:  # asked for at every place where the run could be cut
            self._live = {run: self._found_live()}
        return self._live[run]

    def _found_live(self) -> frozenset[int]:
        found: set[int] = set()
        waiting = [self.values[number].made_by for number in self.outputs]
        waiting += [operator.index for operator in self.operators if operator.looks]
        while waiting:
            index = waiting.pop()
            if index >= 0 and index not in found:
                found.add(index)
                waiting += [self.values[number].made_by for number in self.operators[index].reads]
        return frozenset(found)

    def crossing(self, moment: int, known: set[int] | None = None) -> list[int]:
        """Values made before a moment and needed after it.

        Args:
            moment: Number of operators that ran before the cut.
            known: Values that the second part is given anyway.

        Returns:
            Their numbers, in the order in which they were made; nothing that does not depend on the inputs.

        Examples:
            >>> import torch
            >>> from compoff.cutting.watching import watch
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
            >>> flow = watch(net, (torch.zeros(2, 4),)).flow
            >>> [flow.values[number].shape for number in flow.crossing(moment=3)]
            [(2, 4)]
        """
        live, known = self.live(), known or set()
        read = {number for index in live if index >= moment for number in self.operators[index].reads}
        needed = (read | set(self.outputs)) - known
        return [
            value.number for value in self.values if value.number in needed and value.depends and value.made_by < moment
        ]

    def is_light(self, number: int) -> bool:
        """Whether a value crosses as it is: integers, masks, a few numbers."""
        value = self.values[number]
        return not value.dtype.is_floating_point or bytes_per_sample(value) <= LIGHT_BYTES

    def cheaper_inputs(self, number: int) -> set[int] | None:
        """Inputs that the edge had better be sent in place of a value, because it can compute the value from them.

        Args:
            number: A value that crosses.

        Returns:
            Numbers of inputs: integers, masks or a few numbers, together no longer than the value or a few bytes, from
            which it follows at no more than a hundredth of the model's cost. None where there are no such inputs.
        """
        inputs: set[int] = set()
        seen: set[int] = set()
        cost, waiting = 0, [number]
        while waiting:
            value = self.values[waiting.pop()]
            if value.number in seen or not value.depends:
                continue
            seen.add(value.number)
            if value.made_by < 0:
                if not self.is_light(value.number):
                    return None
                inputs.add(value.number)
                continue
            operator = self.operators[value.made_by]
            cost += operator.macs
            if not operator.repeats:
                return None
            waiting += operator.reads
        if cost > _RECOMPUTED_SHARE * self.macs(0):
            return None
        sent = sum(bytes_per_sample(self.values[one], packed=True) for one in inputs)
        return inputs if sent <= max(LIGHT_BYTES, bytes_per_sample(self.values[number], packed=True)) else None
