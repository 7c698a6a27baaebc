"""A network with two kinds of input in one dict, which meet late."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Inputs

__all__ = ["MULTIMODAL"]


class TwoTowers(nn.Module):
    """A CLIP-like pair: pictures and texts into one space, and how well they fit together.

    Args:
        width: Channels of the picture's tower.
        size: Length of the embeddings.

    Shapes:
        A dict of ``pixels`` ``(batch, 3, height, width)`` and ``words`` ``(batch, length)`` to a dict of both
        embeddings ``(batch, size)`` and their similarity ``(batch,)``.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.picture1 = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.ReLU())
        self.picture2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.picture3 = nn.Linear(2 * width, size)
        self.words = nn.Embedding(100, size)
        self.text = nn.TransformerEncoderLayer(size, 2, 2 * size, batch_first=True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embed both."""
        picture = self.picture3(self.picture2(self.picture1(batch["pixels"])).mean((2, 3)))
        text = self.text(self.words(batch["words"])).mean(1)
        picture, text = nn.functional.normalize(picture, dim=-1), nn.functional.normalize(text, dim=-1)
        return {"picture": picture, "text": text, "similarity": (picture * text).sum(-1)}


def _pictures_and_words(reduced: bool, batch: int) -> Inputs:
    side = 32 if reduced else 128
    return Inputs(({"pixels": torch.randn(batch, 3, side, side), "words": torch.randint(0, 100, (batch, 6))},))


MULTIMODAL = (
    Architecture(
        "Two towers, dict of inputs",
        "own",
        lambda reduced: TwoTowers(8, 16) if reduced else TwoTowers(64, 128),
        _pictures_and_words,
        ("picture2", "picture3"),
    ),
)
