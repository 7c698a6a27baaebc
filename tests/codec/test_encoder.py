"""The encoder against a plain matrix product over tiles, and Eq. 7 against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.codec import Encoder, Geometry
from compoff.codec.encoder import semi_orthogonality_error

SHAPES = [(6, 8, 12), (6, 9, 11), (6, 3, 10), (5, 16), (5, 13), (5, 2), (40,)]


def tiles(y: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The feature as ``(batch, *latent space, channels · tile)``, edges repeated."""
    widths = [(0, 0), (0, 0)] + [(0, full - size) for size, full in zip(geometry.space, geometry.padded, strict=True)]
    y = np.pad(y, widths, mode="edge")
    if not geometry.space:
        return y
    split = y.reshape(
        *y.shape[:2], *(n for pair in zip(geometry.latent_space, geometry.tile, strict=True) for n in pair)
    )
    axes = len(geometry.tile)
    places = [2 + 2 * axis for axis in range(axes)]
    return split.transpose(0, *places, 1, *(place + 1 for place in places)).reshape(len(y), *geometry.latent_space, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_is_one_matrix_over_tiles(shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape)
    encoder = Encoder(geometry, channels=3)
    y = torch.randn(2, *shape)
    matrix = encoder.weight.detach().flatten(1).numpy()
    expected = np.moveaxis(tiles(y.numpy(), geometry) @ matrix.T, -1, 1)
    with torch.no_grad():
        latent = encoder(y)
    assert tuple(latent.shape) == (2, 3, *geometry.latent_space)
    np.testing.assert_allclose(latent.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_layer_without_bias_that_starts_semi_orthogonal(shape: tuple[int, ...]) -> None:
    encoder = Encoder(Geometry(shape), channels=3)
    assert [name for name, _ in encoder.named_parameters()] == ["layer.weight"]
    assert float(semi_orthogonality_error(encoder.weight).detach()) < 1e-5


def test_macs_are_the_products_of_the_layer() -> None:
    assert Encoder(Geometry((64, 56, 56)), 8).macs == 14 * 14 * 8 * 64 * 16
    assert Encoder(Geometry((5, 13)), 3).macs == 4 * 3 * 5 * 4
    assert Encoder(Geometry((40,)), 3).macs == 120


@pytest.mark.parametrize("shape", [(3, 4, 2, 2), (7, 5, 3), (4, 10), (1, 9)])
def test_equation_7(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64)
    kernel = np.moveaxis(weight.numpy(), 0, -1).reshape(-1, shape[0])  # E': (h * w * c_i, c_o), as the paper writes it
    expected = np.linalg.norm(kernel.T @ kernel - np.eye(shape[0]))
    assert float(semi_orthogonality_error(weight)) == pytest.approx(expected, rel=1e-12)


def test_equation_7_pulls_a_kernel_to_an_isometry() -> None:
    weight = torch.randn(4, 12, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        semi_orthogonality_error(weight).backward()
        optimizer.step()
    assert np.linalg.svd(weight.detach().numpy(), compute_uv=False) == pytest.approx(np.ones(4), abs=0.05)


def test_equation_7_has_a_finite_gradient_where_it_is_zero() -> None:
    weight = torch.eye(3, 12, requires_grad=True)
    semi_orthogonality_error(weight).backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_isometry_keeps_distances_of_what_it_measures(shape: tuple[int, ...]) -> None:
    geometry = Geometry(shape)
    if geometry.padded != geometry.space:
        return  # padding repeats elements, which a distance then counts twice
    encoder = Encoder(geometry, channels=3)
    codes = torch.randn(2, 3, *geometry.latent_space)
    rows = encoder.weight.detach().flatten(1)
    measured = torch.einsum("bc...,cn->b...n", codes, rows)  # inside the row space of the encoder
    assert float(measured.norm()) == pytest.approx(float(codes.norm()), rel=1e-5)
