"""Pixels as a camera gives them, and how a model takes them. Knows no programs and no networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["PixelLayout", "Pixels"]

PixelLayout: TypeAlias = Literal["hwc", "chw"]
"""Whether a pixel's channels lie side by side, or each channel in a picture of its own."""

_WHITE = 255.0


@dataclass(frozen=True, init=False)
class Pixels:
    """How 8-bit pixels become what a model takes: ``(pixels / 255 - mean) / std``, channel by channel.

    Args:
        mean: Mean of each channel, in units of white, as torchvision's ``Normalize`` takes it.
        std: Standard deviation of each channel, likewise.
        layout: ``"hwc"``, as cameras, Pillow and OpenCV give pictures; or ``"chw"``.
        input: Which of the model's tensors the picture is, counted from 0.

    Raises:
        FeatureError: These are not such numbers, or there is no such layout.

    Examples:
        >>> pixels = Pixels(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> pixels.shape((3, 224, 224))
        (224, 224, 3)
        >>> pixels.normalized(np.full((1, 2, 2, 3), 255, np.uint8))[0, :, 0, 0].tolist()
        [2.0, 2.0, 2.0]

    Source: this project.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: PixelLayout
    input: int

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], layout: PixelLayout = "hwc", input: int = 0
    ) -> None:
        means, deviations = _numbers("mean", mean), _numbers("std", std)
        if len(means) != len(deviations) or not means or min(deviations) <= 0:
            raise FeatureError(
                f"mean={means} and std={deviations} were given; expected one number a channel in both, each std above 0"
            )
        if not all(0 <= mean <= 1 for mean in means):
            raise FeatureError(
                f"mean={means} was given; expected numbers from 0 (black) to 1 (white): divide a mean and a std that "
                "are in units of pixels by 255"
            )
        if not all(np.isfinite(np.float32(1 / (_WHITE * std))) for std in deviations):
            raise FeatureError(f"std={deviations} was given; expected numbers that something can be divided by")
        if layout not in get_args(PixelLayout):
            raise FeatureError(f"layout={layout!r} was given; expected {' or '.join(map(repr, get_args(PixelLayout)))}")
        if type(input) is not int or input < 0:
            raise FeatureError(f"input={input!r} was given; expected the place of a tensor, counted from 0")
        object.__setattr__(self, "mean", means)
        object.__setattr__(self, "std", deviations)
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "input", input)

    @property
    def factors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What a pixel is multiplied by, and what is then added; shape ``(channels, 1, 1)`` each."""
        mean, std = (np.array(numbers).reshape(-1, 1, 1) for numbers in (self.mean, self.std))
        return (1 / (_WHITE * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def shape(self, taken: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a picture's pixels.

        Args:
            taken: Shape of what the model takes, without the batch axis.

        Returns:
            The shape in this layout, without the batch axis.

        Raises:
            FeatureError: The model takes no picture of so many channels.
        """
        if len(taken) != 3 or taken[0] != len(self.mean):
            raise FeatureError(
                f"the model takes {taken} as its tensor {self.input}, no picture of {len(self.mean)} channels; "
                "expected (channels, height, width), with one mean and one std a channel"
            )
        return (*taken[1:], taken[0]) if self.layout == "hwc" else taken

    def normalized(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels as the model takes them.

        Args:
            pixels: The pixels.

        Returns:
            Contiguous numbers.

        Shapes:
            pixels: ``(batch, height, width, channels)``, or ``(batch, channels, height, width)`` with "chw"; result:
            ``(batch, channels, height, width)``.
        """
        scale, shift = self.factors
        channels_first = np.moveaxis(pixels, 3, 1) if self.layout == "hwc" else pixels
        return np.ascontiguousarray(channels_first * scale + shift)

    def restored(self, normalized: NDArray[Any]) -> NDArray[np.uint8]:
        """The nearest pixels of what the model takes.

        Args:
            normalized: What `normalized` gave, or augmentation made of it.

        Returns:
            Contiguous pixels.

        Shapes:
            normalized: ``(batch, channels, height, width)``; result: as the pixels of `normalized`.
        """
        scale, shift = self.factors
        pixels = np.rint((normalized - shift) / scale).clip(0, _WHITE).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(pixels, 1, 3) if self.layout == "hwc" else pixels)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    try:
        if isinstance(values, str):  # whose characters may be digits
            raise TypeError("text was given")
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise FeatureError(f"{name}={values!r} was given; expected one number a channel") from error
    if not all(map(math.isfinite, found)):
        raise FeatureError(f"{name}={values!r} was given; expected finite numbers")
    return found
