"""Pictures: what is lossless comes back bit for bit, what is damaged is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.demo.pictures import FORMS, Form, Pictures, decode_pixels, encode_pixels
from compoff.errors import PayloadError

GRAY, COLOR = (8, 8), (32, 32, 3)


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [GRAY, COLOR])
@pytest.mark.parametrize("form", ["raw", "png"])
def test_raw_and_png_lose_nothing(form: Form, shape: tuple[int, ...]) -> None:
    pixels = image(shape)
    assert np.array_equal(decode_pixels(encode_pixels(pixels, form), form, shape), pixels)


@pytest.mark.parametrize("shape", [GRAY, COLOR])
def test_jpeg_is_near_and_smaller_at_a_lower_quality(shape: tuple[int, ...]) -> None:
    pixels = np.broadcast_to(np.linspace(0, 255, shape[1])[None, :].reshape(1, -1, *[1] * (len(shape) - 2)), shape)
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    fine, coarse = (encode_pixels(pixels, "jpeg", quality) for quality in (95, 10))
    assert np.abs(decode_pixels(fine, "jpeg", shape).astype(int) - pixels).max() < 12
    assert len(coarse) < len(fine)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", [b"", b"no picture", bytes(63), bytes(65)])
def test_what_is_no_picture_is_refused(form: Form, damage: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_pixels(damage, form, GRAY)


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_cut_and_foreign_pictures_are_refused(form: Form) -> None:
    data = encode_pixels(image(GRAY), form, 90)
    with pytest.raises(PayloadError):
        decode_pixels(data[: len(data) // 2], form, GRAY)
    with pytest.raises(PayloadError, match="an image of 8 x 8 came"):
        decode_pixels(data, form, (16, 16))
    other: Form = "jpeg" if form == "png" else "png"
    with pytest.raises(PayloadError, match=f"no {other.upper()}"):
        decode_pixels(data, other, GRAY)


@pytest.mark.parametrize(
    "pictures", [Pictures(GRAY, (0.0,), (1.0,)), Pictures(COLOR, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
def test_input_is_the_normalized_image_and_back(pictures: Pictures) -> None:
    pixels = np.stack([image(pictures.shape), image(pictures.shape)])
    planes = torch.from_numpy(pixels).reshape(2, *pictures.shape[:2], -1).permute(0, 3, 1, 2).double() / 255
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (pictures.mean, pictures.std)
    )
    inputs = pictures.to_input(pixels)
    assert inputs.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(inputs).double(), (planes - mean) / std, atol=1e-6, rtol=1e-6)
    assert np.array_equal(pictures.to_pixels(inputs), pixels)
