"""A head's program that takes 8-bit pixels: the model's normalization stands before it. Knows no formats."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compoff.cutting.capture import program_of
from compoff.cutting.inputs import ExampleInputs
from compoff.errors import FeatureError
from compoff.pixels import Pixels
from compoff.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["from_pixels", "require_picture"]


class _FromPixels(nn.Module):
    """A head that normalizes first."""

    scale: Tensor
    shift: Tensor

    def __init__(self, head: nn.Module, pixels: Pixels, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = head
        self.pixels = pixels
        self.dtype = dtype
        scale, shift = (torch.from_numpy(numbers)[None] for numbers in pixels.factors)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        picture = given[self.pixels.input]
        if self.pixels.layout == "hwc":
            picture = picture.permute(0, 3, 1, 2)
        # Where the model computes with half the digits, so would a scale that is one of its numbers.
        normalized = picture.to(self.scale.dtype).contiguous() * self.scale + self.shift
        given[self.pixels.input] = normalized if self.dtype == normalized.dtype else normalized.to(self.dtype)
        return self.head(*given)


def require_picture(pixels: Pixels, example: ExampleInputs) -> tuple[int, ...]:
    """Refuse pixels that are not what a model takes.

    Args:
        pixels: The pixels.
        example: What the model takes.

    Returns:
        Shape of a picture's pixels, without the batch axis.

    Raises:
        FeatureError: The model has no such tensor, or it is no picture of so many channels.
    """
    if not isinstance(pixels, Pixels):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise FeatureError(f"pixels is {pixels!r:.80}; expected compoff.Pixels(mean=…, std=…)")
    if pixels.input >= len(example.tensors):
        raise FeatureError(
            f"input={pixels.input} was given; the model takes {len(example.tensors)} tensors, counted from 0"
        )
    tensor = example.tensors[pixels.input]
    if not (tensor.is_floating_point() and example.batched[pixels.input]):
        raise FeatureError(
            f"the model takes {str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)} as its tensor "
            f"{pixels.input}; expected a batch of pictures in floating point"
        )
    return pixels.shape(tuple(tensor.shape[1:]))


def from_pixels(head: ExportedProgram, pixels: Pixels, example: ExampleInputs, split: str) -> ExportedProgram:
    """Put the normalization before a head.

    Args:
        head: The head's program.
        pixels: The pixels.
        example: What the model takes, two samples.
        split: The split point, for messages.

    Returns:
        A program that takes pixels, on the CPU.

    Raises:
        FeatureError: These pixels are not what the model takes.
        SplitError: It cannot be exported.

    Source: this project.
    """
    shape, tensors = require_picture(pixels, example), [tensor.cpu() for tensor in example.tensors]
    dtype = tensors[pixels.input].dtype
    tensors[pixels.input] = torch.zeros((2, *shape), dtype=torch.uint8, device="cpu")
    module = _FromPixels(head.module(check_guards=False), pixels, dtype)
    with quiet("torch", contextlib.redirect_stderr):
        return program_of(module, ExampleInputs(tuple(tensors), batched=example.batched), split)
