"""Finite inputs that become NaN or infinity before the cut: an error in every runtime that can hold such a value."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FeatureError
from tests.fitting.test_fit import batches, signals, trained_net
from tests.small_networks import Skip, tiny_decoder, tiny_encoder

REFUSAL = r"sample 1 of this batch is finite, but becomes NaN or infinity on its way to 'body', which no symbol"


class Masked(nn.Module):
    """Attention whose mask may hide everything, in half precision where the last input says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Tensor, hidden: Tensor, scale: Tensor) -> Tensor:
        scores = (x @ x.transpose(1, 2)).masked_fill(hidden.unsqueeze(1), float("-inf"))
        y = scores.softmax(-1) @ x
        return self.body((y.half() * scale.half().view(-1, 1, 1)).float())


def fitted(codec: str) -> compoff.Wrapped:
    torch.manual_seed(0)
    net = trained_net()
    model = compoff.wrap(net, "body", example_input=signals(2), codec=codec, stride=4)  # pyright: ignore[reportArgumentType]
    compoff.fit(model, batches(4), steps=8)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> compoff.Wrapped:
    return fitted("transform")


@pytest.fixture(scope="module")
def heads(model: compoff.Wrapped) -> dict[str, compoff.Head]:
    head = compoff.export(model, "body")[0]
    calibration = list(signals(64, seed=5).split(16))
    return {
        "torch": head,
        "onnx": head.compile("onnx", threads=1),
        "int8": head.compile("onnx", precision="int8", batches=calibration, least_agreement=0.0, threads=1),
    }


def enormous(value: float = 3e38) -> Tensor:
    x = signals(3, seed=4)
    x[1] = value
    return x


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_number_far_out_of_range_is_refused_at_every_quality(heads: dict[str, compoff.Head], runtime: str) -> None:
    head, x = heads[runtime], enormous()
    for quality in (None, *range(head.payload_format.num_qualities)):
        with pytest.raises(FeatureError, match=REFUSAL):
            head(x, quality=quality)
    with pytest.raises(FeatureError, match=REFUSAL):
        head.symbols(x)
    assert len(head(x[[0, 2]])) > 0
    assert [part.tolist() for part in head.runner.run([x.numpy()])[1:]] == [[True, False, True]]


def test_integers_take_what_is_beyond_their_range_for_its_end(heads: dict[str, compoff.Head]) -> None:
    head = heads["int8"]
    assert len(head.runner.run([enormous().numpy()])) == 1
    assert np.array_equal(head.symbols(enormous())[0], head.symbols(enormous(1e6))[0])


class Standardized(nn.Module):
    """Divides by what may be zero, and takes a logarithm of what may be negative, before the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.score = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
        y = torch.relu(self.first(y))
        return self.score(self.body(torch.log(y + x.mean((1, 2, 3), keepdim=True))).mean((2, 3)))


@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (1.0, -9.0)])
def test_integers_say_so_where_floats_before_them_may_not_be_finite(scale: float, shift: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 3, 8, 8) + 0.1
    wrapped = compoff.wrap(Standardized(), "body", example_input=x, encoder=tiny_encoder, decoder=tiny_decoder)
    head = compoff.export(wrapped, "body")[0]
    small = head.compile("onnx", precision="int8", batches=[x], least_agreement=0.0, threads=1)
    bad = x.clone()
    bad[1] = bad[1] * scale + shift  # all alike, so that the deviation is zero; or below zero
    for one in (head, small):
        assert len(one(x)) > 0
        with pytest.raises(FeatureError, match=r"sample.* of this batch is finite, but becomes NaN"):
            one(bad)
        with pytest.raises(FeatureError, match="is finite, but becomes NaN"):
            one(bad[1:2], quality=0)


def test_integers_of_a_mask_that_hides_everything_are_refused() -> None:
    torch.manual_seed(0)
    x, hidden, scale = torch.rand(3, 2, 4), torch.zeros(3, 2, dtype=torch.bool), torch.ones(3)
    wrapped = compoff.wrap(Masked(), "body", example_input=(x, hidden, scale), codec="deepcod", channels=2)
    head = compoff.export(wrapped, "body")[0]
    small = head.compile("onnx", precision="int8", batches=[((x, hidden, scale),)], least_agreement=0.0, threads=1)
    assert len(small(x, hidden, scale)) > 0
    hidden[1] = True
    with pytest.raises(FeatureError, match="is finite, but becomes NaN"):
        small(x, hidden, scale)


@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="executorch is not installed")
def test_executorch_says_it_sample_by_sample(heads: dict[str, compoff.Head]) -> None:
    with pytest.raises(FeatureError, match=REFUSAL):
        heads["torch"].compile("executorch")(enormous())


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_the_model_itself_answers_nan_for_that_sample_alone(codec: str) -> None:
    model, x = fitted(codec), enormous()
    with model.at("body"), torch.no_grad():
        answer, expected = model(x), model(signals(3, seed=4))
    assert answer[1].isnan().all()
    assert torch.equal(answer[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_masks_that_hide_everything_and_half_precision(runtime: Any) -> None:
    torch.manual_seed(0)
    x, hidden, scale = torch.rand(3, 2, 4), torch.zeros(3, 2, dtype=torch.bool), torch.ones(3)
    wrapped = compoff.wrap(Masked(), "body", example_input=(x, hidden, scale), codec="deepcod", channels=2)
    head = compoff.export(wrapped, "body")[0]
    if runtime == "onnx":
        head = head.compile("onnx", threads=1)
    assert len(head(x, hidden, scale)) > 0
    for blind, factor in ((True, 1.0), (False, 6e4 * 8)):
        hidden[1], scale[1] = blind, factor
        with pytest.raises(FeatureError, match=REFUSAL):
            head(x, hidden, scale)


def test_each_of_several_codes_is_asked() -> None:
    torch.manual_seed(0)
    example = torch.rand(2, 3, 8, 8)
    wrapped = compoff.wrap(Skip(), "block2", example_input=example, encoder=tiny_encoder, decoder=tiny_decoder)
    head = compoff.export(wrapped, "block2")[0]
    first, second, *finite = head.runner.run([example.numpy()])
    assert (first.dtype, second.dtype) == (np.uint8, np.uint8)
    assert [one.tolist() for one in finite] == [[True, True]] * 2
    with pytest.raises(FeatureError, match=r"a sample of this batch .* 'block2'"):
        head(torch.full((2, 3, 8, 8), 3e38))
