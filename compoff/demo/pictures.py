"""Pixels to bytes and back: what a device sends that has no learned codec.

Raw bytes, PNG and JPEG through Pillow, and the normalization that turns pixels into the network's input. Knows neither
the network nor the wire.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

from compoff.errors import PayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FORMS", "Form", "Pictures", "decode_pixels", "encode_pixels"]

Form: TypeAlias = Literal["raw", "png", "jpeg"]
FORMS: tuple[Form, ...] = ("raw", "png", "jpeg")


@dataclass(frozen=True)
class Pictures:
    """How the pixels of a task look, and how a network wants them.

    Args:
        shape: ``(height, width)`` of gray images, ``(height, width, 3)`` of color images.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel.

    Examples:
        >>> Pictures((1, 2), (0.5,), (0.5,)).to_input(np.array([[[0, 255]]], np.uint8)).tolist()
        [[[[-1.0, 1.0]]]]

    Source: this project.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_input(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Make pixels into what the network takes.

        Args:
            pixels: A batch of images.

        Returns:
            The network's input.

        Shapes:
            pixels (batch, *shape), uint8; result (batch, channels, height, width).
        """
        planes = pixels[:, None] if len(self.shape) == 2 else np.moveaxis(pixels, -1, 1)
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return np.ascontiguousarray((planes.astype(np.float32) / np.float32(255) - mean) / std, np.float32)

    def to_pixels(self, inputs: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Undo `to_input`.

        Args:
            inputs: Inputs of the network that were made from 8-bit images.

        Returns:
            Those images.

        Shapes:
            inputs (batch, channels, height, width); result (batch, *shape), uint8.
        """
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        planes = np.clip(np.rint((inputs * std + mean) * 255), 0, 255).astype(np.uint8)
        return planes[:, 0] if len(self.shape) == 2 else np.ascontiguousarray(np.moveaxis(planes, 1, -1))


def encode_pixels(pixels: NDArray[np.uint8], form: Form, quality: int | None = None) -> bytes:
    """Write one image as the bytes to send.

    Args:
        pixels: The image.
        form: How to write it.
        quality: JPEG's quality, 1 to 95.

    Returns:
        The bytes.

    Shapes:
        pixels (height, width) or (height, width, 3), uint8.

    Examples:
        >>> image = np.arange(64, dtype=np.uint8).reshape(8, 8)
        >>> len(encode_pixels(image, "raw"))
        64
        >>> np.array_equal(decode_pixels(encode_pixels(image, "png"), "png", (8, 8)), image)
        True

    Source: this project.
    """
    if form == "raw":
        return pixels.tobytes()
    from PIL import Image  # the demo's extra

    buffer = io.BytesIO()
    options: dict[str, Any] = {"optimize": True} if form == "png" else {"quality": quality, "optimize": True}
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def decode_pixels(data: bytes, form: Form, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read one image from the bytes that arrived.

    Args:
        data: The bytes.
        form: How they were written.
        shape: Shape that the image must have.

    Returns:
        The image.

    Shapes:
        Result ``shape``, uint8.

    Raises:
        PayloadError: The bytes are no such image.

    Examples:
        >>> decode_pixels(bytes(4), "raw", (2, 2)).shape
        (2, 2)

    Source: this project.
    """
    if form == "raw":
        pixels = np.frombuffer(data, np.uint8)
        if pixels.size != int(np.prod(shape)):
            raise PayloadError(f"{len(data)} bytes came for an image of shape {shape}; expected one byte a value")
        return pixels.reshape(shape)
    from PIL import Image

    try:
        with cast("Any", Image.open(io.BytesIO(data), formats=[form])) as image:
            if (image.height, image.width) != tuple(shape[:2]):  # before Pillow reserves memory for it
                raise PayloadError(f"an image of {image.height} x {image.width} came; expected shape {shape}")
            return np.asarray(image.convert("L" if len(shape) == 2 else "RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, PayloadError):
            raise
        raise PayloadError(f"{len(data)} bytes came that are no {form.upper()}: {error}") from error
