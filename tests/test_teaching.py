"""What a teacher's pass leaves: which tensors are compared, and which are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compoff.teaching import comparable, float_tensors, tapped


def test_only_what_holds_something_for_each_sample_is_compared() -> None:
    logits = torch.zeros(2, 3)
    output = {"loss": torch.tensor(1.0), "nested": [logits, (torch.ones(2, dtype=torch.int64), None, "text")]}
    assert [tensor is logits for tensor in float_tensors(output)] == [True]


@dataclass
class Parts:
    """An output that PyTorch does not know as a container."""

    mask: Tensor
    name: str = "mask"


def test_dataclasses_are_looked_into() -> None:
    mask = torch.zeros(2, 3)
    assert [tensor is mask for tensor in float_tensors([Parts(mask)])] == [True]


def test_passes_that_give_other_shapes_are_not_compared() -> None:
    one, empty = torch.zeros(2, 3), torch.zeros(2, 0)
    assert comparable([one, empty], [one + 1, empty])[0][0] is one
    assert len(comparable([one, empty], [one, empty])) == 1
    assert comparable([one], [torch.zeros(2, 4)]) == []
    assert comparable([one], [one, one]) == []


def test_a_tap_takes_what_a_block_returns_and_leaves_the_models_buffers_alone() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    taken: dict[str, list[Tensor]] = {}
    x = torch.randn(8, 4)
    with tapped(net, ("0",), taken):
        net(x)
    torch.testing.assert_close(taken["0"][0], net[0](x))
    assert float(net.get_buffer("1.running_mean").abs().sum()) == 0
    net(x)
    assert len(taken["0"]) == 1
