"""Units of channels: middles and deviations against numpy, and channels that would have none or too small ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.codec.units import ChannelMoments, ChannelUnits
from compoff.errors import FeatureError


def units_of(*batches: torch.Tensor) -> ChannelUnits:
    moments = ChannelMoments(batches[0].shape[1])
    for batch in batches:
        moments.add(batch)
    return moments.units()


@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 9), (8, 3, 5, 4)])
def test_they_are_mean_and_deviation_over_all_batches(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    wide = (1, 3, *(1,) * (len(shape) - 2))
    parts = [
        rng.normal(size=shape) * np.reshape([1e-6, 1.0, 3e5], wide) + np.reshape([2e-3, -7.0, 4e7], wide)
        for _ in range(3)
    ]
    units = units_of(*(torch.from_numpy(part).float() for part in parts))
    lines = np.concatenate([part.swapaxes(0, 1).reshape(3, -1) for part in parts], 1)
    np.testing.assert_allclose(units.shift.numpy(), lines.mean(1), rtol=1e-6)
    assert units.scale.tolist() == [2.0 ** round(np.log2(one)) for one in lines.std(1)]
    y = torch.from_numpy(parts[0]).float()
    expected = (y.numpy() - units.shift.numpy().reshape(wide)) / units.scale.numpy().reshape(wide)
    np.testing.assert_array_equal(units.standardized(y).numpy(), expected)
    torch.testing.assert_close(units.scaled(y) - units.level.view(wide), units.standardized(y), atol=1e-2, rtol=0)


def test_a_channel_that_seldom_speaks_is_no_giant_when_it_does() -> None:
    y = torch.randn(10_000, 2)
    y[:, 1] = 0
    y[17, 1] = 5.0
    standardized = units_of(y).standardized(y)
    assert 8 <= float(standardized[17, 1]) <= 24
    assert float(standardized[:, 1].std()) < 0.3


def test_a_channel_that_never_moves_has_the_unit_of_the_others() -> None:
    y = torch.randn(1000, 3) * 40
    y[:, 1] = 0.1  # not a sum of powers of two, so means are rounded
    y[:, 2] = 288 + 2.0**-15 * torch.randn(1000).sign()  # moves by its last digit
    scale = units_of(y).scale
    assert scale[0] == 32
    assert scale[1] in (16, 32)
    assert scale[2] in (16, 32)


def test_without_anything_that_moves_they_are_ones() -> None:
    assert units_of(torch.full((8, 2), 3.0)).scale.tolist() == [1.0, 1.0]
    unseen = ChannelMoments(2).units()
    assert (unseen.shift.tolist(), unseen.scale.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_whose_squares_are_none_are_refused(size: float) -> None:
    with pytest.raises(FeatureError, match=r"deviates by up to .*e[+-]2[45]; the transform codec takes"):
        units_of(torch.rand(64, 2) * size * 2)


def test_weights_that_know_none_are_for_the_features_own() -> None:
    units = units_of(torch.randn(100, 2) * 9 + 5)
    units.load_state_dict({})
    assert (units.shift.tolist(), units.scale.tolist()) == ([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(RuntimeError, match="Missing key"):
        units.load_state_dict({"scale": torch.ones(2)})
