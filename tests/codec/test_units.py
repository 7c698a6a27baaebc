"""Units of channels against numpy, in any unit of the caller's, and channels that would have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.codec.units import ChannelMoments, ChannelUnits
from compoff.errors import FeatureError


def units_of(*batches: torch.Tensor, slopes: torch.Tensor | None = None) -> ChannelUnits:
    moments = ChannelMoments(batches[0].shape[1])
    for batch in batches:
        moments.add(batch, torch.ones_like(batch) if slopes is None else slopes)
    return moments.units()


@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 9), (8, 3, 5, 4)])
def test_they_are_what_moves_the_output_alike_around_the_mean(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    wide = (1, 3, *(1,) * (len(shape) - 2))
    unit, middle = np.reshape([1e-6, 1.0, 3e5], wide), np.reshape([2e-3, -7.0, 4e7], wide)
    parts = [rng.normal(size=shape) * unit + middle for _ in range(3)]
    slopes = rng.normal(size=shape) * np.reshape([0.2, 1.0, 4.0], wide) / unit
    units = units_of(*(torch.from_numpy(part).float() for part in parts), slopes=torch.from_numpy(slopes).float())

    lines = np.concatenate([part.swapaxes(0, 1).reshape(3, -1) for part in parts], 1)
    steep = np.sqrt((slopes.swapaxes(0, 1).reshape(3, -1) ** 2).mean(1))
    typical = np.sqrt(((lines.std(1) * steep) ** 2).mean())
    assert units.scale.tolist() == [2.0 ** round(np.log2(typical / one)) for one in steep]
    np.testing.assert_allclose(units.shift.numpy(), lines.mean(1), rtol=1e-6)

    y = torch.from_numpy(parts[0]).float()
    expected = (y.numpy() - units.shift.numpy().reshape(wide)) / units.scale.numpy().reshape(wide)
    np.testing.assert_array_equal(units.standardized(y).numpy(), expected)
    torch.testing.assert_close(units.scaled(y) - units.level.view(wide), units.standardized(y), atol=1e-2, rtol=0)


def test_whatever_a_channel_is_measured_in_it_is_the_same_number() -> None:
    y, slopes, unit = torch.randn(500, 3), torch.randn(500, 3), torch.tensor([2.0**20, 1.0, 2.0**-30])
    plain = units_of(y, slopes=slopes).standardized(y)
    assert torch.equal(units_of(y * unit, slopes=slopes / unit).standardized(y * unit), plain)


def test_what_is_given_back_of_a_shift_is_no_more_than_was_asked_for() -> None:
    units = ChannelUnits(4)
    units.scale.copy_(torch.tensor([1.0, 4.0, 0.5, 2.0]))
    units.shift.copy_(torch.tensor([0.0, -6.0, 9.0, -40.0]))
    assert units.give_back(2.0).tolist() == [0.0, -1.5, 2.0, -2.0]
    assert units.shift.tolist() == [0.0, 0.0, 8.0, -36.0]


def test_a_channel_that_the_output_does_not_know_is_a_small_number() -> None:
    y, slopes = torch.randn(1000, 2) * 5, torch.ones(1000, 2)
    slopes[:, 1] = 0
    first, second = units_of(y, slopes=slopes).standardized(y).std(0).tolist()
    assert 0.7 < first < 2.8
    assert second == pytest.approx(1 / 256, rel=0.5)


def test_a_channel_that_never_moves_has_the_unit_of_its_slope_or_of_the_others() -> None:
    y, slopes = torch.randn(1000, 4) * 40, torch.ones(1000, 4)
    y[:, 1] = 0.1  # not a sum of powers of two, so means are rounded
    y[:, 2] = 288 + 2.0**-15 * torch.randn(1000).sign()  # moves by its last digit
    y[:, 3], slopes[:, 3] = 0.0, 0.0
    assert units_of(y, slopes=slopes).scale.tolist() == [16.0] * 4


def test_without_anything_that_moves_they_are_ones() -> None:
    assert units_of(torch.full((8, 2), 3.0)).scale.tolist() == [1.0, 1.0]
    y = torch.randn(1000, 2) * torch.tensor([1.0, 32.0])
    assert units_of(y, slopes=torch.zeros(1000, 2)).scale.tolist() == [1.0, 32.0]
    unseen = ChannelMoments(2).units()
    assert (unseen.shift.tolist(), unseen.scale.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_whose_squares_are_none_are_refused(size: float) -> None:
    with pytest.raises(FeatureError, match=r"deviates by up to .*e[+-]2[45]; the transform codec takes"):
        units_of(torch.rand(64, 2) * size * 2)


def test_one_batch_of_numbers_whose_squares_are_none_is_enough_to_refuse() -> None:
    with pytest.raises(FeatureError, match=r"deviates by up to .*e\+2[45]; the transform codec takes"):
        units_of(torch.tensor([[1e25], [-1e25]]), torch.tensor([[1.0], [-1.0]]))


def test_weights_that_know_none_are_for_the_features_own() -> None:
    units = units_of(torch.randn(100, 2) * 9 + 5)
    units.load_state_dict({})
    assert (units.shift.tolist(), units.scale.tolist()) == ([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(RuntimeError, match="Missing key"):
        units.load_state_dict({"scale": torch.ones(2)})
