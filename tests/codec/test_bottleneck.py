"""The bottleneck as a whole: what travels, where gradients go, calibration, and modules of the user's own."""

from __future__ import annotations

import copy
import math
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from compoff.codec import Bottleneck, Decoder, Encoder, Geometry, TransformBottleneck
from compoff.errors import FeatureError
from compoff.losses import reconstruction

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = [(6, 8, 12), (6, 9, 11), (5, 16), (5, 13), (40,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_encode_then_decode(shape: tuple[int, ...]) -> None:
    bottleneck = Bottleneck(Geometry(shape), channels=3, num_centers=5).eval()
    y = torch.randn(4, *shape)
    bottleneck.calibrate(y)
    symbols = bottleneck.encode(y)
    assert symbols.dtype == torch.uint8
    assert tuple(symbols.shape) == (4, *bottleneck.latent_shape)
    assert int(symbols.max()) < 5
    with torch.no_grad():
        assert torch.equal(bottleneck(y), bottleneck.decode(symbols))
        # A sample's answer does not depend on its company.
        torch.testing.assert_close(bottleneck(y)[1:2], bottleneck(y[1:2]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_training_and_evaluation_give_the_same_feature(shape: tuple[int, ...]) -> None:
    bottleneck = Bottleneck(Geometry(shape), channels=3)
    y = torch.randn(4, *shape)
    bottleneck.calibrate(y)
    for layer in bottleneck.spectral_layers():
        layer.settle()
    trained = bottleneck.train()(y).detach()
    torch.testing.assert_close(trained, bottleneck.eval()(y).detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_encoder_centers_decoder_and_prior(shape: tuple[int, ...]) -> None:
    bottleneck = Bottleneck(Geometry(shape), channels=3).train()
    y = torch.randn(8, *shape)
    bottleneck.calibrate(y)
    output = bottleneck.run(y)
    (reconstruction(y, output.y_hat) + output.estimated_rate).backward()
    missing = [name for name, parameter in bottleneck.named_parameters() if parameter.grad is None]
    assert missing == []
    for name in (
        "encoder.layer.weight",
        "quantizer.centers",
        "decoder.to_feature.weight",
        "decoder.scale",
        "prior.logits",
    ):
        grad = bottleneck.get_parameter(name).grad
        assert grad is not None
        assert float(grad.abs().sum()) > 0, name


def test_the_rate_reaches_the_encoder() -> None:
    bottleneck = Bottleneck(Geometry((4, 8)), channels=2).train()
    with torch.no_grad():
        bottleneck.prior.logits.normal_()
    y = torch.randn(8, 4, 8)
    bottleneck.calibrate(y)
    bottleneck.run(y).estimated_rate.backward()
    assert isinstance(bottleneck.encoder, Encoder)
    grad = bottleneck.encoder.weight.grad
    assert grad is not None
    assert float(grad.abs().sum()) > 0


def test_calibration_is_kept_with_the_weights() -> None:
    bottleneck = Bottleneck(Geometry((4, 8)), channels=2)
    assert not bottleneck.calibrated
    bottleneck.calibrate(torch.randn(8, 4, 8) * 30)
    again = Bottleneck(Geometry((4, 8)), channels=2)
    again.load_state_dict(bottleneck.state_dict())
    assert again.calibrated
    assert float(again.quantizer.gain) == float(bottleneck.quantizer.gain) != 1.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_the_feature_keeps_its_dtype(dtype: torch.dtype, training: bool) -> None:
    bottleneck = Bottleneck(Geometry((4, 8)), channels=2).train(training)
    assert bottleneck(torch.randn(2, 4, 8).to(dtype)).dtype == dtype


@pytest.mark.parametrize("quality", [99, -1, math.nan, 2.5, True, None, "x"])
@pytest.mark.parametrize("kind", [Bottleneck, TransformBottleneck])
def test_only_a_quality_that_there_is_can_be_chosen(kind: type[Bottleneck], quality: Any) -> None:
    bottleneck = kind(Geometry((4, 8)), channels=2)
    before = bottleneck.chosen
    with pytest.raises(FeatureError, match=r"there is no quality|quality is .*; expected a whole number"):
        bottleneck.choose(quality)
    assert bottleneck.chosen == before
    for index in range(len(bottleneck.qualities())):
        bottleneck.choose(index)
        assert bottleneck.chosen == index


def test_copies_and_pickles_answer_alike() -> None:
    bottleneck = Bottleneck(Geometry((4, 9, 7)), channels=2).eval()
    y = torch.randn(2, 4, 9, 7)
    bottleneck.calibrate(y)
    expected = bottleneck(y)
    assert torch.equal(copy.deepcopy(bottleneck)(y), expected)
    assert torch.equal(pickle.loads(pickle.dumps(bottleneck))(y), expected)


@pytest.mark.parametrize("y", [torch.randn(2, 4, 9), torch.zeros(2, 4, 8, dtype=torch.int64), torch.zeros(0, 4, 8)])
def test_a_feature_of_another_kind_is_refused(y: torch.Tensor) -> None:
    with pytest.raises(FeatureError):
        Bottleneck(Geometry((4, 8)), channels=2)(y)


@pytest.mark.parametrize(("channels", "num_centers"), [(0, 8), (2, 1), (2, 257)])
def test_sizes_out_of_range_are_refused(channels: int, num_centers: int) -> None:
    with pytest.raises(FeatureError, match="expected"):
        Bottleneck(Geometry((4, 8)), channels, num_centers)


# -- modules of the user's own -----------------------------------------------------------------------------------------


class Flattening(nn.Module):
    """Any shape to any shape through one linear layer."""

    def __init__(self, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
        super().__init__()
        self.expected = expected
        self.norm = nn.BatchNorm1d(torch.Size(given).numel())
        self.layer = nn.Linear(torch.Size(given).numel(), torch.Size(expected).numel())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(x.flatten(1))).unflatten(1, self.expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_own_encoder_and_decoder(shape: tuple[int, ...]) -> None:
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def factory(given: tuple[int, ...], expected: tuple[int, ...]) -> nn.Module:
        asked.append((given, expected))
        return Flattening(given, expected)

    bottleneck = Bottleneck(Geometry(shape), channels=3, encoder=factory, decoder=factory)
    latent_shape = (3, *Geometry(shape).latent_space)
    assert asked == [(shape, latent_shape), (latent_shape, shape)]
    assert isinstance(bottleneck.encoder, Flattening)
    assert bottleneck.encoder.training
    assert int(bottleneck.encoder.norm.num_batches_tracked) == 0  # the shape check left no trace
    y = torch.randn(4, *shape)
    bottleneck.calibrate(y)
    output = bottleneck.run(y)
    reconstruction(y, output.y_hat).backward()
    assert output.y_hat.shape == y.shape
    assert all(parameter.grad is not None for parameter in bottleneck.encoder.parameters())
    assert float(bottleneck.semi_orthogonality_error()) == 0.0
    assert bottleneck.spectral_layers() == []


def test_one_of_ours_beside_one_of_the_users() -> None:
    geometry = Geometry((4, 8))
    assert isinstance(Bottleneck(geometry, 2, encoder=Flattening).decoder, Decoder)
    assert isinstance(Bottleneck(geometry, 2, decoder=Flattening).encoder, Encoder)


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (lambda given, _: Flattening(given, (7, 3)), r"into \(7, 3\) per sample; expected"),
        (lambda given, expected: nn.Identity(), "expected"),
        (lambda given, expected: nn.Linear(5, 3), "cannot take"),
        (lambda given, expected: Pair(), "into tuple per sample"),
        (lambda given, expected: torch.relu, "expected a torch.nn.Module"),
        (
            lambda given, expected: given[7],
            r"factory raised IndexError \(tuple index out of range\); it is called with",
        ),
    ],
)
@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_own_modules_that_do_not_fit_are_refused(role: str, factory: Callable[..., nn.Module], words: str) -> None:
    with pytest.raises(FeatureError, match=f"your {role}.*{words}"):
        Bottleneck(Geometry((4, 9)), 2, **{role: factory})
