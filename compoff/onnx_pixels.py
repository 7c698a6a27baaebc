"""The first layer of an ONNX program that takes 8-bit pixels: it normalizes them, and they are its integers.

Knows the nodes that an export puts before a head that takes pixels, and no codec.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.onnx_steps import chain_behind, constants_of, readers_of, remove_unread

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WholePixels", "normalizing_nodes", "take_in_normalization", "whole_pixels"]


@dataclass(frozen=True)
class WholePixels:
    """Numbers that are pixels as they came, from 0 to 255.

    Args:
        cast: The node that makes them from integers; layers with weights alone read them.
    """

    cast: Any

    @property
    def name(self) -> str:
        """Name of the numbers."""
        return self.cast.output[0]

    def scale(self, quant_type: Any) -> dict[str, Any]:
        """How they are stored: as they came."""
        return {"quant_type": quant_type, "scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}

    def shorten(self, graph: Any) -> None:
        """Give the quantized layers the pixels themselves."""
        made = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == self.name]
        integers = {node.output[0] for node in made}
        for node in graph.node:
            node.input[:] = [self.cast.input[0] if name in integers else name for name in node.input]
        kept = [node for node in graph.node if node not in made and node.output[0] != self.name]
        del graph.node[:]
        graph.node.extend(kept)


def take_in_normalization(data: bytes) -> bytes:
    """Let the convolution that alone reads normalized pixels scale them itself, and shift them where it has no edges.

    A convolution that fills its edges with zeros means black by them once pixels are not normalized, so only the scale
    goes into its weights.

    Args:
        data: The bytes of an ONNX program.

    Returns:
        The bytes of the changed program.

    Examples:
        >>> import onnx
        >>> from compoff.onnx_session import OnnxSession
        >>> ends = [onnx.helper.make_tensor_value_info("x", 2, ["batch", 1, 2, 2])]
        >>> ends += [onnx.helper.make_tensor_value_info("y", 1, ["batch", 1, 1, 1])]
        >>> steps = [("Cast", ["x"], "a", {"to": 1}), ("Mul", ["a", "scale"], "b", {})]
        >>> steps += [("Add", ["b", "shift"], "c", {}), ("Conv", ["c", "w"], "y", {})]
        >>> nodes = [onnx.helper.make_node(kind, given, [made], **more) for kind, given, made, more in steps]
        >>> values = {"scale": np.full((1, 1, 1, 1), 0.5), "shift": np.ones((1, 1, 1, 1)), "w": np.ones((1, 1, 2, 2))}
        >>> held = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
        >>> graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], held)
        >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
        >>> changed = take_in_normalization(model.SerializeToString())
        >>> [node.op_type for node in onnx.load_from_string(changed).graph.node]
        ['Cast', 'Conv']
        >>> OnnxSession(changed, "changed").run([np.full((1, 1, 2, 2), 4, np.uint8)])[0].item()
        12.0

    Source: this project.
    """
    model = importlib.import_module("onnx").load_from_string(data)
    _take_in(model.graph)
    return model.SerializeToString(deterministic=True)


def whole_pixels(graph: Any) -> list[WholePixels]:
    """The numbers in a program that are pixels as they came, and that convolutions alone read.

    Args:
        graph: The program's graph, an ``onnx.GraphProto``.

    Returns:
        One entry a node that makes them.
    """
    readers = readers_of(graph)
    return [
        WholePixels(cast)
        for cast in _casts(graph)
        if all(getattr(reader, "op_type", "") == "Conv" for reader in readers.get(cast.output[0], []))
    ]


def normalizing_nodes(graph: Any) -> list[str]:
    """Names of the nodes that scale and shift pixels.

    Args:
        graph: The program's graph, an ``onnx.GraphProto``.

    Returns:
        The names; those of nodes whose integers would be a second rounding, and slower than their numbers.
    """
    values = {cast.output[0] for cast in _casts(graph)}
    found: list[str] = []
    for node in graph.node:
        if node.op_type in ("Mul", "Add") and node.input[0] in values:
            found.append(node.name)
            values.add(node.output[0])
    return found


def _take_in(graph: Any) -> None:
    from_array = importlib.import_module("onnx.numpy_helper").from_array
    constants, readers = constants_of(graph), readers_of(graph)
    for cast in _casts(graph):
        chain = chain_behind(cast, ("Mul", "Add", "Conv"), readers)
        if chain is None:
            continue
        multiply, add, layer = chain
        scale, shift = (constants.get(node.input[1]) for node in (multiply, add))
        weight, bias = constants.get(layer.input[1]), constants.get(layer.input[2]) if len(layer.input) > 2 else 0.0
        if scale is None or shift is None or weight is None or bias is None or weight.shape[1] != scale.size:
            continue  # the last: a convolution in groups
        exact: NDArray[np.float64] = weight.astype(np.float64) * scale.reshape(1, -1, *(1,) * (weight.ndim - 2))
        names = [f"{layer.output[0]}_pixels_{name}" for name in ("weight", "bias", "shift")]
        graph.initializer.append(from_array(exact.astype(weight.dtype), names[0]))
        layer.input[1] = names[0]
        graph.node.remove(multiply)
        if _has_edges(layer):
            # For a whole row: onnxruntime may put the channels last, and is slow where it adds three numbers at a time.
            row = np.broadcast_to((shift / scale).astype(shift.dtype), (1, scale.size, 1, _width(graph, cast)))
            graph.initializer.append(from_array(np.ascontiguousarray(row), names[2]))
            add.input[:] = [cast.output[0], names[2]]
            continue
        black = weight.astype(np.float64).reshape(*weight.shape[:2], -1).sum(2) @ shift.reshape(-1)
        graph.initializer.append(from_array((bias + black).astype(weight.dtype), names[1]))
        layer.input[:] = [cast.output[0], *names[:2]]
        graph.node.remove(add)
    remove_unread(graph)


def _casts(graph: Any) -> list[Any]:
    """The nodes that make numbers of a program's 8-bit inputs, whose axes may have been put in another order."""
    kind = importlib.import_module("onnx").TensorProto.UINT8
    pixels = {one.name for one in graph.input if one.type.tensor_type.elem_type == kind}
    pixels |= {node.output[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in pixels}
    return [node for node in graph.node if node.op_type == "Cast" and node.input[0] in pixels]


def _width(graph: Any, cast: Any) -> int:
    """Pixels in a row of what a node makes; 1 where it is not known."""
    made_by = {node.output[0]: node for node in graph.node}
    before = made_by.get(cast.input[0])
    name, axis = (cast.input[0], 3) if before is None else (before.input[0], _order(before)[3])
    sizes: list[Any] = [size for one in graph.input if one.name == name for size in one.type.tensor_type.shape.dim]
    return int(sizes[axis].dim_value or 1) if len(sizes) == 4 else 1


def _order(transpose: Any) -> list[int]:
    return list(transpose.attribute[0].ints)


def _has_edges(layer: Any) -> bool:
    """Whether a convolution reads beyond its input, where it takes zeros."""
    attributes = {entry.name: entry for entry in layer.attribute}
    explicit = "auto_pad" not in attributes or attributes["auto_pad"].s in (b"NOTSET", b"VALID")
    return not explicit or ("pads" in attributes and any(attributes["pads"].ints))
