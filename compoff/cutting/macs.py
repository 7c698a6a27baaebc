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
    lists: list[Any] = [value for value in args[2:] if isinstance(value, (list, tuple))]
    weights = lists[-1]  # behind the states, if they are a list, too
    return steps * sum(math.prod(weight.shape) for weight in weights if len(weight.shape) == 2)


def _cell(args: tuple[Any, ...], output: Any) -> int:
    """A product with the input and one with the state, for all gates at once."""
    del output
    return math.prod(args[0].shape[:-1]) * sum(math.prod(weight.shape) for weight in args[2:4])


def _recurrent(args: tuple[Any, ...], output: Any) -> int:
    """Four gates, each a product with the input and with the state, at every step."""
    del output
    steps, batch = args[0].shape[0], args[0].shape[1]
    return steps * batch * sum(math.prod(weight.shape) for weight in args[1:3] if isinstance(weight, Tensor))


def _bilinear(args: tuple[Any, ...], output: Any) -> int:
    """A product with every matrix of the weights, once with each of its columns."""
    return math.prod(output.shape[:-1]) * math.prod(args[2].shape)


def _trilinear(args: tuple[Any, ...], output: Any) -> int:
    """What a bilinear layer is taken apart into: a sum over three factors, each spread over the axes that it lacks."""
    del output
    spread: list[list[int]] = []
    for factor, axes in zip(args[:3], args[3:6], strict=True):
        sizes = list(factor.shape)
        for axis in axes:
            sizes.insert(axis, 1)
        spread.append(sizes)
    return math.prod(max(sizes) for sizes in zip(*spread, strict=True))


def _einsum(args: tuple[Any, ...], output: Any) -> int:
    """One product for each combination of the indices of two factors; of several, one after another."""
    del output
    terms, arrow, result = args[0].replace(" ", "").partition("->")
    result = result if arrow else "".join(axis for axis in terms if terms.count(axis) == 1)
    factors = [_axes(term, factor.shape) for term, factor in zip(terms.split(","), args[1], strict=True)]
    sizes: dict[Any, int] = {}
    for factor in factors:
        sizes |= {axis: max(size, sizes.get(axis, 1)) for axis, size in factor.items()}
    kept = {axis for axis in sizes if not isinstance(axis, str) or axis in result}  # those of "..." have numbers
    macs, held = 0, set(factors[0])
    for index, factor in enumerate(factors[1:], start=2):
        held |= set(factor)
        macs += math.prod(sizes[axis] for axis in held)
        held &= kept.union(*factors[index:])
    return macs


def _axes(term: str, shape: Any) -> dict[Any, int]:
    """The size of each index of a factor; those that "..." stands for are counted from the last."""
    before, dots, after = term.partition("...")
    middle = range(len(before) + len(after) - len(shape), 0) if dots else ()
    return dict(zip([*before, *middle, *after], shape, strict=True))


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
    torch.ops.aten.conv_transpose3d: _transposed_convolution,
    torch.ops.aten.lstm: _layers,
    torch.ops.aten.gru: _layers,
    torch.ops.aten.rnn_tanh: _layers,
    torch.ops.aten.rnn_relu: _layers,
    torch.ops.aten.lstm_cell: _cell,
    torch.ops.aten.gru_cell: _cell,
    torch.ops.aten.rnn_tanh_cell: _cell,
    torch.ops.aten.rnn_relu_cell: _cell,
    torch.ops.aten.bilinear: _bilinear,
    torch.ops.aten._trilinear: _trilinear,
    torch.ops.aten.einsum: _einsum,
}
