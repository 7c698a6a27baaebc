"""What a program in integers says of numbers that are not finite, on graphs small enough to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from compoff.onnx_finite import say_what_is_finite
from compoff.onnx_session import OnnxSession

TO_INTEGERS = ["scale", "zero"]


def head_of(*nodes: tuple[str, list[str], str]) -> Any:
    """A program from ``x`` to integers ``y`` that says what it has to."""
    x, y = (
        helper.make_tensor_value_info(name, kind, ["batch", 2])
        for name, kind in (("x", TensorProto.FLOAT), ("y", TensorProto.UINT8))
    )
    numbers = [("scale", np.float32(0.5)), ("zero", np.uint8(0)), ("two", np.float32(2))]
    constants = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in numbers]
    made = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes]
    graph = helper.make_graph(made, "head", [x], [y], constants)
    say_what_is_finite(graph, 1)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_what_divides_by_a_value_may_be_no_number_and_by_a_constant_is_one() -> None:
    by_itself = head_of(("Div", ["x", "x"], "one"), ("QuantizeLinear", ["one", *TO_INTEGERS], "y"))
    session = OnnxSession(by_itself.SerializeToString(), "head")
    for x, finite in ([[1, 2]], True), ([[1, 0]], False), ([[np.inf, 1]], False):
        assert session.run([np.array(x, np.float32)])[1].tolist() == [finite]
    by_two = head_of(("Div", ["x", "two"], "half"), ("QuantizeLinear", ["half", *TO_INTEGERS], "y"))
    assert len(by_two.graph.output) == 1


def test_what_comes_from_integers_is_not_asked_again() -> None:
    """It is finite whatever they came from, and a sum over every later value would cost the device time."""
    head = head_of(
        ("Log", ["x"], "logarithm"),
        ("QuantizeLinear", ["logarithm", *TO_INTEGERS], "integers"),
        ("DequantizeLinear", ["integers", *TO_INTEGERS], "numbers"),
        ("Mul", ["numbers", "two"], "twice"),
        ("QuantizeLinear", ["twice", *TO_INTEGERS], "y"),
    )
    assert [node.input[0] for node in head.graph.node if node.op_type == "Abs"] == ["logarithm"]
