"""Directions: principal components where everything counts alike, and the ones that count where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.codec import Encoder, Geometry, TileMoments
from compoff.errors import FeatureError


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 7, 9), (4, 16), (10,)])
def test_tiles_are_laid_out_as_the_kernel_is(shape: tuple[int, ...]) -> None:
    geometry, y = Geometry(shape), torch.randn(2, *shape)
    encoder = Encoder(geometry, 3)
    by_hand = (geometry.tiles(y) @ encoder.weight.flatten(1).T).view(2, -1, 3).transpose(1, 2)
    torch.testing.assert_close(by_hand.reshape(encoder(y).shape), encoder(y), atol=1e-5, rtol=1e-5)


def test_with_equal_sensitivity_they_are_the_principal_components() -> None:
    torch.manual_seed(0)
    y = torch.randn(4000, 6) * torch.tensor([5.0, 1.0, 3.0, 0.1, 0.5, 2.0]) + 7
    moments = TileMoments(Geometry((6,)))
    moments.add(y, torch.randn(4000, 6))
    found = moments.directions(3)
    assert [int(row.abs().argmax()) for row in found.analysis] == [0, 2, 5]
    assert found.units is not None
    torch.testing.assert_close(found.units.standardized(y).mean(0), found.mean, atol=1e-5, rtol=0)
    ratio = found.deviation / y.std(0)[[0, 2, 5]]
    torch.testing.assert_close(ratio / ratio[0], torch.ones(3), atol=0.1, rtol=0.1)


def test_they_are_the_eigenvectors_of_s_c_s(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    y, slopes = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(300, 6)) * [1, 2, 3, 1, 2, 3]
    moments = TileMoments(Geometry((6,)))
    moments.add(torch.from_numpy(y), torch.from_numpy(slopes))
    # As a reader of the definition would write it: the symmetric root of the slopes' second moment, with the ridge.
    units = moments.directions(4).units
    assert units is not None
    scaled = slopes / np.sqrt((slopes**2).mean()) * units.scale.numpy()
    y = (y - units.shift.numpy()) / units.scale.numpy()
    second = scaled.T @ scaled / 300
    values, vectors = np.linalg.eigh(second / (np.trace(second) / 6) + 0.01 * np.eye(6))
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    variances, directions = np.linalg.eigh(root @ np.cov(y.T, bias=True) @ root)
    for precise in (2048, 4):
        monkeypatch.setattr("compoff.codec.directions._PRECISE", precise)
        found = moments.directions(4)
        np.testing.assert_allclose(found.deviation, np.sqrt(variances[::-1][:4]), rtol=1e-3)
        expected = (directions[:, ::-1][:, :4].T @ root), (np.linalg.inv(root) @ directions[:, ::-1][:, :4]).T
        for rows, by_hand in zip((found.analysis.numpy(), found.synthesis.numpy()), expected, strict=True):
            signs = np.sign((rows * by_hand).sum(1, keepdims=True))
            np.testing.assert_allclose(rows * signs, by_hand, atol=1e-3)


def test_what_the_output_depends_on_comes_first() -> None:
    torch.manual_seed(0)
    y = torch.randn(4000, 4) * torch.tensor([5.0, 1.0, 1.0, 1.0])
    slopes = torch.randn(4000, 4) * torch.tensor([0.01, 0.01, 3.0, 0.01])
    moments = TileMoments(Geometry((4,)))
    moments.add(y, slopes)
    assert int(moments.directions(1).analysis[0].abs().argmax()) == 2


def test_all_directions_together_lose_nothing() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(8, 8)
    y = torch.randn(500, 8) @ mixing
    moments = TileMoments(Geometry((2, 8), stride=4))
    moments.add(y.view(-1, 2, 4).repeat(1, 1, 2), torch.randn(500, 2, 8))
    found = moments.directions(8)
    assert found.units is not None
    y = found.units.standardized(y.view(-1, 2, 4)).flatten(1)
    torch.testing.assert_close((y - found.mean) @ found.analysis.T @ found.synthesis + found.mean, y, atol=1e-3, rtol=0)


def test_batches_add_up() -> None:
    y, slopes = torch.randn(60, 3, 8), torch.randn(60, 3, 8).sign()  # of one size, so that batches weigh alike
    whole, parts = (TileMoments(Geometry((3, 8), stride=4)) for _ in range(2))
    whole.add(y, slopes)
    for index in range(0, 60, 20):
        parts.add(y[index : index + 20], slopes[index : index + 20])
    torch.testing.assert_close(whole.directions(4).deviation, parts.directions(4).deviation)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_a_mean_far_from_zero_costs_no_digits(offset: float) -> None:
    torch.manual_seed(0)
    y, slopes = torch.randn(512, 8) * torch.linspace(1.0, 0.1, 8), torch.randn(512, 8)
    found, expected = TileMoments(Geometry((8,))), TileMoments(Geometry((8,)))
    for place in range(0, 512, 64):
        here = slice(place, place + 64)
        shifted = y[here] + offset  # rounded as the caller's numbers are
        found.add(shifted, slopes[here])
        expected.add((shifted.double() - offset).float(), slopes[here])
    ours, theirs = found.directions(5), expected.directions(5)
    torch.testing.assert_close(ours.deviation, theirs.deviation)
    torch.testing.assert_close(ours.analysis.abs(), theirs.analysis.abs(), atol=1e-4, rtol=1e-3)
    assert ours.units is not None
    assert theirs.units is not None
    assert torch.equal(ours.units.scale, theirs.units.scale)
    assert float(ours.mean.abs().max()) < 2.1  # what is farther from zero is in the shift
    middle, expected_middle = (one.units.shift + one.mean * one.units.scale for one in (ours, theirs) if one.units)
    torch.testing.assert_close(middle, expected_middle + offset)


def test_units_of_channels_change_nothing_but_the_ridge() -> None:
    torch.manual_seed(0)
    y, slopes = torch.randn(400, 3, 8), torch.randn(400, 3, 8)
    unit, middle = torch.tensor([1e5, 1.0, 1e-6]).view(3, 1), torch.tensor([1e7, 0.0, 1e-4]).view(3, 1)
    found, expected = TileMoments(Geometry((3, 8), stride=4)), TileMoments(Geometry((3, 8), stride=4))
    found.add(y * unit + middle, slopes / unit)
    expected.add(y, slopes)
    ours, theirs = found.directions(5), expected.directions(5)
    latent, plain = ours.measure(Geometry((3, 8), 4), y * unit + middle), theirs.measure(Geometry((3, 8), 4), y)
    # Units are powers of two, so those of the ridge differ by up to half of one.
    torch.testing.assert_close(latent.abs() / latent.std(), plain.abs() / plain.std(), atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("geometry", "advice"),
    [
        (Geometry((5000,)), r'split point, or with codec="deepcod"$'),
        (Geometry((5000, 8), stride=1), r'split point, or with codec="deepcod", whose decoder takes minutes'),
        (Geometry((1, 5000), stride=5000), r"positions with stride=5000; .* up to 4096: wrap with a smaller stride$"),
    ],
)
def test_what_second_moments_cannot_be_kept_of_is_refused_with_what_can_help(geometry: Geometry, advice: str) -> None:
    with pytest.raises(FeatureError, match=advice) as refusal:
        TileMoments(geometry)
    assert ("smaller stride" in str(refusal.value)) == (geometry.channels == 1)
