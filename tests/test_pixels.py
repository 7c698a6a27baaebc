"""Pixels as numbers: normalized as torchvision does it, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compoff.errors import FeatureError
from compoff.pixels import PixelLayout, Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def every_pixel(layout: PixelLayout) -> np.ndarray[Any, Any]:
    """Each value in each channel."""
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    return values if layout == "hwc" else np.ascontiguousarray(values.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_normalized_as_by_hand_and_back(layout: PixelLayout) -> None:
    pixels, pictures = Pixels(MEAN, STD, layout), every_pixel(layout)
    found = pixels.normalized(pictures)
    as_tensor = torch.from_numpy(every_pixel("chw")).float() / 255
    expected = (as_tensor - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, (1, 3, 16, 16), True)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    back = pixels.restored(found + np.float32(0.001))
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, pictures)


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "from 0 .black. to 1 .white.: divide"),
        ((-0.1,), (1.0,), "from 0 .black. to 1"),
        ((0.5,), (1e-320,), "that something can be divided by"),
        ("123", "123", "mean='123' was given; expected one number a channel"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(mean: Any, std: Any, told: str) -> None:
    with pytest.raises(FeatureError, match=told):
        Pixels(mean, std)


def test_what_is_brighter_than_white_is_white() -> None:
    pixels = Pixels([0.5], [0.5])
    assert pixels.restored(np.array([[[[-9.0, 9.0]]]])).ravel().tolist() == [0, 255]


def test_shapes() -> None:
    assert Pixels(MEAN, STD).shape((3, 8, 9)) == (8, 9, 3)
    assert Pixels(MEAN, STD, "chw").shape((3, 8, 9)) == (3, 8, 9)
    for shape in ((3, 8), (1, 8, 9), (8, 9, 3), ()):
        with pytest.raises(FeatureError, match="no picture of 3 channels"):
            Pixels(MEAN, STD).shape(shape)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mean": (0.5, 0.5)}, "one number a channel"),
        ({"mean": (), "std": ()}, "one number a channel"),
        ({"mean": 0.5}, "one number a channel"),
        ({"mean": "abc"}, "one number a channel"),
        ({"std": (0.2, 0.2, 0.0)}, "std above 0"),
        ({"std": (0.2, 0.2, float("nan"))}, "finite"),
        ({"layout": "nhwc"}, "'hwc' or 'chw'"),
        ({"input": "0"}, "counted from 0"),
        ({"input": -1}, "counted from 0"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(FeatureError, match=told):
        Pixels(**{"mean": MEAN, "std": STD, **wrong})
