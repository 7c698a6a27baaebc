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
    decoder.start(directions, 0.1, y)  # of what is standardized
    latent = directions.measure(geometry, y) / 0.1
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


def test_only_what_is_far_from_zero_is_kept_from_the_networks() -> None:
    torch.manual_seed(0)
    geometry, y = Geometry((3, 8), stride=4), torch.randn(2000, 3, 8) + torch.tensor([0.0, -0.9, 9.0])[:, None]
    moments = TileMoments(geometry)
    moments.add(y, torch.randn(2000, 3, 8))
    decoder = RefiningDecoder(geometry, 12).eval()
    decoder.start(moments.directions(12), 0.1, y)
    assert decoder.units.shift[:2].tolist() == [0.0, 0.0]
    assert float(decoder.units.shift[2]) == pytest.approx(7.0, abs=0.1)
    middle = decoder.mean.detach().mean(1).tolist()
    assert middle == pytest.approx([0.0, -0.9, 2.0], abs=0.1)
    nothing = decoder(torch.zeros(1, 12, 2)).mean((0, 2)).tolist()
    assert nothing == pytest.approx([0.0, -0.9, 9.0], abs=0.1)


def former(saved: dict[str, Tensor], unit: float) -> dict[str, Tensor]:
    """The same weights as they were saved when a decoder knew one unit, and that only in its networks."""
    saved = {name: value for name, value in saved.items() if not name.startswith("units.")}
    saved |= {"mean": saved["mean"] * unit, "inverse.weight": saved["inverse.weight"] * unit}
    return {**saved, "unit": torch.tensor(unit)}


def test_weights_that_know_one_unit_for_all_channels_are_taken() -> None:
    decoder, y, latent = started((4, 16), 1e-4)
    for parameter in decoder.leave.parameters():
        parameter.normal_(0, 0.1)
    decoder.units.shift.zero_()  # it was around zero
    assert decoder.units.scale.tolist() == [2.0**-13] * 4
    expected, saved = decoder(latent), former(decoder.state_dict(), 2.0**-13)
    another = RefiningDecoder(decoder.geometry, 8).eval()
    another.load_state_dict(saved)
    assert torch.equal(another(latent), expected)
    del saved["unit"]  # before there was any, the networks saw the feature as it is
    another.load_state_dict(saved)
    assert another.units.scale.tolist() == [1.0] * 4
    assert float((another(latent) - expected).detach().abs().max()) > float(y.abs().max())
