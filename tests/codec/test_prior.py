"""The rate against numpy's cross-entropy and the real coder's bytes, and the tables against counted frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.codec import Prior
from compoff.coding.range_coder import encode
from compoff.coding.tables import PRECISION


def symbols_like(probabilities: np.ndarray, positions: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.stack([rng.choice(len(row), size=positions, p=row) for row in probabilities])


@pytest.mark.parametrize("space", [(), (7,), (3, 4)])
def test_estimated_rate_is_the_cross_entropy(space: tuple[int, ...]) -> None:
    prior = Prior(channels=3, num_centers=5)
    with torch.no_grad():
        prior.logits.copy_(torch.randn(3, 5))
    symbols = torch.randint(0, 5, (4, 3, *space))
    weights = torch.nn.functional.one_hot(symbols, 5).float()
    bits = -np.log2(prior.probabilities().detach().numpy())
    expected = sum(bits[channel, symbol] for (_, channel, *_), symbol in np.ndenumerate(symbols.numpy())) / 4
    assert prior.estimated_rate(weights).item() == pytest.approx(expected, rel=1e-5)


def test_estimated_rate_reaches_prior_and_weights() -> None:
    prior = Prior(channels=2, num_centers=3)
    weights = torch.softmax(torch.randn(4, 2, 6, 3), -1).requires_grad_()
    prior.estimated_rate(weights).backward()
    assert prior.logits.grad is not None
    assert float(prior.logits.grad.abs().sum()) > 0
    assert weights.grad is not None
    assert float(weights.grad.abs().sum()) > 0


def test_minimising_the_rate_finds_the_frequencies() -> None:
    truth = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    symbols = torch.from_numpy(symbols_like(truth, 500))[None]
    weights = torch.nn.functional.one_hot(symbols, 3).float()
    prior = Prior(channels=2, num_centers=3)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (prior.estimated_rate(weights) / 1000).backward()
        optimizer.step()
    frequencies = weights[0].mean(1)
    torch.testing.assert_close(prior.probabilities().detach(), frequencies, atol=0.01, rtol=0)


def test_counting_gives_the_symbols_frequencies() -> None:
    counts = torch.tensor([[700, 200, 100, 0], [1, 2, 3, 4]])
    prior = Prior(channels=2, num_centers=4)
    prior.count(counts)
    expected = (counts.double() + 0.5) / (counts.double() + 0.5).sum(1, keepdim=True)
    torch.testing.assert_close(prior.probabilities().detach().double(), expected, atol=1e-6, rtol=0)
    tables = prior.tables()
    assert tables.weights.sum(1).tolist() == [2**PRECISION] * 2
    np.testing.assert_allclose(tables.weights / 2**PRECISION, expected.numpy(), atol=1e-6)


def test_the_coders_bytes_follow_the_rate() -> None:
    truth = np.array([[0.9, 0.05, 0.05], [0.25, 0.5, 0.25]])
    symbols = symbols_like(truth, 4000)
    prior = Prior(channels=2, num_centers=3)
    prior.count(torch.from_numpy(np.stack([np.bincount(row, minlength=3) for row in symbols])))
    weights = torch.nn.functional.one_hot(torch.from_numpy(symbols)[None], 3).float()
    estimated = prior.estimated_rate(weights).item() / 8
    assert estimated - 1 <= len(encode(symbols, prior.tables())) <= 1.01 * estimated + 1
