"""A tensor that crosses: its shape, its axes, and where it is caught.

Reads batch, channels and space off a watched run. Knows no codec but its layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from compoff.codec.layout import Layout
from compoff.coding.side import DTYPES
from compoff.cutting.axes import find_channel_axis
from compoff.errors import SplitError

if TYPE_CHECKING:
    from compoff.cutting.flow import Value
    from compoff.cutting.trace import Trace
    from compoff.hooks import Tap

__all__ = ["Feature", "feature_of", "side_of"]

_MOST_LEADING = 8  # class, distillation and register tokens before those of the image


@dataclass(frozen=True)
class Feature:
    """One tensor that crosses.

    Args:
        tap: Where it is caught.
        shape: Its shape without the batch axis, as the model has it; the whole shape where it has no batch axis.
        dtype: Its dtype.
        layout: Its axes; None for a tensor that crosses as it is.
        own: Whether its memory is its own, so that it may be written to.
        batched: Whether it has a batch axis.
        device: Where it was; None where that is not known.
    """

    tap: Tap
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: Layout | None = None
    own: bool = True
    batched: bool = True
    device: torch.device | None = None

    @property
    def raw_bytes(self) -> int:
        """Size of one sample as it is, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def packed_shape(self) -> tuple[int, ...]:
        """Shape of one sample in the codec's layout."""
        return self.layout.packed_shape(self.shape) if self.layout else self.shape


def feature_of(trace: Trace, number: int, tap: Tap, path: str) -> Feature:
    """Describe a value that gets a bottleneck.

    Args:
        trace: The run.
        number: The value.
        tap: Where it is caught.
        path: The split point, for messages.

    Returns:
        The feature.

    Raises:
        SplitError: It has no batch axis, or too few or too many axes.
    """
    value = trace.flow.values[number]
    batch = trace.batch_axis(number)
    if batch is None or not 2 <= len(value.shape) <= 5 or 0 in value.shape:
        raise SplitError(
            f"a tensor that crosses at '{path}' ({tap}) has shape {value.shape}; expected a batch of {trace.batch} "
            "features with one to four more axes, none of them empty: choose a split point where the batch is still as "
            f"it came in{_other_batches(trace)}"
        )
    shape = _without(value.shape, batch)
    return Feature(tap, shape, value.dtype, _layout(trace, value, batch), value.own, device=value.device)


def _other_batches(trace: Trace) -> str:
    """A word on inputs of another length than the first, which is taken for the batch."""
    shapes = [trace.flow.values[number].shape for number in trace.flow.inputs]
    if len({shape[0] for shape in shapes if shape}) < 2:
        return ""
    return (
        f". The batch is the first axis of the model's first input; its inputs are {', '.join(map(str, shapes))}: if "
        "the first of them has no batch axis, wrap the model in a module that takes one that has before it"
    )


def side_of(trace: Trace, number: int, tap: Tap) -> Feature:
    """Describe a value that crosses as it is.

    Args:
        trace: The run.
        number: The value.
        tap: Where it is caught.

    Returns:
        The feature.

    Raises:
        SplitError: The wire does not know such values.
    """
    value = trace.flow.values[number]
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        raise SplitError(
            f"a tensor of {kind} and shape {value.shape[1:]} ({tap}) would cross as it is, but the wire knows only "
            f"{', '.join(DTYPES)}: choose another split point, convert the model to one of them, or, where it is a "
            'skip, let it have a bottleneck of its own with skips="encode"'
        )
    batched = trace.batch_axis(number) == 0
    shape = _without(value.shape, 0) if batched else _without(value.shape, None)
    return Feature(tap, shape, value.dtype, None, value.own, batched)


def _without(shape: tuple[int | str, ...], axis: int | None) -> tuple[int, ...]:
    return tuple(int(size) for place, size in enumerate(shape) if place != axis)


def _layout(trace: Trace, value: Value, batch: int) -> Layout:
    """Batch, channels, space, from what makes the value and what reads it."""
    dims = len(value.shape)
    channels = find_channel_axis(trace.flow, value.number)
    if channels is None or channels == batch:
        channels = 1 if batch == 0 else 2
    if dims == 2:
        return Layout((batch, 1 - batch))
    order = (batch, channels, *(axis for axis in range(dims) if axis not in (batch, channels)))
    if dims == 3:
        grid, leading = _grid(trace, int(value.shape[order[2]]))
        return Layout(order, grid, leading)
    return Layout(order)


def _grid(trace: Trace, tokens: int) -> tuple[tuple[int, ...], int]:
    """Height and width of the image that a sequence of tokens was cut from, and how many tokens stand before them."""
    images = [trace.flow.values[number].shape for number in trace.flow.inputs]
    for height, width in [(int(shape[-2]), int(shape[-1])) for shape in images if len(shape) == 4]:
        for leading in range(min(_MOST_LEADING + 1, tokens - 1)):
            rows = math.sqrt((tokens - leading) * height / width)
            side = round(rows)
            if side > 1 and side * round(side * width / height) == tokens - leading and height % side == 0:
                columns = (tokens - leading) // side
                if width % columns == 0 and leading <= columns:
                    return (side, columns), leading
    return (), 0
