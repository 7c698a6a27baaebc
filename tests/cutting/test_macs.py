"""Multiply-accumulates by hand, of layers as they run and as an exported graph holds them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compoff.cutting.graph_flow import _macs
from compoff.cutting.macs import count_macs

if TYPE_CHECKING:
    from collections.abc import Callable


class Counting(TorchDispatchMode):
    """Adds up what passes."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.macs += count_macs(func, args, output)
        return output


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


STEPS = torch.randn(2, 5, 16)
LAYERS: dict[str, tuple[nn.Module, tuple[Tensor, ...], int]] = {
    "rnn, tanh": (nn.RNN(16, 8, batch_first=True), (STEPS,), 10 * (8 * 16 + 8 * 8)),
    "rnn, relu, two layers": (
        nn.RNN(16, 8, 2, nonlinearity="relu", batch_first=True), (STEPS,), 10 * (8 * 16 + 3 * 8 * 8),
    ),
    "lstm": (nn.LSTM(16, 8, batch_first=True), (STEPS,), 10 * 4 * (8 * 16 + 8 * 8)),
    "lstm without bias": (nn.LSTM(16, 8, bias=False, batch_first=True), (STEPS,), 10 * 4 * (8 * 16 + 8 * 8)),
    "gru without bias": (nn.GRU(16, 8, bias=False, batch_first=True), (STEPS,), 10 * 3 * (8 * 16 + 8 * 8)),
    "gru cell": (nn.GRUCell(16, 8), (torch.randn(2, 16),), 2 * 3 * (8 * 16 + 8 * 8)),
    "transposed, 3d": (nn.ConvTranspose3d(2, 3, 2), (torch.randn(1, 2, 4, 4, 4),), 2 * 4**3 * 3 * 2**3),
    "bilinear": (nn.Bilinear(4, 6, 5), (torch.randn(7, 4), torch.randn(7, 6)), 7 * 4 * 6 * 5),
    "einsum": (Of(lambda x, w: torch.einsum("btc,cd->btd", x, w)), (STEPS, torch.randn(16, 8)), 2 * 5 * 16 * 8),
    "einsum over dots": (
        Of(lambda x, w: torch.einsum("...c,dc", x, w)), (STEPS, torch.randn(8, 16)), 2 * 5 * 16 * 8,
    ),
    "einsum of three": (
        Of(lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c)),
        (torch.randn(2, 3), torch.randn(3, 4), torch.randn(4, 5)),
        2 * 3 * 4 + 2 * 4 * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_the_same_as_it_runs_and_exported(name: str) -> None:
    layer, inputs, macs = LAYERS[name]
    with torch.no_grad(), Counting() as counting:
        layer.eval()(*inputs)
    assert counting.macs == macs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch.export.export(layer, inputs).graph
    assert sum(_macs(node) for node in graph.nodes if node.op == "call_function") == macs
