"""Directions on waves: what a reader of the definition would compute, wave by wave."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.codec import Encoder, Geometry, RefiningDecoder, TileMoments, WaveMoments
from compoff.codec.waves import cosines
from compoff.errors import FeatureError


def test_they_are_the_eigenvectors_of_s_c_s_within_each_wave() -> None:
    torch.manual_seed(0)
    geometry = Geometry((3, 4, 6), stride=2)
    y = torch.einsum("cd,bdhw->bchw", torch.randn(3, 3), torch.randn(40, 3, 4, 6)) + torch.randn(3, 1, 1)
    slopes = torch.randn(40, 3, 4, 6) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    moments = WaveMoments(geometry)
    for here in (slice(0, 15), slice(15, 40)):
        moments.add(y[here], slopes[here] / slopes[here].square().mean().sqrt() * 7)  # of any unit
    found = moments.directions(5)

    units = found.units
    assert units is not None
    waves, raw, y = cosines((2, 2)).numpy(), y, units.standardized(y)
    scaled = [slopes[here] / slopes[here].square().mean().sqrt() for here in (slice(0, 15), slice(15, 40))]
    tiles = [geometry.tiles(values).view(-1, 3, 4).numpy() for values in (y, units.multiplied(torch.cat(scaled)))]
    ridden = [np.einsum("wp,tcp->wtc", waves, values) for values in tiles]
    second = np.einsum("wtc,wtd->wcd", ridden[1], ridden[1]) / len(tiles[1])
    level = np.trace(second, axis1=1, axis2=2).mean() / 3
    every = []
    for wave in range(4):
        values, vectors = np.linalg.eigh(second[wave] / level + 0.01 * np.eye(3))
        root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
        variances, directions = np.linalg.eigh(root @ np.cov(ridden[0][wave].T, bias=True) @ root)
        every += [
            (variance, wave, direction @ root, np.linalg.inv(root) @ direction)
            for variance, direction in zip(variances, directions.T, strict=True)
        ]
    best = sorted(sorted(every, key=lambda one: -one[0])[:5], key=lambda one: one[1])  # those that count most, by wave
    np.testing.assert_allclose(found.deviation, [np.sqrt(one[0]) for one in best], rtol=1e-3)
    assert found.wave is not None
    assert found.wave.tolist() == [one[1] for one in best]
    for rows, place in ((found.analysis.numpy(), 2), (found.synthesis.numpy(), 3)):
        by_hand = np.stack([one[place] for one in best])
        np.testing.assert_allclose(rows * np.sign((rows * by_hand).sum(1, keepdims=True)), by_hand, atol=2e-3)
    torch.testing.assert_close(found.mean, geometry.tiles(y).mean(0), atol=1e-4, rtol=1e-4)
    latent = found.measure(geometry, raw)
    torch.testing.assert_close(latent.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.std(0, correction=0), found.deviation, atol=1e-4, rtol=1e-3)


def test_a_mean_far_from_zero_costs_few_digits() -> None:
    torch.manual_seed(0)
    y, slopes = torch.randn(200, 4, 8), torch.randn(200, 4, 8)
    found, expected = WaveMoments(Geometry((4, 8))), WaveMoments(Geometry((4, 8)))
    for here in (slice(0, 50), slice(50, 200)):
        found.add(y[here] + 1e3, slopes[here])
        expected.add(y[here], slopes[here])
    torch.testing.assert_close(found.directions(6).deviation, expected.directions(6).deviation, atol=1e-3, rtol=1e-3)


def test_channels_that_second_moments_cannot_be_kept_of_are_refused() -> None:
    with pytest.raises(FeatureError, match="5000 numbers at a position; the transform codec takes up to 4096"):
        WaveMoments(Geometry((5000, 8), 4))


def test_what_describes_a_tile_describes_all_of_it_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    geometry = Geometry((8, 6, 8), stride=4)
    # What varies is slow and in four of eight channels: 4 waves of 4 mixes hold all of it, and a mean that is neither.
    slow = torch.nn.functional.interpolate(torch.randn(200, 4, 2, 2), size=(8, 8), mode="nearest")[:, :, :6]
    y = torch.einsum("cm,bmhw->bchw", torch.randn(8, 4), slow) + torch.randn(8, 1, 1)
    slopes = torch.randn(200, 8, 6, 8)
    first = WaveMoments(geometry)
    first.add(y, slopes)
    moments = TileMoments(geometry, first.directions(32))
    moments.add(y, slopes)
    found = moments.directions(32)
    latent = found.measure(geometry, y)
    torch.testing.assert_close(latent.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(latent.std(0), found.deviation, atol=1e-3, rtol=1e-2)

    monkeypatch.setattr("compoff.codec.waves._WHOLE", 64)
    monkeypatch.setattr("compoff.codec.waves._DESCRIBED", 32)
    encoder, decoder = Encoder(geometry, 32, described=32, standardized=True), RefiningDecoder(geometry, 32)
    encoder.start(found, step=0.5)
    by_layers = (2 * found.measure(geometry, y)).view(200, 4, 32).transpose(1, 2)
    moved = encoder(y).flatten(2) - 2 * found.offset[:, None]
    torch.testing.assert_close(moved, by_layers, atol=1e-3, rtol=1e-3)
    gain, bias = torch.rand(32), torch.rand(32)
    by_hand = encoder(y) * gain.view(-1, 1, 1) + bias.view(-1, 1, 1)
    torch.testing.assert_close(encoder.scaled(y, gain, bias), by_hand, atol=1e-4, rtol=1e-4)
    assert encoder.mix is not None
    assert encoder.macs == encoder.mix.macs + 32 * 32 * 4

    decoder.start(found, 0.5, y)
    z = encoder(y) - 2 * found.offset.view(-1, 1, 1)
    torch.testing.assert_close(decoder(z), y, atol=1e-2, rtol=1e-2)
