"""The decoder's shapes, its guarantee (Eq. 8), its attention against numpy, and its start at the level of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.codec import Bottleneck, Decoder, Geometry
from compoff.codec.decoder import ResidualUp, SelfAttention, _factors
from compoff.codec.spectral import SpectralConv
from compoff.fitting.measure import local_gain

SHAPES = [(6, 8, 12), (6, 9, 11), (6, 3, 10), (5, 16), (5, 13), (5, 2), (40,)]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_feature_comes_back_in_its_own_size(shape: tuple[int, ...], stride: int) -> None:
    geometry = Geometry(shape, stride)
    decoder = Decoder(geometry, channels=3)
    assert tuple(decoder(torch.randn(2, 3, *geometry.latent_space)).shape) == (2, *shape)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=2))
def test_the_blocks_multiply_to_the_tile(tile: list[int]) -> None:
    factors = _factors(tuple(tile))
    assert np.prod(factors, axis=0).tolist() == tile
    assert all(all(step == 1 or all(step % n for n in range(2, step)) for step in factor) for factor in factors)


def test_every_layer_is_normalised() -> None:
    decoder = Decoder(Geometry((6, 8, 12)), channels=3)
    owned = {name for name, _ in decoder.named_parameters()}
    spectral = {
        f"{path}.{name}"
        for path, module in decoder.named_modules()
        if isinstance(module, SpectralConv)
        for name in ("weight", "bias")
    }
    assert owned - spectral == {"scale", "offset", "stages.0.gain", "stages.2.gain"}


def test_attention_is_the_sum_over_positions() -> None:
    attention = SelfAttention(8, (3, 4)).eval()
    with torch.no_grad():
        attention.gain.fill_(0.7)
        for layer in (attention.query, attention.key, attention.value, attention.project):
            layer.bias.normal_()
            layer.settle()
    x = torch.randn(2, 8, 3, 4)

    def applied(layer: SpectralConv, flat: np.ndarray) -> np.ndarray:
        weight = layer.weight.detach().flatten(1).numpy().astype(np.float64)
        return weight / np.linalg.svd(weight)[1][0] @ flat + layer.bias.detach().numpy()[:, None]

    for sample, found in zip(x.numpy(), attention(x).detach().numpy(), strict=True):
        flat = sample.reshape(8, 12).astype(np.float64)
        query, key, value = (applied(layer, flat) for layer in (attention.query, attention.key, attention.value))
        shares = np.exp(query.T @ key)
        shares /= shares.sum(1, keepdims=True)
        mixed = np.stack([sum(shares[i, j] * value[:, j] for j in range(12)) for i in range(12)], axis=1)
        expected = flat + 0.7 * applied(attention.project, mixed)
        np.testing.assert_allclose(found.reshape(8, 12), expected, atol=1e-4)


def test_attention_pools_large_maps() -> None:
    attention = SelfAttention(8, (56, 29))
    assert attention.pool == (4, 2)
    with torch.no_grad():
        attention.gain.fill_(1.0)
    assert attention(torch.randn(1, 8, 56, 29)).shape == (1, 8, 56, 29)


@settings(max_examples=20)
@given(st.sampled_from([(1, 1), (2, 2), (3, 2), (2,), (5,)]), st.integers(0, 1000))
def test_a_residual_block_obeys_its_bound(factor: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    block = ResidualUp(3, 5, factor).eval()
    with torch.no_grad():
        for layer in (block.enlarge, block.refine, block.shortcut):
            layer.weight.normal_()
            layer.bias.normal_()
            layer.settle()
        first = torch.randn(8, 3, *(4,) * len(factor))
        second = first + torch.randn(8, 3, *(4,) * len(factor)) * 10 ** torch.linspace(-3, 1, 8).view(
            -1, 1, *(1,) * len(factor)
        )
        moved = (block(first) - block(second)).flatten(1).norm(dim=1)
    assert bool((moved <= block.lipschitz_bound * (first - second).flatten(1).norm(dim=1) * (1 + 1e-4)).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_equation_8_where_attention_is_off(shape: tuple[int, ...]) -> None:
    """The gain of attention starts at zero: the decoder is then a chain of normalised layers, and its bound is one."""
    bottleneck = Bottleneck(Geometry(shape), channels=3).eval()
    decoder = bottleneck.decoder
    assert isinstance(decoder, Decoder)
    with torch.no_grad():
        decoder.scale.fill_(-2.5)
        for layer in bottleneck.spectral_layers():
            layer.weight.normal_()
            layer.bias.normal_()
            layer.settle()
        first, second = torch.randn(2, 16, *bottleneck.latent_shape) * 4
        moved = (decoder(first) - decoder(second)).flatten(1).norm(dim=1)
    bound = decoder.lipschitz_bound
    assert bool((moved <= bound * (first - second).flatten(1).norm(dim=1)).all())
    symbols = torch.randint(0, 8, (2, *bottleneck.latent_shape), dtype=torch.uint8)
    assert 0 < local_gain(bottleneck, symbols) <= bound * (1 + 1e-4)


def test_the_scale_is_part_of_the_bound() -> None:
    decoder = Decoder(Geometry((4, 8)), channels=2).eval()
    before = decoder.lipschitz_bound
    with torch.no_grad():
        decoder.scale.fill_(3.0)
    assert decoder.lipschitz_bound == pytest.approx(3 * before)


@pytest.mark.parametrize("shape", SHAPES)
def test_calibration_starts_at_the_level_of_the_features(shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape)
    decoder = Decoder(geometry, channels=3)
    y = torch.randn(32, *shape) * 50 + 1000
    z_hat = torch.randn(32, 3, *geometry.latent_space) * 4
    decoder.calibrate(z_hat, y)
    with torch.no_grad():
        y_hat = decoder(z_hat)
    assert float(y_hat.mean()) == pytest.approx(float(y.mean()), rel=0.02)
    assert float(y_hat.std()) == pytest.approx(float(y.std()), rel=0.5)


@pytest.mark.parametrize("y", [torch.full((1, 40), 3.0), torch.randn(1, 40), torch.zeros(4, 40)])
def test_a_batch_without_variation_leaves_the_scale(y: torch.Tensor) -> None:
    decoder = Decoder(Geometry((40,)), channels=3)
    decoder.calibrate(torch.randn(len(y), 3), y)
    assert float(decoder.scale.detach()) == 1.0
    assert bool(torch.isfinite(decoder.offset).all())


def test_a_long_flat_feature_needs_no_square_matrix() -> None:
    decoder = Decoder(Geometry((6000,)), channels=4)
    assert sum(parameter.numel() for parameter in decoder.parameters()) < 7e6
    assert decoder(torch.zeros(2, 4)).shape == (2, 6000)
