"""A head and its tail whose arithmetic is exact on every machine and in every runtime, and the payloads that they make.

All weights and inputs are small whole numbers and no value lies near the middle between two centers, so a payload that
differs from the golden one is a mistake, never rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compoff.coding import SymbolTables
from compoff.device.head import Head
from compoff.device.runners.torch import TorchRunner
from compoff.edge.backends.eager import EagerBackend
from compoff.edge.tail import Tail
from compoff.manifest import CodeSpec, Manifest, TensorSpec
from compoff.programs import TorchProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CENTERS", "GOLDEN", "golden_head", "golden_inputs", "golden_payloads", "golden_tail", "whole_numbers"]

CENTERS = (-29.25, -9.25, 0.75, 10.25, 28.25)

GOLDEN = {
    "range": {
        1: "110101fdfd0bb9839bc2befd75114463b574e77f3edfe3cb58be38cd",
        3: "110103fdfd0bb9839727a3fe7704e4452bf740b36707f7a61c65e2a4b3328083b7bfa33cfe8598a8acf0ca054878970e696e"
        "0a142552b727a9cca5dc409aa43d88c784f2871f",
    },
    "huffman": {
        1: "120101fdbb2eeeaafb23f6961c77bfedbf6face474739740edbaccba",
        3: "120103fdbb2eeeaafaeeebaddbdff5d37faf75aeec8fda5871f2f6b5b71c26c07c7e9e7bfedbf6facfe4d92c7d37b4d5e7ff"
        "ff391d1ce5d42bba73bb8f1cbbb16850c640e2",
    },
    "raw": {
        1: "1001018d86880092612c344c6e06421148db9038d10512112082821328be7d",
        3: "1001038d868800926120020b0e29090539118816402c344c6e06422da72184a0c86090022126141148db9038d19096c14446"
        "5c4806843249210512112082824494804410012c920a0212a2958155ec",
    },
}
"""Payloads in hexadecimal digits, by coding and number of samples."""

_SHAPE = (3, 8, 8)
_LATENT = (4, 4, 4)


def whole_numbers(shape: tuple[int, ...], spread: int) -> NDArray[np.float32]:
    """Small whole numbers that look random."""
    index = np.arange(int(np.prod(shape)), dtype=np.int64)
    return ((index * 2654435761 % 4294967291 >> 7) % (2 * spread + 1) - spread).reshape(shape).astype(np.float32)


def golden_inputs(batch: int) -> NDArray[np.float32]:
    """Inputs of a batch; those of a larger one begin with those of a smaller."""
    return whole_numbers((batch, *_SHAPE), 4)


class _Device(nn.Module):
    """Two layers, then the nearest center."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, padding=1)
        self.encoder = nn.Conv2d(6, 4, 2, stride=2)
        with torch.no_grad():
            for parameter, spread in ((self.layer.weight, 1), (self.layer.bias, 2), (self.encoder.weight, 1)):
                parameter.copy_(torch.from_numpy(whole_numbers(tuple(parameter.shape), spread)))
            self.encoder.bias.zero_()
        self.centers = nn.Buffer(torch.tensor(CENTERS))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(torch.relu(self.layer(x)))
        return (z.unsqueeze(-1) - self.centers).abs().argmin(-1).to(torch.uint8)


class _Edge(nn.Module):
    """The centers, summed up."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Buffer(torch.tensor(CENTERS))

    def forward(self, symbols: Tensor) -> Tensor:
        return self.centers[symbols.long()].sum((2, 3))


def _program(model: nn.Module, example: Tensor) -> TorchProgram:
    free = ({0: torch.export.Dim.DYNAMIC},)
    return TorchProgram(
        torch.export.export(model.eval().requires_grad_(requires_grad=False), (example,), dynamic_shapes=free)
    )


def _manifest(kind: str) -> Manifest:
    return Manifest(
        kind=kind,
        artifact_id="c0ffee" + "0123456789abcdef" * 3 + "0" * 10,
        split="encoder",
        model="Golden",
        inputs=(TensorSpec(_SHAPE, "float32"),),
        outputs=(TensorSpec((4,), "float32"),),
        structure={"dict": [["sums", {"leaf": 0}]]},
        codes=(CodeSpec(_LATENT, num_centers=len(CENTERS), qualities=(2, 4)),),
        sides=(),
        max_batch=16,
    )


def _tables() -> list[SymbolTables]:
    return [SymbolTables.from_counts([[1, 5, 9, 4, 1], [2, 2, 2, 2, 2], [7, 1, 1, 1, 1], [1, 30, 5, 1, 1]])]


def golden_head() -> Head:
    """The head, under PyTorch."""
    return Head(_manifest("head"), _tables(), TorchRunner(_program(_Device(), torch.zeros(2, *_SHAPE))))


def golden_tail() -> Tail:
    """The tail, under PyTorch."""
    program = _program(_Edge(), torch.zeros((2, *_LATENT), dtype=torch.uint8))
    return Tail(_manifest("tail"), _tables(), EagerBackend(program))


def golden_payloads(head: Any) -> dict[str, dict[int, str]]:
    """What a head makes of the golden inputs, to compare with `GOLDEN`."""
    return {
        coding: {batch: bytes(head(golden_inputs(batch), coding=coding)).hex() for batch in (1, 3)}
        for coding in ("range", "huffman", "raw")
    }
