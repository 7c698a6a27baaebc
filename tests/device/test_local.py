"""The whole model on the device: a callable, a PyTorch model, an ONNX file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import compoff
from compoff.device.local import whole_model
from compoff.errors import BackendError, FeatureError, LocalProtocolError
from compoff.manifest import TensorSpec
from compoff.wire.replies import reply_form
from tests.pretended import pretended_cards

if TYPE_CHECKING:
    from pathlib import Path


class Net(torch.nn.Module):
    """A convolution and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.classifier = torch.nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.stem(x))
        return {"scores": self.classifier(y.mean((2, 3))), "map": y}


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def head(net: Net) -> compoff.Head:
    wrapped = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 8, 8))
    head = compoff.export(wrapped, "input")[0]
    wrapped.unwrap()
    return head


def test_a_callable_is_called_as_it_is(head: compoff.Head) -> None:
    def double(x: int) -> int:
        return 2 * x

    assert whole_model(double, head) is double


def test_a_model_records_nothing_for_a_backward_pass(net: Net, head: compoff.Head) -> None:
    x = torch.randn(1, 3, 8, 8)
    answer = whole_model(net, head)(x)
    assert not answer["scores"].requires_grad
    assert torch.equal(answer["scores"], net(x)["scores"])
    assert torch.is_grad_enabled()


def test_a_model_in_training_mode_is_refused(net: Net, head: compoff.Head) -> None:
    try:
        with pytest.raises(LocalProtocolError, match=r"in training mode.*give local=model.eval\(\)"):
            whole_model(net.train(), head)
    finally:
        net.eval()


