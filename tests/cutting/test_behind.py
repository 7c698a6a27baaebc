"""Layers behind a cut: those that only the edge runs, with an axis of channels that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from compoff.cutting.behind import Layer
from compoff.cutting.sites import locate
from tests.small_networks import same, values


def behind(net: nn.Module, split: str, x: Tensor) -> tuple[Layer, ...]:
    return locate(net.eval(), [split], (x,))[split].behind


class Twice(nn.Module):
    """One normalization before and behind the cut, another one only behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.block, self.own = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.shared(self.block(self.shared(x))))


class LayerNorm2d(nn.LayerNorm):
    """Channels first, as in ConvNeXt."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Turned(nn.Linear):
    """Channels first, as in a product with a matrix on the left."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, -1)).transpose(1, -1)


def fixed(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Its scales are no parameters."""
    scales = norm.weight.detach()
    del norm.weight
    norm.register_buffer("weight", scales)
    return norm


def test_normalizations_that_run_only_behind_the_cut() -> None:
    assert behind(Twice(), "block", torch.randn(2, 4, 8, 8)) == (Layer("own", 4, 1),)


@pytest.mark.parametrize(
    ("net", "x", "expected"),
    [
        (nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(2, 5, 8), Layer("1", 6, -1)),
        (nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU()), torch.randn(2, 4, 16), Layer("0", 6, 1)),
        (nn.Sequential(nn.Linear(32, 6), nn.ReLU()), torch.randn(2, 32), Layer("0", 6, -1)),
        (nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.ReLU()), torch.randn(2, 4, 16), Layer("0", 6, 1)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.ReLU()), torch.randn(2, 4, 8, 8), Layer("0", 6, 1)),
        (nn.Sequential(nn.ConvTranspose3d(4, 6, 3), nn.ReLU()), torch.randn(2, 4, 4, 4, 4), Layer("0", 6, 1)),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4)), torch.randn(2, 4, 8, 8), Layer("1", 4, 1)),
        (nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6)), torch.randn(2, 8), Layer("1", 6, -1)),
        (nn.Sequential(Turned(4, 6), nn.Conv2d(6, 2, 1)), torch.randn(2, 4, 8, 8), Layer("1", 2, 1)),
        (nn.Sequential(nn.Conv2d(4, 4, 1), fixed(nn.BatchNorm2d(4))), torch.randn(2, 4, 8, 8), Layer("1", 4, 1)),
        (
            nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 6, 1)), nn.ReLU()),
            torch.randn(2, 4, 8, 8),
            Layer("0", 6, 1),
        ),
        (nn.Sequential(nn.Conv2d(4, 6, 1), nn.LayerNorm((6, 8, 8))), torch.randn(2, 4, 8, 8), Layer("0", 6, 1)),
    ],
)
def test_each_kind_of_layer(net: nn.Module, x: Tensor, expected: Layer) -> None:
    assert behind(net, "input", x) == (expected,)


def test_the_model_itself_is_no_layer_of_its_own() -> None:
    assert behind(nn.Linear(32, 6), "input", torch.randn(2, 32)) == ()


def test_a_subclass_whose_channels_may_lie_elsewhere_is_left_out() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), LayerNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4))
    assert behind(net, "input", torch.randn(2, 3, 4, 4)) == (Layer("3", 4, 1),)


@pytest.mark.parametrize("training", [True, False])
def test_a_parametrized_weight_is_not_computed(training: bool) -> None:
    blocks = [nn.Linear(8, 8), parametrizations.spectral_norm(nn.Linear(8, 8)), nn.BatchNorm1d(8)]
    norms = [nn.BatchNorm1d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8)]
    net = nn.Sequential(*blocks, *map(parametrizations.weight_norm, norms)).train(training)
    before = values(net)
    assert locate(net, ["1"], (torch.randn(2, 8),))["1"].behind == (*(Layer(place, 8, 1) for place in "234"),)
    assert same(before, values(net))
