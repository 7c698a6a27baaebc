"""A program in integers: what a last layer rounds to whole steps it gives as whole steps."""

from __future__ import annotations

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
    with pytest.raises(
        BackendError, match=f"all that was given as input 0 of it is {np.float32(value)}; pass batches of real"
    ):
        quantized(b"", "it", [sample, sample])


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
