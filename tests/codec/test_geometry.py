"""Padding and cropping for sizes that do not fit the stride, and the shapes that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.codec import Geometry
from compoff.errors import FeatureError

sizes = st.integers(1, 19)
shapes = st.one_of(
    st.tuples(st.integers(1, 4)), st.tuples(st.integers(1, 4), sizes), st.tuples(st.integers(1, 4), sizes, sizes)
)


@settings(max_examples=200)
@given(shapes, st.integers(1, 7))
def test_crop_undoes_pad_and_tiles_cover_the_feature(shape: tuple[int, ...], stride: int) -> None:
    geometry = Geometry(shape, stride)
    y = torch.arange(2.0 * math.prod(shape)).reshape(2, *shape)
    padded = geometry.pad(y)
    assert tuple(padded.shape) == (2, shape[0], *geometry.padded)
    assert torch.equal(geometry.crop(padded), y)
    for size, side, count, full in zip(shape[1:], geometry.tile, geometry.latent_space, geometry.padded, strict=True):
        assert side == min(stride, size)
        assert count == math.ceil(size / side)
        assert full == count * side
        assert full - size < side


@settings(max_examples=50)
@given(shapes, st.integers(1, 7))
def test_padding_repeats_the_edge(shape: tuple[int, ...], stride: int) -> None:
    geometry = Geometry(shape, stride)
    y = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    widths = [(0, 0), (0, 0), *((0, full - size) for size, full in zip(shape[1:], geometry.padded, strict=True))]
    assert np.array_equal(geometry.pad(torch.from_numpy(y)).numpy(), np.pad(y, widths, mode="edge"))


def test_a_feature_that_fits_is_not_copied() -> None:
    y = torch.randn(2, 3, 8, 4)
    geometry = Geometry((3, 8, 4))
    assert geometry.pad(y) is y
    assert geometry.crop(y) is y


@pytest.mark.parametrize(
    ("shape", "channels", "space", "raw_bytes"),
    [((64, 56, 55), 64, (56, 55), 4 * 64 * 56 * 55), ((5, 7), 5, (7,), 140), ((512,), 512, (), 2048)],
)
def test_sizes(shape: tuple[int, ...], channels: int, space: tuple[int, ...], raw_bytes: int) -> None:
    geometry = Geometry(shape)
    assert (geometry.channels, geometry.space, geometry.raw_bytes) == (channels, space, raw_bytes)


@pytest.mark.parametrize("shape", [(), (3, 0), (0,), (1, 2, 3, 4)])
def test_a_shape_that_cannot_be_encoded_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FeatureError, match="choose another split point"):
        Geometry(shape)


def test_a_stride_below_one_is_refused() -> None:
    with pytest.raises(FeatureError, match="stride is 0"):
        Geometry((3, 8, 8), 0)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.zeros(2, 3, 8, 9), r"shape \(3, 8, 9\) per sample"),
        (torch.zeros(2, 3, 8), r"made for \(3, 8, 8\)"),
        (torch.zeros(()), "per sample"),
        (torch.zeros(0, 3, 8, 8), "no sample"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"torch\.uint8"),
    ],
)
def test_a_feature_of_another_kind_is_refused(y: torch.Tensor, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        Geometry((3, 8, 8)).check(y)


def test_a_shape_may_come_as_a_list() -> None:
    geometry = Geometry([3, 8, 8])  # pyright: ignore[reportArgumentType]
    assert geometry == Geometry((3, 8, 8))
    geometry.check(torch.zeros(1, 3, 8, 8))
