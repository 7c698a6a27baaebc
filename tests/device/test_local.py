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
from compoff.wire.replies import reply_form

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


@pytest.mark.parametrize("reply", ["argmax", compoff.TopK(2)])
def test_it_answers_in_the_form_that_the_edge_answers_in(net: Net, head: compoff.Head, reply: Any) -> None:
    x = torch.randn(3, 3, 8, 8)
    answer = whole_model(net, head, reply_form(reply))(x)["scores"]
    expected = net(x)["scores"]
    if reply == "argmax":
        assert torch.equal(answer, expected.argmax(1))
        return
    values, indices = expected.topk(2, dim=1)
    torch.testing.assert_close(answer.values, values)
    assert torch.equal(answer.indices, indices)


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