class Normed(Net):
    """One whose answer and buffers change in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("stem", torch.nn.Sequential(self.stem, torch.nn.BatchNorm2d(4)))


@pytest.mark.parametrize("on_failure", ["local", "hedge"])
def test_a_model_in_training_mode_later_is_refused_by_each_call(head: compoff.Head, on_failure: Any) -> None:
    x, model = torch.randn(1, 3, 8, 8), Normed().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with head.connect("127.0.0.1:9", on_failure=on_failure, local=model, timeout=2) as remote:
        expected = remote(x)["scores"]
        model.train()
        for given in (x, x.numpy()):
            with pytest.raises(LocalProtocolError, match=r"in training mode.*give local=model.eval\(\)"):
                remote(given)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        model.eval()
        assert torch.equal(remote(x)["scores"], expected)


def test_a_model_answers_in_its_own_precision_inside_autocast(net: Net, head: compoff.Head) -> None:
    x = torch.randn(1, 3, 8, 8)
    whole = whole_model(net, head)
    with torch.autocast("cpu", torch.bfloat16):
        answer = whole(x)["scores"]
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(answer, net(x)["scores"], rtol=0, atol=0)


def test_an_onnx_file_answers_as_the_remote_would(net: Net, head: compoff.Head, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    path = tmp_path / "whole.onnx"
    x = torch.randn(2, 3, 8, 8)
    torch.onnx.export(net, (x,), path, dynamo=True, verbose=False)
    whole = whole_model(path, head)
    expected = net(x)
    answer, plain = whole(x), whole(x.numpy())
    for name in ("scores", "map"):
        torch.testing.assert_close(answer[name], expected[name], atol=1e-5, rtol=0)
        assert torch.equal(whole(x=x, flag=True)[name], answer[name])
        assert isinstance(plain[name], np.ndarray)
        np.testing.assert_allclose(plain[name], expected[name].detach().numpy(), atol=1e-5)
    with pytest.raises(FeatureError, match="2 inputs were given"):
        whole(x, x)
    for keywords in ({"x": x, "y": x}, {"y": x}):
        with pytest.raises(FeatureError, match=r"0 inputs were given, and by name .*y"):
            whole(**keywords)
    with pytest.raises(FeatureError, match=r"takes no such inputs: .*(dimension|INVALID_ARGUMENT)"):
        whole(torch.randn(2, 4, 8, 8))
    unknown = compoff.Head(replace(head.manifest, outputs=(), structure={}), head.tables, head.runner)
    several = whole_model(path, unknown)(x)  # what the model returns is known only once the edge has answered
    assert isinstance(several, tuple)
    assert torch.equal(several[0], answer["scores"])
    torch.onnx.export(net.stem, (x,), path, dynamo=True, verbose=False)
    assert whole_model(path, unknown)(x).shape == (2, 4, 8, 8)
    with pytest.raises(BackendError, match="returns 1 tensors, and the model of this head returns 2"):
        whole_model(path, head)


def _written(path: Path, shape: list[Any], more: str, kind: int = 1) -> Path:
    """A file that gives what a head of `_one_output` takes, and one of its rows or columns (`more`) again behind it."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    end = [helper.make_tensor_value_info("x", 1, ["batch", 4]), helper.make_tensor_value_info("y", kind, shape)]
    # What is compressed has a size that nothing infers.
    nodes = [
        helper.make_node("Compress", ["x", "which"], ["more"], axis=0 if more == "rows" else 1),
        helper.make_node("Concat", ["x", "more"], ["z"], axis=0 if more == "rows" else 1),
        helper.make_node("Cast", ["z"], ["y"], to=kind),
    ]
    held = [numpy_helper.from_array(np.array([bool(more)]), "which")]
    graph = helper.make_graph(nodes, "graph", end[:1], end[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def _one_output(head: compoff.Head) -> compoff.Head:
    specs = (TensorSpec((4,), "float32"),)
    manifest = replace(head.manifest, inputs=specs, outputs=specs, structure={"leaf": 0}, call={})
    return compoff.Head(manifest, head.tables, head.runner)


def test_a_file_of_another_model_is_refused(head: compoff.Head, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    one, path = _one_output(head), tmp_path / "other.onnx"
    told = r"as tensor 0, and the model of this head returns float32 of shape \('batch', 4\); export that model"
    with pytest.raises(BackendError, match=r"returns float32 of shape \(None, 5\) " + told):
        whole_model(_written(path, ["batch", 5], "columns"), one)
    with pytest.raises(BackendError, match=r"returns float64 of shape \(None, 4\) " + told):
        whole_model(_written(path, ["batch", 4], "", 11), one)
    free = whole_model(_written(path, ["batch", "classes"], "columns"), one)  # the file does not say it
    with pytest.raises(BackendError, match=r"returns float32 of shape \(2, 5\) " + told):
        free(np.ones((2, 4), np.float32))
    with pytest.raises(BackendError, match=r"answers \[2\] samples with 3 in tensor 0; export the whole model with a"):
        whole_model(_written(path, ["more", 4], "rows"), one)(np.ones((2, 4), np.float32))
    right = whole_model(_written(path, ["batch", "classes"], ""), one)
    assert right(np.ones((2, 4), np.float32)).tolist() == [[1] * 4] * 2


@pytest.mark.parametrize("reply", ["argmax", compoff.TopK(2)])
def test_it_answers_in_the_form_that_the_edge_answers_in(net: Net, head: compoff.Head, reply: Any) -> None:
    x = torch.randn(3, 3, 8, 8)
    answer = whole_model(net, head, reply_form(reply))(x)["scores"]
    plain = whole_model(net, head, reply_form(reply))(x.numpy())["scores"]
    expected = net(x)["scores"]
    if reply == "argmax":
        assert torch.equal(answer, expected.argmax(1))
        assert isinstance(plain, np.ndarray)
        assert plain.tolist() == answer.tolist()
        return
    values, indices = expected.topk(2, dim=1)
    torch.testing.assert_close(answer.values, values)
    assert torch.equal(answer.indices, indices)
    assert isinstance(plain.values, np.ndarray)
    assert plain.indices.tolist() == answer.indices.tolist()


def test_a_file_that_is_not_there(head: compoff.Head, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"local is '.*nope\.onnx', and there is no such file"):
        whole_model(tmp_path / "nope.onnx", head)


def test_a_file_that_is_no_model(head: compoff.Head, tmp_path: Path) -> None:
    path = tmp_path / "whole.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"whole\.onnx|onnxruntime"):
        whole_model(str(path), head)


def test_a_remote_with_the_model_itself(net: Net, head: compoff.Head) -> None:
    x = torch.randn(1, 3, 8, 8)
    remote = head.connect("127.0.0.1:9", on_failure="local", local=net, timeout=2)
    with remote:
        assert torch.equal(remote(x)["scores"], net(x)["scores"])
        assert torch.equal(remote(x=x)["scores"], net(x)["scores"])
        assert remote.last is not None
        assert remote.last.source == "local"


def test_a_model_called_with_arrays_answers_with_arrays(net: Net, head: compoff.Head) -> None:
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    expected = net(torch.from_numpy(x))
    for given in (x, x[::-1].copy()[::-1], np.asfortranarray(x)):
        answer = whole_model(net, head)(given)
        assert {name: type(value) for name, value in answer.items()} == {"scores": np.ndarray, "map": np.ndarray}
        np.testing.assert_allclose(answer["scores"], expected["scores"].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_on_a_card_answers_as_the_edge_does_on_the_cpu(head: compoff.Head) -> None:
    x = torch.randn(2, 3, 8, 8)
    net = Net().eval()
    expected = net(x)["scores"].detach()
    with pretended_cards():
        local = whole_model(net.to("cuda:1"), head)
        for given in (x, x.to("cuda:1"), x.to("cuda:0")):
            answer = local(given)["scores"]
            assert answer.device == torch.device("cpu")
            torch.testing.assert_close(answer, expected)
        assert isinstance(local(x.numpy())["scores"], np.ndarray)
        assert whole_model(Net().eval(), head)(x.to("cuda"))["scores"].device == torch.device("cpu")
