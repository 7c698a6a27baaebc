"""Which axis of a feature is channels: read off the operators that make it and read it.

A convolution takes channels second, a LayerNorm or a linear layer last; between a feature and the first operator that
says so, axes are followed through permutations and additions. Knows ATen's operators, not models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.cutting.flow import Flow

__all__ = ["axis_map", "channel_axis", "data_arguments", "find_channel_axis", "output_channel_axis"]

_aten = torch.ops.aten

_SECOND = {
    _aten.convolution,
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit_no_training,
    _aten._native_batch_norm_legit,
    _aten.cudnn_batch_norm,
    _aten.native_group_norm,
    _aten._prelu_kernel,
}
_BEFORE_SPACE = {  # number of axes of space behind the channels
    _aten.max_pool2d_with_indices: 2,
    _aten.avg_pool2d: 2,
    _aten._adaptive_avg_pool2d: 2,
    _aten.adaptive_max_pool2d: 2,
    _aten.upsample_nearest2d: 2,
    _aten.upsample_bilinear2d: 2,
    _aten.upsample_bicubic2d: 2,
    _aten.pixel_shuffle: 2,
    _aten.upsample_nearest1d: 1,
    _aten.avg_pool1d: 1,
}
_LAST = {
    _aten.native_layer_norm,
    _aten._fused_rms_norm,
    _aten.mm,
    _aten.linear,
    _aten.mkldnn_rnn_layer,
    _aten.addmm,
}
_WEIGHTED = _SECOND | _LAST
_PERMUTING = {_aten.permute, _aten.transpose, _aten.t}
_RESHAPING = {_aten.view, _aten._unsafe_view, _aten.reshape, _aten.unsqueeze, _aten.squeeze, _aten.flatten}
_PASSED = 64  # readers looked at before the search for a channel axis ends


def data_arguments(operator: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> tuple[int, ...]:
    """Places of the tensors that an operator works on, as against weights and indices.

    Args:
        operator: The ATen operator.
        given: Its tensor arguments.
        made: The tensors that it returned.

    Returns:
        Places in `given`.

    Examples:
        >>> import torch
        >>> bias, x, weight = torch.zeros(5), torch.zeros(2, 3), torch.zeros(3, 5)
        >>> data_arguments(torch.ops.aten.addmm.default, [bias, x, weight], [torch.zeros(2, 5)])
        (1,)
    """
    if not given:
        return ()
    packet = getattr(operator, "_overloadpacket", None)
    if packet is _aten.addmm:
        return (1,)
    if made and packet not in _WEIGHTED:
        alike = tuple(place for place, tensor in enumerate(given) if tensor.shape == made[0].shape)
        if alike:
            return alike
    return (0,)


def channel_axis(operator: Any, given: Sequence[Tensor]) -> int | None:
    """Axis of its data that an operator takes for channels.

    Args:
        operator: The ATen operator.
        given: Its tensor arguments.

    Returns:
        The axis; None where the operator does not say.

    Examples:
        >>> import torch
        >>> channel_axis(torch.ops.aten.native_layer_norm.default, [torch.zeros(2, 7, 7, 32)])
        3
    """
    packet = getattr(operator, "_overloadpacket", None)
    first = given[1] if packet is _aten.addmm and len(given) > 1 else next(iter(given), None)
    if first is None or first.dim() < 2:
        return None
    if packet in _SECOND:
        return 1
    if packet in _BEFORE_SPACE:
        return first.dim() - 1 - _BEFORE_SPACE[packet]
    if packet in _LAST:
        return first.dim() - 1
    return None


def output_channel_axis(operator: Any, output: Any) -> int | None:
    """Axis of an operator's first result that holds channels.

    Args:
        operator: The ATen operator.
        output: What it returned.

    Returns:
        The axis; None where the operator does not say.
    """
    first = _first(output)
    if not isinstance(first, Tensor):
        return None
    if getattr(operator, "_overloadpacket", None) in {_aten.addmm, _aten.embedding}:
        return first.dim() - 1
    return channel_axis(operator, [first])


def axis_map(operator: Any, given: Sequence[Tensor], args: Sequence[Any], output: Any) -> tuple[int | None, ...] | None:
    """Where each axis of an operator's result comes from.

    Args:
        operator: The ATen operator.
        given: Its tensor arguments.
        args: All its positional arguments.
        output: What it returned.

    Returns:
        For each axis of the result, the axis of the operator's data; None where nothing can be said.

    Examples:
        >>> import torch
        >>> x = torch.zeros(2, 3, 4)
        >>> axis_map(torch.ops.aten.transpose.int, [x], (x, 1, 2), x.transpose(1, 2))
        (0, 2, 1)
        >>> axis_map(torch.ops.aten.view.default, [x], (x, [6, 4]), x.view(6, 4))
        (None, 2)
    """
    result = _first(output)
    if not given or not isinstance(result, Tensor):
        return None
    packet = getattr(operator, "_overloadpacket", None)
    if packet in _PERMUTING:
        return _permuted(packet, given[0].dim(), args[1:])
    if packet in _RESHAPING:
        return _reshaped(tuple(given[0].shape), tuple(result.shape))
    if given[data_arguments(operator, given, [result])[0]].dim() == result.dim():
        return tuple(range(result.dim()))  # pointwise, a slice, a copy, a product: axes stay where they are
    return None


def _first(output: Any) -> Any:
    """The first of several results, or the only one."""
    several: Sequence[Any] = cast("Sequence[Any]", output) if isinstance(output, (tuple, list)) else ()
    return several[0] if several else cast("Any", output)


def _permuted(packet: Any, dims: int, rest: Sequence[Any]) -> tuple[int, ...]:
    if packet is _aten.permute:
        return tuple(axis % dims for axis in rest[0])
    order = list(range(dims))
    one, other = (rest[0] % dims, rest[1] % dims) if packet is _aten.transpose else (0, dims - 1)
    order[one], order[other] = order[other], order[one]
    return tuple(order)


def _reshaped(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int | None, ...]:
    """Axes that a reshape leaves alone: equal sizes counted from the front, then from the back."""
    found: list[int | None] = [None] * len(after)
    front = 0
    while front < min(len(before), len(after)) and before[front] == after[front]:
        found[front] = front
        front += 1
    back = 1
    while back <= min(len(before), len(after)) - front and before[-back] == after[-back]:
        found[-back] = len(before) - back
        back += 1
    return tuple(found)


def find_channel_axis(flow: Flow, number: int) -> int | None:
    """The axis of a value that its readers, or else its makers, take for channels.

    Args:
        flow: The run.
        number: The value.

    Returns:
        The axis; None where nobody says.

    Examples:
        >>> import torch
        >>> from compoff.cutting.watching import watch
        >>> trace = watch(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.LayerNorm(8)), (torch.zeros(2, 5, 8),))
        >>> find_channel_axis(trace.flow, trace.modules[2].entered[0])
        2
    """
    found = _from_readers(flow, number)
    return found if found is not None else _from_makers(flow, number)


def _from_readers(flow: Flow, number: int) -> int | None:
    """Follow a value forward, breadth first."""
    start = max(flow.values[number].made_by, 0)
    places: dict[int, tuple[int | None, ...]] = {number: tuple(range(len(flow.values[number].shape)))}
    passed = 0
    for operator in flow.operators[start:]:
        source = next((value for value in operator.shaped if value in places), None)
        if source is None:
            continue
        origin = places[source]
        if operator.channels is not None and operator.channels < len(origin):
            axis = origin[operator.channels]
            if axis is not None:
                return axis
        if operator.axes is not None and operator.makes:
            moved = tuple(origin[axis] if axis is not None and axis < len(origin) else None for axis in operator.axes)
            places[operator.makes[0]] = moved
        passed += 1
        if passed == _PASSED:
            break
    return None


def _from_makers(flow: Flow, number: int) -> int | None:
    """Follow a value back along the data of each operator."""
    place: list[int | None] = list(range(len(flow.values[number].shape)))  # axis of the value that each axis here is
    for _ in range(_PASSED):
        index = flow.values[number].made_by
        if index < 0:
            return None
        operator = flow.operators[index]
        if operator.makes_channels is not None and operator.makes_channels < len(place):
            return place[operator.makes_channels]
        source = next((value for value in operator.shaped if flow.values[value].depends), None)
        if operator.axes is None or source is None or len(operator.axes) != len(place):
            return None
        number = source
        before: list[int | None] = [None] * len(flow.values[number].shape)
        for axis, source in enumerate(operator.axes):
            if source is not None:
                before[source] = place[axis]
        place = before
    return None
