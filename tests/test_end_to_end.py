"""Real networks with real weights over a real socket: what the remote answers is what the student answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import compoff

if TYPE_CHECKING:
    from pathlib import Path


def _check(net: torch.nn.Module, splits: list[str], size: int) -> None:
    """Every split point, batches of 1, 3 and 64, through one server."""
    model = compoff.wrap(net, splits, example_input=torch.randn(2, 3, size, size)).eval()
    pairs = [compoff.export(model, split) for split in splits]
    x = torch.randn(64, 3, size, size)
    heads, tails = [head for head, _ in pairs], [tail for _, tail in pairs]
    with compoff.serve(tails) as server, compoff.connect(heads, server.address, timeout=120) as remote:
        for split in splits:
            with torch.no_grad(), model.at(split):
                expected = model(x)
            for batch in (1, 3, 64):
                answer = remote(x[:batch], split=split)
                torch.testing.assert_close(answer, expected[:batch], atol=1e-5, rtol=1e-5)


@pytest.mark.data
def test_cifar_resnet56(data: Path) -> None:
    from benchmarks.networks import load_cifar_resnet

    _check(load_cifar_resnet(56, data), ["input", "layer1", "layer2", "layer3"], 32)


@pytest.mark.data
@pytest.mark.timeout(600)
def test_pqf_resnet18(data: Path) -> None:
    from benchmarks.networks import load_pqf

    _check(load_pqf("resnet18", data), ["input", "layer1", "layer2", "layer3", "layer4"], 224)
