"""The first convolution of an ONNX program, over few channels in steps of two: the same sums over four times as many.

Integer convolutions gather their inputs position by position, three channels at a time for a picture, and take longer
over that than over the sums. Two by two positions made channels of one, there is more to each. Knows no codec.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.onnx_steps import attributes_of, constants_of, remove_unread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["fold_stems"]

_FEW = 4  # channels
_LEAST_SIDE = 5  # of a kernel: what a smaller one gains is less than the zeros cost that make its side even


def fold_stems(model: Any) -> None:
    """Let convolutions over few channels, in steps of two, see two by two positions as one, in place.

    Only where heights and widths are known and even. The sums are the same, in another order.

    Args:
        model: The program in floating point, an ``onnx.ModelProto``.

    Examples:
        >>> import onnx
        >>> ends = [onnx.helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])]
        >>> ends += [onnx.helper.make_tensor_value_info("y", 1, [1, 2, 4, 4])]
        >>> node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[3, 3, 3, 3])
        >>> weight = onnx.numpy_helper.from_array(np.ones((2, 3, 7, 7), np.float32), "w")
        >>> graph = onnx.helper.make_graph([node], "graph", ends[:1], ends[1:], [weight])
        >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
        >>> fold_stems(model)
        >>> [node.op_type for node in model.graph.node]
        ['SpaceToDepth', 'Conv']

    Source: this project.
    """
    onnx = importlib.import_module("onnx")
    graph = model.graph
    constants, casts = constants_of(graph), {node.output[0] for node in graph.node if node.op_type == "Cast"}
    # Pixels as they came stay integers all the way; SpaceToDepth takes integers in the newest runtimes only.
    wanted = [node for node in graph.node if _wanted(node, constants) and node.input[0] not in casts]
    if not wanted:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        one.name: [axis.dim_value for axis in one.type.tensor_type.shape.dim]
        for one in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    nodes: list[Any] = []
    for node in graph.node:
        if node in wanted and _even(given := sizes.get(node.input[0], [])):
            nodes.append(_fold(graph, node, constants[node.input[1]], given[2:], sizes[node.output[0]][2:]))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    remove_unread(graph)


def _wanted(node: Any, constants: dict[str, NDArray[Any]]) -> bool:
    """Whether this is such a convolution, but for the size of what it reads."""
    if node.op_type != "Conv" or node.input[1] not in constants:
        return False
    told, weight = attributes_of(node), constants[node.input[1]]
    return (
        weight.ndim == 4
        and weight.shape[1] <= _FEW
        and min(weight.shape[2:]) >= _LEAST_SIDE
        and list(told.get("strides", ())) == [2, 2]
        and told.get("group", 1) == 1
        and all(one == 1 for one in told.get("dilations", ()))
        and told.get("auto_pad", b"NOTSET") == b"NOTSET"
    )


def _even(sizes: Sequence[int]) -> bool:
    return len(sizes) == 4 and all(size > 0 and size % 2 == 0 for size in sizes[2:])


def _fold(graph: Any, layer: Any, weight: NDArray[Any], given: Sequence[int], made: Sequence[int]) -> Any:
    """Change a convolution; returns the node that goes before it."""
    onnx = importlib.import_module("onnx")
    told = attributes_of(layer)
    pads = list(told.get("pads", [0, 0, 0, 0]))[:2]
    # A tap before its kernel, where its first one would fall on the second of two positions.
    before = [pad % 2 for pad in pads]
    sides = [(side + more + 1) // 2 for side, more in zip(weight.shape[2:], before, strict=True)]
    outputs, channels = weight.shape[:2]
    whole = np.zeros((outputs, channels, 2 * sides[0], 2 * sides[1]), np.float32)
    whole[:, :, before[0] : before[0] + weight.shape[2], before[1] : before[1] + weight.shape[3]] = weight
    blocks: NDArray[Any] = whole.reshape(outputs, channels, sides[0], 2, sides[1], 2)
    # SpaceToDepth puts the place within a block before the channel.
    folded: NDArray[Any] = np.moveaxis(blocks, (3, 5), (1, 2)).reshape(outputs, 4 * channels, *sides)
    first = [(pad + more) // 2 for pad, more in zip(pads, before, strict=True)]
    last = [out + side - 1 - size // 2 - pad for out, side, size, pad in zip(made, sides, given, first, strict=True)]
    names = [f"{layer.output[0]}_stem_{name}" for name in ("input", "weight")]
    graph.initializer.append(onnx.numpy_helper.from_array(folded, names[1]))
    blocked = onnx.helper.make_node("SpaceToDepth", [layer.input[0]], names[:1], blocksize=2, name=f"{names[0]}_node")
    layer.input[:2] = names
    del layer.attribute[:]
    changed = {"strides": [1, 1], "pads": [*first, *last], "kernel_shape": sides}
    layer.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in changed.items())
    return blocked
