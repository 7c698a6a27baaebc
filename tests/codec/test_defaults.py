"""Tiles and channels that are taken where the user does not say."""

from __future__ import annotations

import pytest

from compoff.codec import Geometry
from compoff.codec.defaults import default_channels, widest_stride


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((3, 224, 224), 8),
        ((256, 56, 56), 8),
        ((128, 28, 28), 7),  # 28 = 4 x 7, where tiles of 8 would leave 4 over
        ((512, 28, 28), 7),
        ((1024, 14, 14), 7),
        ((256, 7, 7), 4),  # one tile in a map would be seen too seldom
        ((8, 10, 10), 5),
        ((3, 4, 4), 8),
        ((80, 100), 16),
        ((5000, 1, 1), 1),
        ((300,), 64),
    ],
)
def test_tiles_are_wide_and_fit_the_map(shape: tuple[int, ...], side: int) -> None:
    assert widest_stride(shape) == side


@pytest.mark.parametrize(
    ("shape", "stride", "channels"),
    [
        ((3, 4, 4), 4, 40),
        ((24, 28, 28), 4, 320),  # all but the last sixth,
        ((48, 26, 26), 7, 1024),  # as far as the device's work allows
        ((256, 14, 14), 7, 1024),
        ((64, 56, 56), 8, 512),  # where tiles are many, fewer each
        ((64, 128, 128), 8, 192),
    ],
)
def test_channels_follow_what_a_tile_holds(shape: tuple[int, ...], stride: int, channels: int) -> None:
    assert default_channels(Geometry(shape, stride=stride)) == channels
