"""Multiply-accumulates of one operator, from the shapes it was called with.

PyTorch's own formulas where it has them; those that it lacks on the CPU are here. Knows no models.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

__all__ = ["count_macs"]


def count_macs(operator: Any, args: tuple[Any, ...], output: Any) -> int:
    """Count the multiply-accumulates of one call.

    Args:
        operator: The ATen operator.
        args: Its positional arguments; tensors, or anything else with a shape.
        output: What it returned.

    Returns:
        Multiply-accumulates of the whole batch; 0 for an operator that has none to speak of, such as an addition.

    Examples:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3, 5)
        >>> count_macs(torch.ops.aten.mm.default, (a, b), a @ b)
        30

    Source: this project.
    """
    packet = getattr(operator, "_overloadpacket", None)
    if packet in _OWN:
        return _OWN[packet](args, output)
    formula = flop_registry.get(packet)
    if formula is None:
        return 0
    try:
        return int(formula(*args, out_val=output)) // 2  # the registry counts a multiply and an add as two
    except (TypeError, AssertionError, ValueError, IndexError):
        return 0  # an unusual call; its cost is left out of the sum rather than guessed


def _attention(args: tuple[Any, ...], output: Any) -> int:
    """Scores, then the weighted sum: two products over every pair of positions."""
    del output
    *lead, queries, width = args[0].shape
    keys, value_width = args[1].shape[-2], args[2].shape[-1]
    return math.prod(lead) * queries * keys * (width + value_width)


def _linear(args: tuple[Any, ...], output: Any) -> int:
    """A product with every row of the weights."""
    return math.prod(output.shape) * args[0].shape[-1]


def _convolution(args: tuple[Any, ...], output: Any) -> int:
    """A product with one kernel for every place and channel of the result."""
    return math.prod(output.shape) * math.prod(args[1].shape[1:])


def _transposed_convolution(args: tuple[Any, ...], output: Any) -> int:
    """A product with one kernel for every place and channel of the input."""
    del output
    return math.prod(args[0].shape) * math.prod(args[1].shape[1:])


def _layers(args: tuple[Any, ...], output: Any) -> int:
    """All matrices of all recurrent layers at every step."""
    del output
    steps = math.prod(args[0].shape[:-1])
    lists: list[Any] = [value for value in args[2:] if isinstance(value, (list, tuple)) and len(value) > 2]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    shapes: list[Any] = [weight.shape for weight in (lists[0] if lists else ())]
    return steps * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _recurrent(args: tuple[Any, ...], output: Any) -> int:
    """Four gates, each a product with the input and with the state, at every step."""
    del output
    steps, batch = args[0].shape[0], args[0].shape[1]
    return steps * batch * sum(math.prod(weight.shape) for weight in args[1:3] if isinstance(weight, Tensor))


_OWN = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten.scaled_dot_product_attention: _attention,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    # In an exported graph these have not been taken apart.
    torch.ops.aten.linear: _linear,
    torch.ops.aten.matmul: _linear,
    torch.ops.aten.conv1d: _convolution,
    torch.ops.aten.conv2d: _convolution,
    torch.ops.aten.conv3d: _convolution,
    torch.ops.aten.conv_transpose1d: _transposed_convolution,
    torch.ops.aten.conv_transpose2d: _transposed_convolution,
    torch.ops.aten.lstm: _layers,
    torch.ops.aten.gru: _layers,
}
