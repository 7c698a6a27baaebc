"""Where an ONNX program turns the values of a layer into symbols by rounding: how its integers can be the symbols.

Knows the nodes that an export of the transform codec has there, and no codec.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "WholeSteps",
    "attributes_of",
    "chain_behind",
    "constants_of",
    "names_read",
    "readers_of",
    "remove_unread",
    "take_in_scales",
    "whole_steps",
]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class WholeSteps:
    """A layer whose values are rounded, clamped, shifted, and cast to bytes: symbols, one step apart.

    Args:
        layer: The layer.
        rest: The nodes behind it, in their order; the last one's output are the symbols.
        lowest: Least value after rounding.
        highest: Greatest value after rounding.
        shift: What is added to make symbols.
    """

    layer: Any
    rest: tuple[Any, ...]
    lowest: int
    highest: int
    shift: int

    def scale(self, quant_type: Any) -> dict[str, Any]:
        """How the layer's output is stored: one step is one, and zero is where the symbols have it."""
        zero = np.array(self.shift, np.uint8)
        return {"quant_type": quant_type, "scale": np.array(1, np.float32), "zero_point": zero}

    def shorten(self, graph: Any) -> None:
        """Take the quantized layer's integers for the symbols; all that is left to do is to clamp them."""
        onnx = importlib.import_module("onnx")
        value = self.layer.output[0]
        integers = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == value)
        symbols = self.rest[-1].output[0]
        bounds = [f"{symbols}_lowest", f"{symbols}_highest"]
        for bound, value in zip(bounds, (self.lowest, self.highest), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value + self.shift, np.uint8), bound))
        spared = {node.name for node in self.rest}
        kept = [node for node in graph.node if node.name not in spared and integers.output[0] not in node.input]
        del graph.node[:]
        graph.node.extend([*kept, onnx.helper.make_node("Clip", [integers.output[0], *bounds], [symbols])])
        remove_unread(graph)


def take_in_scales(graph: Any) -> None:
    """Let convolutions scale and shift their channels themselves, in place, where nothing else reads their outputs.

    Args:
        graph: The program's graph, an ``onnx.GraphProto``.
    """
    from_array = importlib.import_module("onnx.numpy_helper").from_array
    constants, readers = constants_of(graph), readers_of(graph)
    for layer in [node for node in graph.node if node.op_type == "Conv"]:
        weight = constants.get(layer.input[1])
        bias = constants.get(layer.input[2]) if len(layer.input) > 2 else np.zeros(1, np.float32)
        if weight is None or bias is None or any(len(readers[name]) > 1 for name in layer.input[1:]):
            continue
        column = (len(weight), *(1,) * (weight.ndim - 2))  # one number a channel, as it meets the output
        taken: list[Any] = []
        while (node := _only_reader(taken[-1] if taken else layer, readers)) and node.op_type in ("Mul", "Sub"):
            value = constants.get(node.input[1])
            if value is None or value.shape not in ((), (1,), column, (1, *column)):
                break
            each = np.broadcast_to(value.reshape(-1), len(weight))
            if node.op_type == "Sub":
                bias = bias - each
            else:
                weight, bias = weight * each.reshape(-1, *(1,) * (weight.ndim - 1)), bias * each
            taken.append(node)
        if taken:
            names = [f"{layer.output[0]}_weight", f"{layer.output[0]}_bias"]
            bias = np.broadcast_to(bias, len(weight)).astype(np.float32)
            graph.initializer.extend(map(from_array, (weight, bias), names))
            layer.input[1:] = names
            layer.output[0] = taken[-1].output[0]
            for node in taken:
                graph.node.remove(node)


def whole_steps(graph: Any) -> list[WholeSteps]:
    """The layers whose values become symbols by rounding alone.

    Args:
        graph: The program's graph, an ``onnx.GraphProto``.

    Returns:
        One entry a layer.
    """
    constants, readers = constants_of(graph), readers_of(graph)
    symbols, byte = {one.name for one in graph.output}, importlib.import_module("onnx").TensorProto.UINT8
    found: list[WholeSteps] = []
    for layer in graph.node:
        rest = chain_behind(layer, ("Round", "Clip", "Add", "Cast"), readers) if layer.op_type in _LAYERS else None
        # A model may round by itself on the way: those are numbers for its next layer, not symbols.
        if rest is None or rest[-1].output[0] not in symbols or attributes_of(rest[-1])["to"] != byte:
            continue
        bounds = [constants.get(name) for name in (*rest[1].input[1:3], *rest[2].input[1:])]
        if any(value is None or value.size != 1 or float(value) % 1 for value in bounds):
            continue
        lowest, highest, shift = (int(value) for value in bounds if value is not None)
        if lowest + shift >= 0 and highest + shift <= np.iinfo(np.uint8).max:
            found.append(WholeSteps(layer, rest, lowest, highest, shift))
    return found


def constants_of(graph: Any) -> dict[str, NDArray[Any]]:
    """The values that a program holds, by name."""
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    return {one.name: to_array(one) for one in graph.initializer}


def attributes_of(node: Any) -> dict[str, Any]:
    """What a node is told, by name."""
    value = importlib.import_module("onnx.helper").get_attribute_value
    return {one.name: value(one) for one in node.attribute}


def names_read(graph: Any) -> Iterator[str]:
    """What is read in a graph and in those inside its nodes."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from names_read(entry.g)


def remove_unread(graph: Any) -> None:
    """Take out of a program the values that nothing reads any more."""
    read = set(names_read(graph))
    for tensor in [one for one in graph.initializer if one.name not in read]:
        graph.initializer.remove(tensor)


def readers_of(graph: Any) -> dict[str, list[Any]]:
    """The nodes that read a value, and the outputs of the program among them."""
    readers: dict[str, list[Any]] = {one.name: [one] for one in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def chain_behind(node: Any, types: Sequence[str], readers: dict[str, list[Any]]) -> tuple[Any, ...] | None:
    """The nodes of these types behind a node, each the only reader of the one before; None where others stand there."""
    chain: list[Any] = []
    for kind in types:
        node = _only_reader(node, readers)
        if node is None or node.op_type != kind:
            return None
        chain.append(node)
    return tuple(chain)


def _only_reader(node: Any, readers: dict[str, list[Any]]) -> Any:
    """The node that alone reads what another makes, as the first of its inputs; None where there is no such node."""
    following = readers.get(node.output[0], [])
    alone = len(following) == 1 and hasattr(following[0], "op_type") and following[0].input[0] == node.output[0]
    return following[0] if alone else None
