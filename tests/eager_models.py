"""A model whose part behind the cut branches on values, and the factories that a tail of it can be made with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Picker", "make_named_picker", "make_other_picker", "make_picker", "make_stronger_picker", "refuse"]


class Picker(nn.Module):
    """Finds as many peaks as there are: a list of one dict a picture, of varying length. A skip passes the cut."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.stem, self.body, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 1, 1),
        )

    def forward(self, x: Tensor) -> list[dict[str, Any]]:
        y = torch.relu(self.stem(x)) * self.gain
        found: list[dict[str, Any]] = []
        for scores in (self.head(self.body(y)) + y.mean(1, keepdim=True)).flatten(1):
            kept = scores > scores.mean()
            count = int(kept.sum())
            found.append({"scores": scores[kept], "count": count, "any": scores.max() if count > 3 else None})
        return found


class NamedPicker(Picker):
    """Takes its pictures by name alone."""

    def forward(self, *, pictures: Tensor) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(pictures)


def make_named_picker() -> NamedPicker:
    """The model that takes its pictures by name, with its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return NamedPicker().eval()


def make_picker() -> Picker:
    """The model with its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Picker().eval()


def make_other_picker() -> Picker:
    """The same model with other weights."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return Picker().eval()


def make_stronger_picker() -> Picker:
    """The same weights, with another number in the code."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Picker(gain=1.5).eval()


def refuse() -> Picker:
    """A factory that fails."""
    raise OSError("the weights are not here")
