"""The refining decoder: the linear inverse at its start, at any scale of the feature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compoff.codec import Geometry, TileMoments
from compoff.codec.refiner import RefiningDecoder

SHAPES = [(4, 16), (4, 8, 8), (12,)]


def started(shape: tuple[int, ...], scale: float) -> tuple[RefiningDecoder, Tensor, Tensor]:
    """A decoder, features, and their latent."""
    torch.manual_seed(0)
    geometry = Geometry(shape, stride=4)
    y = torch.randn(64, *shape) * scale
    moments = TileMoments(geometry)
    moments.add(y, torch.randn(64, *shape))
    directions = moments.directions(8)
    decoder = RefiningDecoder(geometry, 8).eval().requires_grad_(requires_grad=False)
    decoder.start(directions, 0.1 * scale, y)
    latent = directions.measure(geometry, y) / (0.1 * scale)
    return decoder, y, latent.view(64, *geometry.latent_space, 8).movedim(-1, 1) if geometry.space else latent


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_learned_is_worth_the_same_at_any_scale(shape: tuple[int, ...]) -> None:
    found: list[Tensor] = []
    for scale in (1.0, 2.0**-20, 2.0**13):
        decoder, _, latent = started(shape, scale)
        linear = decoder(latent)
        torch.manual_seed(1)
        for parameter in decoder.leave.parameters():
            parameter.normal_(0, 0.1)
        found.append((decoder(latent) - linear) / scale)
    assert float(found[0].abs().mean()) > 0.01
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 30.0])
def test_folding_the_unit_changes_no_bit(shape: tuple[int, ...], scale: float) -> None:
    decoder, _, latent = started(shape, scale)
    for parameter in decoder.leave.parameters():
        parameter.normal_(0, 0.1)
    before = decoder(latent)
    decoder.fold()
    decoder.fold()
    assert torch.equal(decoder(latent), before)


def test_weights_without_a_unit_were_learned_in_the_features_own() -> None:
    decoder, _, _ = started((4, 16), 1e-4)
    saved = decoder.state_dict()
    assert float(saved["unit"]) == 2.0**-13
    del saved["unit"]
    decoder.load_state_dict(saved)
    assert float(decoder.unit) == 1.0
