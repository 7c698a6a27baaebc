"""The density: a probability, at every step, with gradients everywhere."""

from __future__ import annotations

import pytest
import torch

from compoff.codec import Density


def started(channels: int = 3) -> Density:
    density = Density(channels)
    density.start(torch.linspace(0.1, 5, channels))
    return density


def single(density: Density, channel: int) -> Density:
    """One channel by itself."""
    alone = Density(1)
    with torch.no_grad():
        alone.center.copy_(density.center[channel : channel + 1])
        alone.log_scales.copy_(density.log_scales[:, channel : channel + 1])
        alone.mixture.copy_(density.mixture[channel : channel + 1])
    return alone


@pytest.mark.parametrize("step", [1.0, 3.0, 7.0])
def test_the_multiples_of_a_step_have_all_the_probability(step: float) -> None:
    density = started()
    values = (torch.arange(401) - 200.0) * step
    masses = [2 ** -part.bits(values.view(-1, 1, 1), step).detach() for part in (single(density, c) for c in range(3))]
    for mass in masses:
        torch.testing.assert_close(mass.sum(), torch.tensor(1.0), atol=1e-3, rtol=0)
    table = density.probabilities(255)
    torch.testing.assert_close(table.sum(1), torch.ones(3, dtype=torch.float64))
    by_hand = 2 ** -density.bits(torch.zeros(1, 3, 1), 1.0).detach()
    assert float(by_hand) == pytest.approx(float(table[:, 127].detach().prod()), rel=1e-4)


def test_a_wide_channel_costs_more_and_a_coarse_step_less() -> None:
    density = Density(1)
    costs: list[float] = []
    for deviation in (0.3, 3.0):
        density.start(torch.tensor([deviation]))
        values = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0)) * deviation
        costs += [float(density.bits((values / step).round() * step, step).detach().mean()) for step in (1.0, 3.0)]
    assert costs[1] < costs[0] < costs[2]
    assert costs[1] < costs[3] < costs[2]


def test_one_step_for_each_sample() -> None:
    density, values = started(), torch.randn(4, 3, 5)
    together = density.bits(values, torch.tensor([1.0, 2.0, 2.0, 5.0]))
    alone = [density.bits(values[i : i + 1], step) for i, step in enumerate((1.0, 2.0, 2.0, 5.0))]
    torch.testing.assert_close(together, torch.cat(alone))


def test_gradients_reach_values_and_parameters() -> None:
    density, values = started(), torch.randn(4, 3, 5, requires_grad=True)
    density.bits(values).sum().backward()
    assert values.grad is not None
    assert float(values.grad.abs().sum()) > 0
    assert all(parameter.grad is not None for parameter in density.parameters())
    assert bool(torch.isfinite(density.bits(torch.full((1, 3, 1), 1e6))).all())
