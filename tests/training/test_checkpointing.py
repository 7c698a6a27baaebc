"""Gradient checkpointing inside the base: the same gradients as without it, or an error, never others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

import compoff
from compoff.errors import FitError
from tests.small_networks import block


class Checkpointed(nn.Module):
    """Three blocks that are computed again in the backward pass: one by one, all together, or not at all."""

    def __init__(self, parts: str, *, reentrant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = block(3, 8)
        self.stage = nn.Sequential(block(8, 8), block(8, 8), block(8, 8))
        self.head = nn.Linear(8, 5)
        self.parts = {"each": list(self.stage), "together": [self.stage], "none": []}[parts]
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for part in self.parts:
            y = checkpoint(part, y, use_reentrant=self.reentrant)
        return self.head((y if self.parts else self.stage(y)).mean((2, 3)))


def gradients(net: nn.Module, split: str, *, loss: bool) -> Tensor:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    model = compoff.wrap(net.eval(), split, example_input=x, codec="deepcod").train()
    if loss:
        model.distillation_loss(x).backward()
    else:
        with model.at(split):
            model(x).square().sum().backward()
    return torch.cat([value.grad.flatten() for value in model.bottleneck_parameters() if value.grad is not None])


@pytest.mark.parametrize(("parts", "split"), [("each", "stage.1"), ("each", "stage.0"), ("together", "stage")])
def test_the_loss_has_the_same_gradients(parts: str, split: str) -> None:
    expected = gradients(Checkpointed("none"), split, loss=True)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradients(Checkpointed(parts), split, loss=True), expected)


@pytest.mark.parametrize("parts", ["each", "together"])
def test_a_bottleneck_that_is_computed_again_gives_what_it_gave(parts: str) -> None:
    expected = gradients(Checkpointed("none"), "stage.1", loss=False)
    torch.testing.assert_close(gradients(Checkpointed(parts), "stage.1", loss=False), expected)


def test_a_split_point_inside_a_checkpointed_part_is_an_error() -> None:
    with pytest.raises(CheckpointError):
        gradients(Checkpointed("together"), "stage.1", loss=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_that_loses_the_gradient_is_an_error() -> None:
    with pytest.raises(FitError, match=r"no gradient .* reaches the bottleneck at 'stage\.1'.*use_reentrant=False"):
        gradients(Checkpointed("together", reentrant=True), "stage.1", loss=True)
