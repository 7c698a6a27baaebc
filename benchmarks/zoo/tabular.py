"""Networks for rows of a table: numbers alone, and numbers beside categories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.zoo.architecture import Architecture, Inputs

__all__ = ["TABULAR"]


class NumericMlp(nn.Module):
    """A perceptron with three hidden layers.

    Args:
        columns: Number of columns.
        hidden: Size of the hidden layers.

    Shapes:
        Rows ``(batch, columns)`` to one value ``(batch, 1)``.
    """

    def __init__(self, columns: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = self._layer(columns, hidden)
        self.layer2 = self._layer(hidden, hidden)
        self.layer3 = self._layer(hidden, hidden // 2)
        self.last = nn.Linear(hidden // 2, 1)

    @staticmethod
    def _layer(size: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(size, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Dropout(0.1))

    def forward(self, rows: Tensor) -> Tensor:
        """Predict the value."""
        return self.last(self.layer3(self.layer2(self.layer1(rows))))


class CategoryMlp(nn.Module):
    """Embedded categories beside numbers, a wide and a deep way to the answer.

    Args:
        columns: Number of numeric columns.
        categories: How many values each categorical column has.
        hidden: Size of the hidden layers.

    Shapes:
        Numbers ``(batch, columns)`` and categories ``(batch, categorical columns)`` to a dict of logits and value.
    """

    def __init__(self, columns: int, categories: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 4) for size in categories)
        self.deep1 = nn.Sequential(nn.Linear(columns + 4 * len(categories), hidden), nn.ReLU())
        self.deep2 = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU())
        self.wide = nn.Linear(columns, 2)
        self.logits = nn.Linear(hidden, 2)

    def forward(self, numbers: Tensor, categories: Tensor) -> dict[str, Tensor]:
        """Score both classes."""
        embedded = [table(categories[:, index]) for index, table in enumerate(self.embeddings)]
        y = self.deep2(self.deep1(torch.cat([numbers, *embedded], 1)))
        return {"logits": self.logits(y) + self.wide(numbers), "embedding": y}


def _numbers(reduced: bool, batch: int) -> Inputs:
    return Inputs((torch.randn(batch, 8 if reduced else 54),))


def _numbers_and_categories(reduced: bool, batch: int) -> Inputs:
    del reduced
    return Inputs(kwargs={"numbers": torch.randn(batch, 6), "categories": torch.randint(0, 5, (batch, 3))})


TABULAR = (
    Architecture(
        "Tabular MLP",
        "own",
        lambda reduced: NumericMlp(8, 16) if reduced else NumericMlp(54, 256),
        _numbers,
        ("layer2", "layer3"),
    ),
    Architecture(
        "Tabular MLP with categories",
        "own",
        lambda reduced: CategoryMlp(6, (5, 7, 9), 16 if reduced else 256),
        _numbers_and_categories,
        ("deep2", "deep1"),
    ),
)
