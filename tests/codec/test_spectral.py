"""Eq. 9 against numpy's singular values, and the bound of a layer against its true gain."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from compoff.codec.spectral import SpectralConv, largest_singular_value

# in, out, kernel, factor, input size
LAYERS = [
    (3, 5, (), None, ()),
    (3, 5, (3,), None, (7,)),
    (4, 2, (3, 3), None, (5, 6)),
    (2, 6, (1, 1), None, (4, 4)),
    (3, 4, (3,), (2,), (5,)),
    (1, 2, (2,), (2,), (5,)),
    (2, 4, (3, 3), (2, 2), (4, 3)),
    (2, 3, (2, 2), (2, 2), (4, 3)),
    (2, 2, (3, 3), (3, 2), (3, 3)),
    (2, 3, (5, 3), (5, 1), (2, 4)),
]


def made(in_channels: int, out_channels: int, kernel: tuple[int, ...], factor: tuple[int, ...] | None) -> SpectralConv:
    layer = SpectralConv(in_channels, out_channels, kernel, factor)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight) * 3)
        layer.bias.copy_(torch.randn_like(layer.bias))
    return layer


def matrix_of(layer: SpectralConv) -> np.ndarray:
    """Eq. 9's W: one row an output channel."""
    weight = layer.weight.detach().numpy()
    return (np.swapaxes(weight, 0, 1) if layer.factor else weight).reshape(layer.bias.numel(), -1)


def dense(layer: SpectralConv, shape: tuple[int, ...]) -> np.ndarray:
    """The layer's linear part as one matrix, column by column."""
    size = math.prod(shape)
    with torch.no_grad():
        columns = layer(torch.eye(size).view(size, *shape)) - layer(torch.zeros(1, *shape))
    return columns.flatten(1).T.double().numpy()


@pytest.mark.parametrize(("rows", "columns"), [(4, 9), (9, 4), (5, 5), (1, 6)])
def test_power_iteration_finds_the_largest_singular_value(rows: int, columns: int) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64)
    start = torch.nn.functional.normalize(torch.randn(rows, dtype=torch.float64), dim=0)
    sigma, u = largest_singular_value(matrix, start, 500)
    left, singular, _ = np.linalg.svd(matrix.numpy())
    assert float(sigma) == pytest.approx(singular[0], rel=1e-9)
    assert abs(float(left[:, 0] @ u.numpy())) == pytest.approx(1.0, rel=1e-6)


def test_the_gradient_of_the_singular_value_is_its_outer_product() -> None:
    matrix = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    sigma, _ = largest_singular_value(matrix, torch.ones(4, dtype=torch.float64) / 2, 500)
    sigma.backward()
    left, _, right = np.linalg.svd(matrix.detach().numpy())
    assert matrix.grad is not None
    np.testing.assert_allclose(matrix.grad.numpy(), np.outer(left[:, 0], right[0]), atol=1e-6)


@pytest.mark.parametrize(("in_channels", "out_channels", "kernel", "factor", "space"), LAYERS)
def test_equation_9(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], factor: tuple[int, ...] | None, space: tuple[int, ...]
) -> None:
    del space
    layer = made(in_channels, out_channels, kernel, factor)
    layer.settle()
    sigma = np.linalg.svd(matrix_of(layer), compute_uv=False)[0]
    found = layer.eval().normalized_weight().detach().numpy()
    np.testing.assert_allclose(found, layer.weight.detach().numpy() / sigma, rtol=1e-4)


def test_one_iteration_a_training_step_converges_and_evaluation_stands_still() -> None:
    layer = made(4, 6, (3, 3), None).train()
    x = torch.randn(1, 4, 5, 5)
    for _ in range(100):
        layer(x)
    sigma = np.linalg.svd(matrix_of(layer), compute_uv=False)[0]
    assert np.linalg.norm((layer.weight / layer.normalized_weight()).detach().numpy() - sigma) < 1e-2 * sigma
    layer.eval()
    before = layer.u.clone()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer.u, before)


@pytest.mark.parametrize(("in_channels", "out_channels", "kernel", "factor", "space"), LAYERS)
def test_no_input_is_magnified_beyond_the_bound(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], factor: tuple[int, ...] | None, space: tuple[int, ...]
) -> None:
    layer = made(in_channels, out_channels, kernel, factor).eval()
    layer.settle()
    gain = np.linalg.norm(dense(layer, (in_channels, *space)), ord=2)
    assert gain <= layer.lipschitz_bound * (1 + 1e-6)


def test_the_bound_holds_where_each_output_has_an_input_of_its_own() -> None:
    """One input copied to two outputs: the kernel is an isometry as a matrix of output channels, the layer is not."""
    layer = SpectralConv(1, 2, (2,), (2,)).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2).view(1, 2, 2))
    layer.settle()
    assert np.linalg.norm(dense(layer, (1, 3)), ord=2) == pytest.approx(math.sqrt(2))
    assert layer.lipschitz_bound == pytest.approx(math.sqrt(2))


def test_asking_for_the_bound_changes_nothing() -> None:
    layer = made(3, 4, (3,), (2,)).train()
    before = layer.u.clone()
    assert layer.lipschitz_bound > 0
    assert torch.equal(layer.u, before)


@pytest.mark.parametrize(("in_channels", "out_channels", "kernel", "factor", "space"), LAYERS)
def test_folding_keeps_output_and_bound(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], factor: tuple[int, ...] | None, space: tuple[int, ...]
) -> None:
    layer = made(in_channels, out_channels, kernel, factor).eval()
    layer.settle()
    folded = copy.deepcopy(layer)
    folded.fold()
    x = torch.randn(2, in_channels, *space)
    with torch.no_grad():
        output = layer(x)
        assert tuple(output.shape) == (2, out_channels, *(s * f for s, f in zip(space, factor or (1, 1), strict=False)))
        torch.testing.assert_close(folded(x), output)
    assert folded.lipschitz_bound == pytest.approx(layer.lipschitz_bound, rel=1e-5)
