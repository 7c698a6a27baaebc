"""A program that computes the channels of one quality only, on graphs small enough to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compoff.onnx_narrowing import QUALITY, with_quality
from compoff.onnx_session import OnnxSession

QUALITIES = [1, 1, 2, 4]
"""Channels at each of four qualities; the layer has five."""

Node = tuple[str, list[str], str, dict[str, Any]]

ROUND: Node = ("Round", ["z"], "y", {})
PRODUCT: Node = ("Gemm", ["x", "columns", "shift"], "z", {})


def numbers() -> dict[str, Any]:
    random = np.random.default_rng(0)
    columns = random.normal(0, 9, (3, 5)).astype(np.float32)
    return {
        "rows": columns.T.copy(),
        "columns": columns,
        "kernel": columns.T.reshape(5, 3, 1).copy(),
        "shift": np.arange(5, dtype=np.float32),
        "axes": np.array([1]),
        "most": np.array(3e38, np.float32),
        "ints": random.integers(-9, 9, (3, 5), np.int8),
        "scales": np.linspace(1, 5, 5, dtype=np.float32),
        "zeros": np.zeros(5, np.int8),
        "step": np.array(0.01, np.float32),
        "point": np.array(0, np.int8),
    }


def program(*nodes: Node, x: tuple[int, ...] = (3,), others: tuple[tuple[str, int], ...] = ()) -> bytes:
    """A program from ``x`` to symbols ``y``, and to what else is named, of a type."""
    made = [helper.make_node(kind, inputs, [output], name=output, **told) for kind, inputs, output, told in nodes]
    read = {name for _, inputs, _, _ in nodes for name in inputs}
    start = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x])
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5, *x[1:]])]
    ends += [helper.make_tensor_value_info(name, kind, ["batch"]) for name, kind in others]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in numbers().items() if name in read]
    graph = helper.make_graph(made, "head", [start], ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9).SerializeToString()


def assert_narrow(data: bytes, x: tuple[int, ...] = (3,)) -> Any:
    """Each quality has the first of all channels; returns the program that has qualities."""
    narrow, sample = with_quality(data, [[count] for count in QUALITIES]), np.random.default_rng(1).random((2, *x))
    given, model = [sample.astype(np.float32)], onnx.load_from_string(narrow)
    whole, session = OnnxSession(data, "head").run(given), OnnxSession(narrow, "head")
    assert list(session.names) == ["x", QUALITY]
    for quality, channels in enumerate([*QUALITIES, 5]):
        found = session.run([*given, np.array(quality)])
        assert np.array_equal(found[0], whole[0][:, :channels])
        assert [one.tolist() for one in found[1:]] == [one.tolist() for one in whole[1:]]
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_param
    return model


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (PRODUCT, (3,)),
        (("Gemm", ["x", "columns"], "z", {}), (3,)),
        (("Gemm", ["x", "rows", "shift"], "z", {"transB": 1}), (3,)),
        (("Conv", ["x", "kernel", "shift"], "z", {}), (3, 2)),
    ],
)
def test_a_layer_computes_the_channels_of_a_quality(layer: Node, x: tuple[int, ...]) -> None:
    model = assert_narrow(program(layer, ROUND, x=x), x)
    assert onnx.printer.to_text(model).count("= If ") == 3, "qualities of as many channels share a branch"


def test_weights_in_integers_are_made_numbers_beside_their_layer() -> None:
    weights: Node = ("DequantizeLinear", ["ints", "scales", "zeros"], "w", {"axis": 1})
    model = assert_narrow(program(weights, ("Gemm", ["x", "w", "shift"], "z", {}), ROUND))
    assert [node.op_type for node in model.graph.node] == ["Less", "If"]


def test_what_makes_numbers_of_integers_stays_beside_the_layer_with_the_order_of_axes_before_it() -> None:
    """Onnxruntime joins them to the layer there, and nowhere else."""
    before: list[Node] = [
        ("QuantizeLinear", ["x", "step", "point"], "q", {}),
        ("Transpose", ["q"], "t", {"perm": [0, 2, 1]}),
        ("DequantizeLinear", ["t", "step", "point"], "n", {}),
    ]
    model = assert_narrow(program(*before, ("Conv", ["n", "kernel", "shift"], "z", {}), ROUND, x=(3, 3)), (3, 3))
    assert [node.op_type for node in model.graph.node] == ["QuantizeLinear", "Less", "If"]
    text = onnx.printer.to_text(model)
    assert text.count("= Transpose ") == text.count("= DequantizeLinear") == text.count("= Conv") == 4


FINITE: list[Node] = [
    ("ReduceSum", ["z", "axes"], "sum", {"keepdims": 0}),
    ("Abs", ["sum"], "size", {}),
    ("Less", ["size", "most"], "finite", {}),
]


def test_what_says_which_samples_are_finite_goes_into_the_branches() -> None:
    data = program(PRODUCT, ROUND, *FINITE, others=(("finite", TensorProto.BOOL),))
    model = assert_narrow(data)
    assert {node.op_type for node in model.graph.node} == {"Less", "If"}
    x = np.array([[1, 1, 1], [np.inf, 1, 1]], np.float32)
    for quality in range(5):
        assert OnnxSession(model.SerializeToString(), "head").run([x, np.array(quality)])[1].tolist() == [True, False]


OTHERS = {
    "the layer's values go elsewhere": [PRODUCT, ROUND, ("Relu", ["z"], "more", {})],
    "they go elsewhere in the end": [PRODUCT, ROUND, *FINITE, ("Cast", ["finite"], "more", {"to": TensorProto.FLOAT})],
    "channels are told apart behind it": [PRODUCT, ("Add", ["z", "shift"], "s", {}), ("Round", ["s"], "y", {})],
    "channels meet behind it": [PRODUCT, ("Softmax", ["z"], "y", {})],
    "its weights are computed": [
        ("Abs", ["columns"], "w", {}), ("Gemm", ["x", "w"], "z", {}), ROUND,
    ],
    "its integers are computed": [
        ("Abs", ["ints"], "i", {}), ("DequantizeLinear", ["i", "scales", "zeros"], "w", {"axis": 1}),
        ("Gemm", ["x", "w"], "z", {}), ROUND,
    ],
    "there is no layer": [("Expand", ["x", "axes"], "z", {}), ROUND],
}  # fmt: skip


@pytest.mark.parametrize("nodes", OTHERS.values(), ids=OTHERS)
def test_what_needs_all_channels_stays_as_it_is(nodes: list[Node]) -> None:
    more = (("more", TensorProto.FLOAT),) if nodes[-1][2] == "more" else ()
    data = program(*nodes, others=more)
    assert with_quality(data, [[1], [5]]) == data


def test_qualities_of_all_channels_need_no_choice() -> None:
    data = program(PRODUCT, ROUND)
    assert with_quality(data, [[5], [5]]) == data
    assert with_quality(data, [[4], [5]]) != data
