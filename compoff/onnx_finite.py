"""What an integer program says of numbers that are not finite: integers know none, but not all of it is integers.

A logarithm or a division stays in floating point, and a NaN of theirs becomes some integer. The program then says so,
in outputs of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.onnx_steps import attributes_of, constants_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["say_what_is_finite"]

# What makes no NaN of finite numbers: sums and products of them, bounded functions, and what only moves them about.
_KEEP_FINITE = {
    "Abs", "Add", "And", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Conv", "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Elu", "Equal", "Erf", "Expand",
    "Flatten", "Floor", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "MatMul", "Max",
    "MaxPool", "Min", "Mish", "Mul", "Neg", "Not", "OneHot", "Or", "PRelu", "Pad", "QuantizeLinear", "Range",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Selu", "Shape",
    "Sigmoid", "Sign", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Squeeze", "Sub", "Sum",
    "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
}  # fmt: skip
_NOT_OF_INFINITY = {"MatMul", "Mul", "Softmax", "Sub"}  # where a mask brings some
_SYMBOLS = 2  # ONNX's number of uint8


def say_what_is_finite(graph: Any, codes: int) -> None:
    """Let a program say, for each code, whether what became integers was finite; in place, only where it may not be.

    Args:
        graph: The program's graph in integers, an ``onnx.GraphProto``.
        codes: Number of its first outputs that are symbols.
    """
    doubtful = list(_doubtful(graph, codes))
    batch = next((value.name for value in graph.input if _has_batch(value)), None)
    if not doubtful or batch is None:
        return
    onnx: Any = importlib.import_module("onnx")

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(onnx.helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    sums: list[str] = []
    for name in doubtful:  # one NaN or infinity anywhere makes the sum one
        wide = add("Cast", [add("Abs", [name], f"{name}_abs")], f"{name}_wide", to=onnx.TensorProto.FLOAT)
        sums.append(add("ReduceSum", [wide], f"{name}_sum", keepdims=0))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.inf, np.float32), "compoff_infinity"))
    finite = add("Less", [add("Sum", sums, "compoff_sum"), "compoff_infinity"], "compoff_all_finite")
    shape = add("Shape", [batch], "compoff_batch", start=0, end=1)
    for index in range(codes):
        name = add("Expand", [finite, shape], f"compoff_finite_{index}")
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, ["batch"]))


def _doubtful(graph: Any, codes: int) -> Iterator[str]:
    """Floating-point values that become integers and may not be finite."""
    made_by = {output: node for node in graph.node for output in node.output}
    ends = [node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"]
    for value in list(graph.output)[:codes]:
        maker = made_by.get(value.name)
        if maker is not None and maker.op_type == "Cast" and attributes_of(maker)["to"] == _SYMBOLS:
            ends.append(maker.input[0])
    constants = constants_of(graph)
    masked = any(value.dtype.kind == "f" and not np.isfinite(value).all() for value in constants.values())
    safe = _KEEP_FINITE - _NOT_OF_INFINITY if masked else _KEEP_FINITE
    for name in dict.fromkeys(ends):
        waiting, seen = [name], set[str]()
        while waiting:  # back to the integers or inputs that it comes from
            node = made_by.get(waiting.pop())
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            divides = node.op_type == "Div" and node.input[1] in constants
            if not divides and node.op_type not in safe:
                yield name
                break
            if node.op_type != "DequantizeLinear":
                waiting += node.input


def _has_batch(value: Any) -> bool:
    sizes: Sequence[Any] = value.type.tensor_type.shape.dim
    return bool(sizes) and bool(sizes[0].dim_param)
