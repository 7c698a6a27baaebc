"""A frozen model: put back before every pass, whichever part a script has touched."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from compoff.frozen import Frozen


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Dropout(), nn.ReLU()))
    return net.eval().requires_grad_(requires_grad=False)


class Moody(nn.ReLU):
    """Derived from a module that is the same in either mode, which this one is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x if self.training else x


@pytest.mark.parametrize("part", ["", "1", "2.0"])
def test_a_part_in_training_mode_is_put_back(part: str) -> None:
    net = network()
    frozen = Frozen(net)
    frozen.keep()
    net.get_submodule(part).train()
    frozen.keep()
    assert not any(module.training for module in net.modules())


def test_a_class_of_ones_own_is_watched() -> None:
    net = nn.Sequential(Moody())
    frozen = Frozen(net.eval())
    frozen.keep()
    net[0].train()
    frozen.keep()
    assert not net[0].training


def test_a_parameter_that_wants_gradients_is_put_back() -> None:
    net = network()
    frozen = Frozen(net)
    frozen.keep()
    net[1].weight.requires_grad_(requires_grad=True)
    with torch.no_grad():
        frozen.keep()  # nothing is recorded: it need not look
    frozen.keep()
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_modules_added_since_are_seen_when_it_looks_again() -> None:
    net = network()
    frozen = Frozen(net)
    frozen.keep()
    net.append(nn.Dropout())
    frozen.look_again()
    frozen.keep()
    assert not net[3].training


@pytest.mark.parametrize("through", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_watches_its_own_model(through: object) -> None:
    net = network()
    frozen = Frozen(net)
    frozen.keep()
    twin_net, twin = through((net, frozen))  # type: ignore[operator]
    twin_net[1].train()
    frozen.keep()
    assert twin_net[1].training
    twin.keep()
    assert not twin_net[1].training
    net[1].train()
    twin.keep()
    assert net[1].training


def test_a_compiler_may_look_at_it() -> None:
    net = network()
    frozen = Frozen(net)

    def call(x: torch.Tensor) -> torch.Tensor:
        frozen.keep()
        return net(x)

    x = torch.randn(1, 3, 5, 5)
    expected = call(x)
    net[1].train()
    torch.testing.assert_close(torch.compile(call, backend="eager")(x), expected)
    assert not net[1].training


def test_a_module_that_repeats_the_mode_of_another_is_left_to_that_one() -> None:
    net = network()
    frozen = Frozen(torch.compile(net, backend="eager"))  # type: ignore[arg-type]
    net[1].train()
    frozen.keep()
    assert not net[1].training


def test_a_part_that_is_put_in_later_is_kept_like_the_others() -> None:
    net = network()
    frozen = Frozen(net)
    frozen.keep()
    net[2][1] = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    net[0].extra = nn.BatchNorm2d(4)  # a layer that had no children
    frozen.keep()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    net[2][1][1].train()
    frozen.keep()
    assert not net[2][1][1].training


def test_a_copy_notices_what_is_put_into_the_copy() -> None:
    net = network()
    frozen = Frozen(net)
    frozen.keep()
    copied = copy.deepcopy(frozen)
    copied.keep()
    inside = copied._model
    assert isinstance(inside, nn.Sequential)
    inside[2] = nn.Dropout()
    copied.keep()
    assert not inside[2].training
