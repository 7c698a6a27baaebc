"""Eq. 12 and 13 against numpy, the straight-through gradient, and the unit of the centers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compoff.codec import Quantizer
from compoff.codec.quantizer import hard_assign, look_up, soft_assign

values = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)
levels = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=9, unique=True)


@given(values, levels)
def test_equation_12(latent: list[float], centers: list[float]) -> None:
    found = hard_assign(torch.tensor(latent), torch.tensor(centers))
    assert found.dtype == torch.uint8
    distances = np.abs(np.array(latent, np.float32)[:, None] - np.array(centers, np.float32))
    assert found.tolist() == [min(range(len(row)), key=lambda j, row=row: row[j]) for row in distances]


@pytest.mark.parametrize("sharpness", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("power", [1, 2])
def test_equation_13(power: int, sharpness: float) -> None:
    """Power 1 is the equation as printed, 2 the authors' code."""
    rng = np.random.default_rng(3)
    latent, centers = rng.normal(size=(2, 3, 4)) * 4, rng.normal(size=5) * 4
    weights = soft_assign(torch.from_numpy(latent), torch.from_numpy(centers), sharpness, power)
    expected = np.empty((*latent.shape, 5))
    for place in np.ndindex(*latent.shape):
        terms = [np.exp(-sharpness * np.linalg.norm(latent[place] - center) ** power) for center in centers]
        expected[place] = np.array(terms) / sum(terms)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-9, atol=1e-15)
    value = sum(expected[..., j] * centers[j] for j in range(5))
    np.testing.assert_allclose((weights @ torch.from_numpy(centers)).numpy(), value, rtol=1e-9)


def test_soft_assignment_survives_values_far_from_every_center() -> None:
    weights = soft_assign(torch.tensor([1e6, -1e6]), torch.tensor([-1.0, 1.0]))
    assert weights.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("num_centers", [2, 3, 8, 256])
def test_look_up_gives_every_center(num_centers: int) -> None:
    centers = torch.randn(num_centers)
    symbols = torch.arange(num_centers, dtype=torch.uint8)
    assert torch.equal(look_up(symbols, centers), centers)
    assert torch.equal(hard_assign(centers, centers), symbols)


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 3, 7), (4, 6)])
def test_training_sees_exactly_what_travels(shape: tuple[int, ...]) -> None:
    quantizer = Quantizer(num_centers=6).train()
    latent = torch.randn(shape) * 3
    quantizer.calibrate(latent)
    value, weights = quantizer(latent)
    symbols = quantizer.symbols(latent)
    assert torch.equal(value, quantizer.dequantize(symbols))
    assert torch.equal(weights, torch.nn.functional.one_hot(symbols.long(), 6).float())
    evaluated, one_hot = quantizer.eval()(latent)
    assert torch.equal(value, evaluated)
    assert torch.equal(weights, one_hot)


def test_the_gradient_is_the_soft_ones() -> None:
    quantizer = Quantizer(num_centers=5).double().train()
    latent = (torch.randn(2, 3, 4, dtype=torch.float64) * 5).requires_grad_()
    target = torch.randn(2, 3, 4, dtype=torch.float64)
    found = torch.autograd.grad((quantizer(latent)[0] * target).sum(), [latent, quantizer.centers])
    soft = soft_assign(latent, quantizer.centers) @ quantizer.centers
    expected = torch.autograd.grad((soft * target).sum(), [latent, quantizer.centers])
    for ours, theirs in zip(found, expected, strict=True):
        assert float(theirs.abs().sum()) > 0
        torch.testing.assert_close(ours, theirs)


@given(st.floats(1e-6, 1e6), st.floats(-50, 50), st.integers(2, 16))
def test_calibration_suits_latents_of_any_size(deviation: float, offset: float, num_centers: int) -> None:
    quantizer = Quantizer(num_centers)
    latent = (torch.randn(2000, generator=torch.Generator().manual_seed(1)) + offset) * deviation
    quantizer.calibrate(latent.reshape(20, 4, 25))
    counts = torch.bincount(quantizer.symbols(latent).long(), minlength=num_centers)
    assert float((latent * quantizer.gain).std(unbiased=False)) == pytest.approx(4.0, rel=1e-3)
    assert int((counts > 0).sum()) >= num_centers - 2  # all but the outermost are met
    assert bool((quantizer.centers.diff() > 0).all())


@pytest.mark.parametrize("constant", [0.0, 7.5])
def test_latents_that_are_all_alike_leave_the_unit(constant: float) -> None:
    quantizer = Quantizer()
    quantizer.calibrate(torch.full((4, 2, 3), constant))
    assert float(quantizer.gain) == 1.0
    assert float(quantizer.centers.detach().mean()) == pytest.approx(constant, abs=1e-5)
    assert bool((quantizer.centers.diff() > 1).all())
