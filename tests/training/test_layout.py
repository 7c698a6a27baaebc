"""channels_last: a matter of memory, never of values."""

from __future__ import annotations

import pytest
import torch

import compoff
from tests.small_networks import Plain, Skip


@pytest.mark.parametrize("make", [Plain, Skip])
@pytest.mark.parametrize("when", ["before", "after"])
def test_gives_what_the_other_layout_gives(make: type[Plain], when: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    net = make().eval()
    expected = net(x).detach()
    model = compoff.wrap(net, "block1", example_input=x, codec="deepcod").eval()
    with model.at("block1"):
        student = model(x).detach()
    if when == "before":
        net = model.unwrap().to(memory_format=torch.channels_last)
        states = model.bottlenecks.state_dict()
        model = compoff.wrap(
            net, "block1", example_input=x.to(memory_format=torch.channels_last), codec="deepcod"
        ).eval()
        model.bottlenecks.load_state_dict(states)
    else:
        model = model.to(memory_format=torch.channels_last)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), expected)
    with model.at("block1"):
        torch.testing.assert_close(model(last), student)


def test_the_loss_is_the_same() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod").eval()
    first = model.distillation_loss(x)
    last = model.to(memory_format=torch.channels_last).distillation_loss(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, first)


def test_exports_after_channels_last() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = compoff.wrap(
        Plain().eval().to(memory_format=torch.channels_last), "block1", example_input=x, codec="deepcod"
    ).eval()
    head, tail = compoff.export(model, "block1")
    with model.at("block1"), torch.no_grad():
        expected = model(x)
    for given in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(tail(bytes(head(given))), expected)
