"""The architectures that compoff is measured and tested on: the real ones, and a small instance of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.zoo.timm_vision import TIMM
from benchmarks.zoo.vision import TORCHVISION

if TYPE_CHECKING:
    from benchmarks.zoo.architecture import Architecture

__all__ = ["ARCHITECTURES", "named"]

ARCHITECTURES: tuple[Architecture, ...] = (*TORCHVISION, *TIMM)


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
