"""PyTorch programs as ONNX: the same answers at every batch size, or an error that says why not."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from compoff.errors import BackendError
from compoff.onnx_export import Agreement, agreement, every_other, to_onnx
from compoff.onnx_session import OnnxSession, OnnxTensor
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


class Awkward(nn.Module):
    """Outputs that an exporter may stumble over: an input given back, one value twice, a constant, two rows a sample.

    One input is not used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.table = nn.Buffer(torch.arange(5))

    def forward(self, x: Tensor, mask: Tensor, unused: Tensor) -> Any:
        y = self.layer(x)
        return y.argmax(-1).to(torch.uint8), mask, y, y.clone(), self.table + 0, torch.cat([y, -y])


def program(model: nn.Module, *example: Tensor) -> TorchProgram:
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    return TorchProgram(torch.export.export(model.eval(), example, dynamic_shapes=free))


@pytest.fixture(scope="module")
def awkward() -> TorchProgram:
    torch.manual_seed(0)
    return program(Awkward(), torch.zeros(2, 3), torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, 2))


def inputs(batch: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(batch)
    x = rng.standard_normal((batch, 3), np.float32)
    return [x, rng.random((batch, 6)) < 0.5, np.zeros((batch, 2), np.float32)]


@pytest.fixture(scope="module")
def data(awkward: TorchProgram) -> bytes:
    return to_onnx(awkward, "awkward", [inputs(1), inputs(3)], metadata={"owner": "this test"})[0]


def test_the_same_answers_at_any_batch(awkward: TorchProgram, data: bytes) -> None:
    session = OnnxSession(data, "awkward", threads=1)
    for batch in (1, 2, 7):
        expected, found = awkward.run(inputs(batch)), session.run(inputs(batch))
        assert [one.dtype for one in found] == [one.dtype for one in expected]
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_the_file_says_what_it_takes_and_whose_it_is(data: bytes) -> None:
    session = OnnxSession(data, "awkward")
    assert session.inputs == (
        OnnxTensor((None, 3), "float32"),
        OnnxTensor((None, 6), "bool"),
        OnnxTensor((None, 2), "float32"),
    )
    assert session.outputs[0] == OnnxTensor((None,), "uint8")
    assert session.outputs[4] == OnnxTensor((5,), "int64")
    assert session.metadata == {"owner": "this test"}
    assert b"/" not in data, "no names of files of the machine that made it"
    graph = onnx.load_from_string(data).graph
    ends = [graph.input[0], graph.output[2], graph.output[5]]
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in ends] == ["batch", "batch", "2*batch"]


def test_the_same_program_gives_the_same_bytes(awkward: TorchProgram, data: bytes) -> None:
    assert to_onnx(awkward, "awkward", [inputs(2)], metadata={"owner": "this test"})[0] == data


@pytest.mark.parametrize("change", [lambda data: data[:-200], lambda _: b"", lambda _: b"nothing of the kind"])
def test_damaged_bytes_are_refused(data: bytes, change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BackendError, match=r"cannot load awkward\.onnx .*compile it again"):
        OnnxSession(change(data), "awkward.onnx")


def test_a_type_that_the_runtime_lacks_an_operator_for_is_not_called_damage() -> None:
    helper = onnx.helper
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [1, 1, 2, 2]) for name in ("x", "w", "y")]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "graph", ends[:2], ends[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    with pytest.raises(BackendError, match=r"lacks an operator for numbers of this type; use a model in float32"):
        OnnxSession(model.SerializeToString(), "double.onnx")


def test_as_many_threads_work_as_were_asked_for(data: bytes) -> None:
    session = OnnxSession(data, "awkward.onnx", threads=1)
    assert session._session.get_session_options().intra_op_num_threads == 1
    with pytest.raises(BackendError, match="threads is 1025; expected at most 1024"):
        OnnxSession(data, "awkward.onnx", threads=1025)


def test_other_inputs_are_refused(data: bytes) -> None:
    session = OnnxSession(data, "awkward.onnx")
    with pytest.raises(BackendError, match="takes 3 inputs, 1 were given"):
        session.run(inputs(1)[:1])
    with pytest.raises(BackendError, match=r"failed in awkward\.onnx"):
        session.run([*inputs(1)[:2], np.zeros((1, 2), np.int32)])


def test_a_missing_runtime_is_named(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="pip install onnxruntime"):
        OnnxSession(data, "awkward.onnx")


def test_a_missing_exporter_is_named(awkward: TorchProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BackendError, match=r"compoff\[onnx\]"):
        to_onnx(awkward, "awkward", [])


def test_what_has_no_translation_is_refused() -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(BackendError, match="special cannot be written as ONNX"):
        to_onnx(program(Special(), torch.zeros(2, 3)), "special", [])


def test_programs_that_do_not_agree_are_refused(awkward: TorchProgram) -> None:
    with pytest.raises(BackendError, match="does not agree with PyTorch"):
        to_onnx(awkward, "awkward", [inputs(4)], most_deviation=-1.0)


def test_every_batch_and_every_output_counts() -> None:
    far, near, same = ([np.array([2.0]), np.array([value])] for value in (2.5, 2.1, 2.0))
    assert agreement([(same, far), (same, near)]).deviation == pytest.approx(0.25)
    nothing = [np.array([np.nan, 1.0])]
    assert agreement([(nothing, nothing)]) == Agreement(symbols=1.0, deviation=0.0)
    assert every_other(()).tolist() is True


def test_agreement_counts_symbols_and_measures_the_rest() -> None:
    symbols, values = np.array([1, 2, 3, 4]), np.array([1.0, -np.inf, 4.0])
    assert agreement([([symbols, values], [symbols, values])]).symbols == 1.0
    found = agreement([([symbols, values], [np.array([1, 2, 3, 5]), np.array([1.0, -np.inf, 4.2])])])
    assert found.symbols == 0.75
    assert found.deviation == pytest.approx(0.05)


@pytest.mark.parametrize(
    "found", [np.array([1.0]), np.array([1.0, 2.0], np.float32), np.array([1.0, np.nan]), np.array([1.0, np.inf])]
)
def test_another_shape_dtype_or_nan_does_not_agree_at_all(found: NDArray[Any]) -> None:
    assert agreement([([np.array([1.0, 2.0])], [found])]).deviation == math.inf
