"""The architectures that compoff is measured and tested on: the real ones, and a small instance of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.zoo.dense import DENSE
from benchmarks.zoo.detection import DETECTION
from benchmarks.zoo.generative import GENERATIVE
from benchmarks.zoo.multimodal import MULTIMODAL
from benchmarks.zoo.speech import SPEECH
from benchmarks.zoo.tabular import TABULAR
from benchmarks.zoo.text import TEXT
from benchmarks.zoo.timm_vision import TIMM
from benchmarks.zoo.vision import TORCHVISION

if TYPE_CHECKING:
    from benchmarks.zoo.architecture import Architecture

__all__ = ["ARCHITECTURES", "named"]

ARCHITECTURES: tuple[Architecture, ...] = (
    *TORCHVISION,
    *TIMM,
    *DENSE,
    *DETECTION,
    *SPEECH,
    *TEXT,
    *GENERATIVE,
    *TABULAR,
    *MULTIMODAL,
)


def named(name: str) -> Architecture:
    """One architecture by its name.

    Args:
        name: The name.

    Returns:
        The architecture.

    Raises:
        KeyError: There is none of that name.
    """
    return {architecture.name: architecture for architecture in ARCHITECTURES}[name]
