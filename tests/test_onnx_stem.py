"""The first convolution over two by two positions: the same sums, wherever its kernel begins."""

from __future__ import annotations

import numpy as np
import pytest

from compoff.onnx_session import OnnxSession
from compoff.onnx_stem import fold_stems

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def convolution(
    kernel: tuple[int, int], pads: list[int], size: tuple[int, int] = (20, 14), channels: int = 3, **told: object
) -> onnx.ModelProto:
    helper = onnx.helper
    ends = [helper.make_tensor_value_info("x", 1, ["batch", channels, *size])]
    ends += [helper.make_tensor_value_info("y", 1, ["batch", 8, "height", "width"])]
    weight = np.random.default_rng(0).normal(size=(8, channels, *kernel)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **{"strides": [2, 2], "pads": pads, **told})
    held = [onnx.numpy_helper.from_array(value, name) for name, value in (("w", weight), ("b", weight[:, 0, 0, 0]))]
    graph = helper.make_graph([node], "graph", ends[:1], ends[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("kernel", [(5, 5), (6, 6), (7, 7), (8, 8), (5, 8)])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [3, 3, 3, 3], [2, 3, 3, 2], [0, 1, 4, 0], [1, 2, 0, 1]])
def test_the_sums_are_the_same(kernel: tuple[int, int], pads: list[int]) -> None:
    model = convolution(kernel, pads)
    x = [np.random.default_rng(1).normal(size=(2, 3, 20, 14)).astype(np.float32)]
    expected = OnnxSession(model.SerializeToString(), "plain").run(x)[0]
    fold_stems(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["SpaceToDepth", "Conv"]
    assert {one.name for one in model.graph.initializer} == {"y_stem_weight", "b"}
    found = OnnxSession(model.SerializeToString(), "folded").run(x)[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        convolution((3, 3), [1, 1, 1, 1]),
        convolution((7, 7), [3, 3, 3, 3], size=(20, 15)),
        convolution((7, 7), [3, 3, 3, 3], channels=8),
        convolution((7, 7), [3, 3, 3, 3], strides=[1, 1]),
        convolution((5, 5), [4, 4, 4, 4], dilations=[2, 2]),
        convolution((7, 7), [0, 0, 0, 0], auto_pad="SAME_UPPER"),
        convolution((7, 7), [3, 3, 3, 3], group=2),
    ],
    ids=["small", "odd size", "many channels", "stride 1", "dilated", "pads of its own", "groups"],
)
def test_other_convolutions_stay(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    fold_stems(model)
    assert model.SerializeToString(deterministic=True) == before


def test_what_only_a_choice_reads_stays() -> None:
    model, helper = convolution((7, 7), [3, 3, 3, 3]), onnx.helper
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Identity", [value], [name])], name, [], [helper.make_tensor_value_info(name, 1, [1])]
        )
        for name, value in (("then", "one"), ("else", "two"))
    }
    model.graph.node.append(helper.make_node("If", ["which"], ["chosen"], **branches))
    model.graph.output.append(helper.make_tensor_value_info("chosen", 1, [1]))
    for name, value in (("one", np.ones(1, np.float32)), ("two", np.zeros(1, np.float32)), ("which", np.array(True))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    fold_stems(model)
    x = [np.ones((1, 3, 20, 14), np.float32)]
    assert OnnxSession(model.SerializeToString(), "folded").run(x)[1].tolist() == [1.0]
