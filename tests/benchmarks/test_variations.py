"""The variations of the ablations: that each still changes what it says, now that the codec has moved on."""

from __future__ import annotations

import pytest
import torch

import compoff
from benchmarks.variations import BASELINE, SEEDS, VARIATIONS, Variation
from compoff.codec import Geometry, TileMoments, WaveMoments
from compoff.codec_options import CodecOptions
from compoff.recipe import recipe_named


@pytest.mark.parametrize("shape", [(3, 8, 8), (6, 8, 8)], ids=["all elements", "on waves"])
def test_random_directions_are_orthonormal_and_measure_what_they_say(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    for name, value in VARIATIONS["start: random orthonormal directions"].patches.items():
        monkeypatch.setattr(name, value)
    geometry = Geometry(shape, stride=4)
    y = torch.randn(100, *shape) * torch.rand(shape[0], 1, 1) + torch.randn(shape[0], 1, 1)
    mixing = None
    if shape[0] > 3:
        first = WaveMoments(geometry)
        first.add(y, torch.randn_like(y))
        mixing = first.directions(64)
    moments = TileMoments(geometry, mixing)
    moments.add(y, torch.randn_like(y))
    found = moments.directions(12)
    torch.testing.assert_close(found.analysis @ found.synthesis.T, torch.eye(12), atol=1e-5, rtol=0)
    latent = found.measure(geometry, y)
    torch.testing.assert_close(latent.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent.std(0, correction=0), found.deviation, atol=1e-4, rtol=1e-4)
    assert found.units is not None
    middle = geometry.tiles(found.units.standardized(y)).mean(0)
    torch.testing.assert_close(found.mean, middle, atol=0.3 if mixing else 1e-5, rtol=0)
    assert found.mixing is mixing


@pytest.mark.parametrize("variation", [*VARIATIONS.values(), *SEEDS.values()], ids=[*VARIATIONS, *SEEDS])
def test_a_variation_changes_names_and_fields_that_there_are(
    monkeypatch: pytest.MonkeyPatch, variation: Variation
) -> None:
    for name, value in variation.patches.items():
        monkeypatch.setattr(name, value)  # raises where there is no such name
    options = CodecOptions(**variation.options)
    assert set(variation.recipe) <= set(vars(recipe_named(options.codec)))


def test_only_the_baseline_changes_nothing() -> None:
    assert VARIATIONS["as it is"] is BASELINE
    assert [change for change, one in VARIATIONS.items() if one == BASELINE] == ["as it is"]


def test_a_linear_decoder_stays_linear() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    images = torch.randn(32, 3, 8, 8)
    model = compoff.wrap(net, "input", example_input=images[:2], channels=8)
    prepare = VARIATIONS["decoder: linear"].prepare
    assert prepare is not None
    prepare(model, [images], 20.0)  # pyright: ignore[reportArgumentType]
    compoff.fit(model, [images], steps=3, target_bytes=20)
    bottleneck = model.bottleneck("input").eval()
    with torch.no_grad():
        a, b = torch.randn(2, 1, *bottleneck.latent_shape)
        middle = bottleneck.decoder((a + b) / 2)
        torch.testing.assert_close(middle, (bottleneck.decoder(a) + bottleneck.decoder(b)) / 2, atol=1e-4, rtol=1e-4)
