"""A program in integers: what a last layer rounds to whole steps it gives as whole steps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compoff.errors import BackendError
from compoff.onnx_export import to_onnx
from compoff.onnx_int8 import quantized
from compoff.onnx_session import OnnxSession
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Callable


class Steps(nn.Module):
    """A layer, then symbols by rounding; the scale of the symbols in the layer's weights, or behind it."""

    gain: Tensor
    offset: Tensor

    def __init__(self, half: int, *, folded: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 2, stride=2, bias=folded)
        self.levels, self.folded = half, folded
        self.register_buffer("gain", torch.linspace(30, 50, 6).view(6, 1, 1))
        self.register_buffer("offset", torch.linspace(-0.5, 0.5, 6).view(6, 1, 1))
        if folded:
            with torch.no_grad():
                self.last.weight.mul_(40)

    def forward(self, x: Tensor) -> Tensor:
        values = self.last(self.first(x).relu())
        values = values if self.folded else (values - self.offset) * self.gain
        return (values.round().clamp(-self.levels, self.levels) + self.levels).to(torch.uint8)


class Nearest(nn.Module):
    """A layer, then symbols by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) > 0).to(torch.uint8)


def programs(make: Callable[[], nn.Module]) -> tuple[bytes, bytes, list[np.ndarray[Any, Any]]]:
    torch.manual_seed(0)
    model = make()
    x = [np.random.default_rng(0).standard_normal((8, 3, 10, 10)).astype(np.float32)]
    free = {0: torch.export.Dim.DYNAMIC}
    program = TorchProgram(torch.export.export(model, (torch.from_numpy(x[0]),), dynamic_shapes=[free]))
    data, _ = to_onnx(program, "steps", [x], metadata={"whose": "ours"})
    return data, quantized(data, "steps", [x]), x


@pytest.mark.parametrize(("half", "folded"), [(127, False), (9, True)])
def test_whole_steps_are_rounded_once(half: int, folded: bool) -> None:
    data, integers, x = programs(lambda: Steps(half, folded=folded))
    nodes = [node.op_type for node in onnx.load_from_string(integers).graph.node]
    assert nodes[-3:] == ["Conv", "QuantizeLinear", "Clip"]
    assert "Round" not in nodes
    expected, found = (OnnxSession(one, "steps").run(x)[0] for one in (data, integers))
    assert found.dtype == np.uint8
    assert found.max() <= 2 * half
    if half == 9:
        assert found.min() == 0, "nothing was clamped: the test shows nothing"
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.8
    assert OnnxSession(integers, "steps").metadata == {"whose": "ours"}
    alone = [one[:1] for one in x]
    assert (OnnxSession(integers, "steps").run(alone)[0] == found[:1]).all()


def test_other_ways_to_symbols_stay_as_they_are() -> None:
    data, integers, x = programs(Nearest)
    nodes = [node.op_type for node in onnx.load_from_string(integers).graph.node]
    assert "Greater" in nodes
    expected, found = (OnnxSession(one, "steps").run(x)[0] for one in (data, integers))
    assert (found == expected).mean() > 0.9


class Waves(nn.Module):
    """A layer, then products side by side as they mix channels on waves, then symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(12, 6, 1)
        self.mixes = nn.Parameter(torch.randn(2, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        rows = y.flatten(2).transpose(1, 2)
        mixed = torch.cat([rows @ self.mixes[0], rows @ self.mixes[1]], 2)
        values = self.last(mixed.transpose(1, 2).unflatten(2, y.shape[2:]))
        return (values.round().clamp(-20, 20) + 20).to(torch.uint8)


def test_what_mixes_channels_on_waves_stays_in_floats() -> None:
    _, data, _ = programs(Waves)
    nodes = onnx.load_from_string(data).graph.node
    made_by = {name: node for node in nodes for name in node.output}
    products = [node for node in nodes if node.op_type == "MatMul"]
    assert len(products) == 2
    for product in products:
        assert {made_by[name].op_type for name in product.input if name in made_by} <= {"Transpose", "Reshape"}
    (joint,) = (node for node in nodes if node.op_type == "Concat" and products[0].output[0] in node.input)
    assert set(joint.input) == {product.output[0] for product in products}  # nothing is rounded between
    assert sum(node.op_type == "Conv" for node in nodes) == 2


def test_no_layer_and_no_samples() -> None:
    relu = TorchProgram(torch.export.export(nn.Tanh(), (torch.zeros(2, 3),)))
    data, _ = to_onnx(relu, "tanh", [[np.ones((2, 3), np.float32)]])
    with pytest.raises(BackendError, match="tanh has no layer that can be quantized; use fp32"):
        quantized(data, "tanh", [[np.arange(6, dtype=np.float32).reshape(2, 3)]])
    with pytest.raises(BackendError, match="calibrated on inputs as the device will see them"):
        quantized(data, "tanh", [])


@pytest.mark.parametrize("value", [0.0, 1e-38, 3.0])
def test_samples_of_one_value_are_refused(value: float) -> None:
    sample = [np.full((2, 3), value, np.float32), np.arange(2)]
    for index, given in enumerate((sample, sample[::-1])):
        words = f"all that was given as input {index} of it is {np.float32(value)}; pass batches of real"
        with pytest.raises(BackendError, match=words):
            quantized(b"", "it", [given, given])


class RoundsItself(nn.Module):
    """Rounds on its way, as models that were trained for integers do, and goes on from there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        whole = ((self.first(x) * 10).round().clamp(-8, 8) + 8).to(torch.int64)
        return self.second(whole.to(torch.float32) - 8)


def test_rounding_on_the_way_is_the_models_own() -> None:
    data, integers, x = programs(RoundsItself)
    expected, found = (OnnxSession(one, "rounds").run(x)[0] for one in (data, integers))
    # A value near the middle of two whole numbers may fall to either side, and counts whole.
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.95


# -- on graphs small enough to read


def program(
    *nodes: tuple[str, list[str], str, dict[str, Any]],
    x: tuple[int, ...],
    kind: int = onnx.TensorProto.FLOAT,
    **weights: Any,
) -> bytes:
    """A program from ``x`` to ``y``."""
    ends = [
        [onnx.helper.make_tensor_value_info(name, type_, sizes)]
        for name, type_, sizes in (("x", kind, ["batch", *x]), ("y", onnx.TensorProto.FLOAT, None))
    ]
    made = [onnx.helper.make_node(kind, inputs, [output], name=output, **told) for kind, inputs, output, told in nodes]
    held = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(made, "program", *ends, held)
    opset = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def assert_near(data: bytes, integers: bytes, x: np.ndarray[Any, Any]) -> None:
    expected, found = (OnnxSession(one, "program").run([x])[0] for one in (data, integers))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("layer", ["MatMul", "ConvTranspose"])
def test_weights_have_seven_bits_and_a_scale_for_each_channel(layer: str) -> None:
    weights = normal(6, 5) * 10.0 ** np.arange(5)
    shaped = weights if layer == "MatMul" else weights[:, :, None]
    x = normal(8, 4, 6) if layer == "MatMul" else normal(8, 6, 4)
    data = program((layer, ["x", "weights"], "y", {}), x=x.shape[1:], weights=shaped)
    graph = onnx.load_from_string(quantized(data, "program", [[x]])).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    found, scales = held["weights_quantized"].reshape(6, 5).astype(int), held["weights_scale"]
    assert np.abs(found).max() <= 64
    assert scales.shape == (5,)
    assert (np.abs(found * scales - weights).max(0) <= 1.5 * scales).all()


def test_weights_are_rounded_to_what_the_samples_need() -> None:
    weights, x = normal(6, 5), normal(64, 2) @ normal(2, 6)  # samples that fill two of six directions
    data = program(("MatMul", ["x", "weights"], "y", {}), x=(6,), weights=weights)
    graph = onnx.load_from_string(quantized(data, "program", [[x]])).graph
    held = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    scales = held["weights_scale"]
    errors = [
        np.square(x @ (one * scales - weights)).sum() for one in (held["weights_quantized"], (weights / scales).round())
    ]
    assert errors[0] < 0.5 * errors[1]


def test_one_odd_batch_does_not_set_the_scale_of_all() -> None:
    data = program(("Conv", ["x", "kernel"], "y", {}), x=(3, 4), kernel=normal(6, 3, 1))
    x = normal(8, 3, 4)
    assert_near(data, quantized(data, "program", [[x]] * 15 + [[100 * x]]), 5 * x)


def test_the_log_of_the_script_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    data = program(("Conv", ["x", "kernel"], "y", {}), x=(3, 4), kernel=normal(6, 3, 1))
    with caplog.at_level(logging.WARNING):
        quantized(data, "program", [[normal(8, 3, 4)]])
        assert logging.getLogger().level == logging.WARNING
    assert not caplog.records


def test_transposed_convolutions_in_groups_and_weights_on_the_left_stay_in_floats() -> None:
    x = normal(8, 4, 6)
    groups = ("ConvTranspose", ["x", "kernel"], "z", {"group": 2})
    left = ("MatMul", ["square", "x"], "z", {})
    for first, weights in ((groups, {"kernel": normal(4, 2, 1)}), (left, {"square": normal(4, 4)})):
        last = ("Conv", ["z", "last"], "y", {})
        data = program(first, last, x=(4, 6), last=normal(3, 4, 1), **weights)
        integers = quantized(data, "program", [[x]])
        assert_near(data, integers, x)
        held = {one.name for one in onnx.load_from_string(integers).graph.initializer}
        assert {*weights, "last_quantized"} <= held


def test_samples_that_vary_somewhere_are_enough() -> None:
    ones, varied = np.ones((2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    data = program(("MatMul", ["x", "rows"], "y", {}), x=(3,), rows=normal(3, 5))
    for samples in ([[ones], [varied]], [[varied], [ones]], [[ones], [2 * ones]]):
        assert quantized(data, "program", samples)


def test_between_its_layers_a_program_computes_in_integers_all_the_way() -> None:
    nodes = [
        ("Conv", ["x", "first"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("Conv", ["b", "second"], "c", {}),
        ("Add", ["b", "c"], "d", {}),
        ("Concat", ["b", "d"], "e", {"axis": 1}),
        ("MaxPool", ["e"], "f", {"kernel_shape": [2]}),
        ("Relu", ["f"], "g", {}),
        ("Conv", ["g", "last"], "y", {}),
    ]
    weights = {"first": normal(4, 3, 1), "second": normal(4, 4, 1), "last": normal(2, 8, 1)}
    data, x = program(*nodes, x=(3, 6), **weights), normal(8, 3, 6)
    integers = quantized(data, "program", [[x]])
    assert_near(data, integers, x)
    found = onnx.load_from_string(integers).graph.node
    made_by = {name: node.op_type for node in found for name in node.output}
    for node in found:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Relu"):
            assert {made_by[name] for name in node.input} == {"DequantizeLinear"}, node.name


def test_a_first_convolution_in_steps_of_two_sees_two_by_two_positions_as_one() -> None:
    told = {"strides": [2, 2], "pads": [3, 3, 3, 3]}
    data = program(("Conv", ["x", "kernel"], "y", told), x=(3, 8, 8), kernel=normal(4, 3, 7, 7))
    x = normal(8, 3, 8, 8)
    integers = quantized(data, "program", [[x]])
    assert_near(data, integers, x)
    assert "SpaceToDepth" in [node.op_type for node in onnx.load_from_string(integers).graph.node]


@pytest.mark.parametrize("normalized", [True, False])
def test_pixels_are_rounded_once_whatever_the_samples_reach(normalized: bool) -> None:
    cast = ("Cast", ["x"], "numbers", {"to": onnx.TensorProto.FLOAT})
    scaled = [("Mul", ["numbers", "scale"], "scaled", {}), ("Add", ["scaled", "shift"], "shifted", {})]
    layer = ("Conv", ["shifted" if normalized else "numbers", "kernel"], "y", {})
    weights = {"kernel": normal(6, 3, 1), "scale": normal(3, 1) ** 2 + 0.1, "shift": normal(3, 1)}
    nodes = [cast, *(scaled if normalized else []), layer]
    data = program(*nodes, x=(3, 8), kind=onnx.TensorProto.UINT8, **weights)
    dark = np.random.default_rng(0).integers(0, 90, (8, 3, 8), np.uint8)
    integers = quantized(data, "program", [[dark]])
    assert_near(data, integers, dark)
    found = onnx.load_from_string(integers).graph.node
    made_by = {name: node.op_type for node in found for name in node.output}
    if normalized:
        assert [made_by.get(node.input[0]) for node in found if node.op_type in ("Mul", "Add")] == ["Cast", "Mul"]
    else:
        assert [node.op_type for node in found if "x" in node.input] == ["DequantizeLinear"]
