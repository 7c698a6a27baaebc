"""Weights rounded with what a layer is given: the layer's outputs change less, and the way it is computed is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compoff.onnx_export import to_onnx
from compoff.onnx_rounding import _layers, _slices, nearest_outputs, round_weights
from compoff.onnx_session import OnnxSession
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Callable


def one_after_another(row: np.ndarray[Any, Any], moment: np.ndarray[Any, Any], largest: int) -> np.ndarray[Any, Any]:
    """The same by its definition: round a weight, then move those left to where the outputs' error is least."""
    order = np.argsort(-np.diag(moment), kind="stable")
    moment = moment + np.eye(len(row)) * 0.01 * np.trace(moment) / len(row)
    left, whole = row.astype(np.float64).copy(), np.zeros(len(row))
    for place, k in enumerate(order):
        whole[k] = np.clip(np.rint(left[k]), -largest, largest)
        rest = order[place + 1 :]
        if len(rest):
            pull = moment[np.ix_(rest, [k])][:, 0] * (left[k] - whole[k])
            left[rest] += np.linalg.solve(moment[np.ix_(rest, rest)], pull)
    return whole


@given(st.integers(0, 1000), st.integers(1, 90))
def test_like_the_definition(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((200, width)) @ rng.standard_normal((width, width))
    rows = rng.uniform(-9, 9, (1, 3, width)).astype(np.float32)
    moment = inputs.T @ inputs
    found = nearest_outputs(rows, np.ones((1, 3), np.float32), moment[None], 8)
    expected = np.stack([one_after_another(row, moment, 8) for row in rows[0]])
    # Where a value lies between two whole numbers, the last digits decide, and everything after it.
    assert (found[0] == expected).all(1).mean() > 0.6


def smooth(*shape: int) -> np.ndarray[Any, Any]:
    """Inputs whose neighbors are alike, as in pictures."""
    return np.random.default_rng(0).standard_normal(shape).cumsum(-1).astype(np.float32) / 4


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: nn.Conv2d(4, 6, (3, 4), stride=(2, 1), padding=(1, 2), dilation=(2, 1)), smooth(16, 4, 12, 12)),
        (lambda: nn.Conv1d(4, 4, 15, groups=2, bias=False), smooth(16, 4, 40)),
        (lambda: nn.Linear(24, 5), smooth(40, 24)),
        (lambda: nn.Linear(24, 5, bias=False), smooth(8, 7, 24)),
    ],
)
def test_outputs_change_less(make: Callable[[], nn.Module], inputs: np.ndarray[Any, Any]) -> None:
    torch.manual_seed(0)
    layer = make()
    samples = [inputs[: len(inputs) // 2]], [inputs[len(inputs) // 2 :]]
    given_, free = (torch.from_numpy(samples[0][0]),), {0: torch.export.Dim.DYNAMIC}
    program = TorchProgram(torch.export.export(layer, given_, dynamic_shapes=[free]))
    data, _ = to_onnx(program, "the layer", [samples[0]])
    model = onnx.load_from_string(data)
    [[name, scales]] = round_weights(model, [samples[0]], 7, "int8").items()
    weight = onnx.numpy_helper.to_array(stored(model, name))
    along = [-1 if axis == scales[0]["axis"] else 1 for axis in range(weight.ndim)]
    steps = np.array([one["scale"] for one in scales]).reshape(along)
    whole = weight / steps
    assert np.allclose(whole, np.rint(whole), atol=1e-4)
    assert np.abs(whole).max() <= 7.001
    nearest = onnx.load_from_string(data)
    plain = onnx.numpy_helper.to_array(stored(nearest, name))
    stored(nearest, name).CopyFrom(onnx.numpy_helper.from_array(np.rint(plain / steps) * steps, name))
    expected, ours, theirs = (
        OnnxSession(one, "the layer").run(samples[1])[0]
        for one in (data, model.SerializeToString(), nearest.SerializeToString())
    )
    assert np.square(ours - expected).mean() < 0.8 * np.square(theirs - expected).mean()


def graph_of(nodes: list[Any], weights: dict[str, np.ndarray[Any, Any]]) -> Any:
    helper = onnx.helper
    ends = [helper.make_tensor_value_info(name, 1, ["batch", 4]) for name in ("x", nodes[-1].output[0])]
    held = [onnx.numpy_helper.from_array(weight.astype(np.float32), name) for name, weight in weights.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_layers_are_those_whose_weights_are_their_own_and_lie_as_is_known() -> None:
    node = onnx.helper.make_node
    nodes = [
        node("Gemm", ["x", "columns"], ["a"]),
        node("Gemm", ["x", "rows"], ["b"], transB=1),
        node("Gemm", ["x", "upright"], ["c"], transA=1),
        node("MatMul", ["x", "shared"], ["d"]),
        node("MatMul", ["d", "shared"], ["e"]),
        node("MatMul", ["x", "batched"], ["f"]),
        node("Conv", ["x", "padded"], ["g"], auto_pad="SAME_UPPER"),
        node("Conv", ["x", "kernel"], ["h"]),
        node("MatMul", ["x", "product"], ["i"]),
        node("MatMul", ["x", "wide"], ["j"]),
        node("Relu", ["x"], ["k"]),
    ]
    shapes = {"padded": (4, 4, 3), "kernel": (4, 4, 3), "batched": (2, 4, 4), "wide": (8193, 1)}
    weights = {one.input[1]: np.ones(shapes.get(one.input[1], (4, 4)), np.float32) for one in nodes[:-1]}
    found = {layer.node.input[1]: layer.axis for layer in _layers(graph_of(nodes, weights).graph, weights)}
    assert found == {"columns": 1, "rows": 0, "kernel": 0, "product": 1}


def test_an_output_of_zeros_and_inputs_of_zeros_stay_zeros() -> None:
    weight = np.array([[0.9, 0, 0.1, 0.3], [0.2, 0, 0.5, 0.7], [0.4, 0, 0.8, 0.6], [0.1, 0, 0.2, 0.3]])
    model = graph_of([onnx.helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": weight})
    [[scale, *_]] = round_weights(model, [[np.zeros((8, 4), np.float32)]], 7, "int8").values()
    assert 0 < scale["scale"] < 1
    rounded = onnx.numpy_helper.to_array(stored(model, "w"))
    steps = np.abs(weight).max(0) / 7
    assert rounded == pytest.approx(np.rint(weight / np.maximum(steps, 1e-9)) * steps, abs=1e-6)


def stored(model: Any, name: str) -> Any:
    return next(one for one in model.graph.initializer if one.name == name)


def test_leaves_alone_what_it_does_not_know() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3)
    x = torch.randn(2, 2, 5, 5)
    data, _ = to_onnx(TorchProgram(torch.export.export(layer, (x,))), "the layer", [[x.numpy()]])
    model = onnx.load_from_string(data)
    assert round_weights(model, [[x.numpy()]], 64, "int8") == {}
    assert model.SerializeToString(deterministic=True) == data


@pytest.mark.parametrize("size", [1, 4, 9, 64, 200])
def test_as_many_samples_are_looked_at_however_they_come(size: int) -> None:
    shape = (torch.zeros(2, 24),)
    program = TorchProgram(torch.export.export(nn.Linear(24, 5), shape, dynamic_shapes=[{0: torch.export.Dim.DYNAMIC}]))
    session = OnnxSession(to_onnx(program, "the layer", [[shape[0].numpy()]])[0], "the layer")
    given_ = [[np.zeros((size, 24), np.float32)] for _ in range(200 // size)]
    looked_at = sum(len(batch[0]) for batch in _slices(session, given_))
    assert 64 <= looked_at < 64 + 8
