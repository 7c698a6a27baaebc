"""Which tensor enters a split point, and which module made it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compoff.cutting.sites import check_names, first_tensor, frozen, locate, named_modules
from compoff.errors import SplitError
from tests.small_networks import (
    ConcatSkip,
    FunctionalRelu,
    FunctionalSkip,
    IdentityBehind,
    IdentitySkip,
    InputSkip,
    Nested,
    OptionalInputs,
    Plain,
    Skip,
)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


@pytest.mark.parametrize(
    ("net", "path", "producer", "at_input"),
    [
        (Plain(), "block1", "stem.2", False),  # the ReLU: it changed the BatchNorm's tensor in place
        (Plain(), "block1.1", "block1.0", False),
        (Plain(), "input", None, True),
        (Plain(), "stem", None, True),
        (Plain(), "stem.0", None, True),
        (Plain(), "classifier", "drop", False),
        (Skip(), "block1", "stem.2", False),
        (IdentitySkip(), "block1", "stem.2", False),
        (IdentityBehind(), "block1", None, False),
        (InputSkip(), "stem", None, True),
        (FunctionalSkip(), "block1", None, False),
        (ConcatSkip(), "block1", None, False),
        (FunctionalRelu(), "block1", None, False),
    ],
)
def test_finds_the_first_module_that_returned_the_tensor(
    net: nn.Module, path: str, producer: str | None, at_input: bool
) -> None:
    site = locate(net, [path], (images(),))[path]
    assert (site.producer, site.at_input) == (producer, at_input)


def test_a_module_that_runs_twice_is_no_producer_but_the_block_around_it_is() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.linear(self.relu(self.linear(x))))

    net = nn.Sequential(Shared(), nn.Linear(4, 4))
    assert locate(net, ["1"], (torch.randn(2, 4),))["1"].producer == "0"


def test_shape_is_that_of_one_sample() -> None:
    sites = locate(Plain(), ["input", "block1", "classifier"], (images(5),))
    assert {path: site.shape for path, site in sites.items()} == {
        "input": (3, 8, 8),
        "block1": (8, 8, 8),
        "classifier": (8,),
    }


def test_later_blocks_are_those_with_parameters_in_order_of_their_calls() -> None:
    sites = locate(Plain(), ["input", "block1.1", "block2"], (images(),))
    assert sites["input"].later == ("stem", "block1", "block2", "classifier")
    assert sites["block1.1"].later == ("block1.1", "block2", "classifier")
    assert sites["block2"].later == ("block2", "classifier")


def test_a_module_called_input_gives_way_to_the_models_own_input() -> None:
    net = nn.Sequential()
    net.add_module("input", nn.Linear(4, 6))
    net.add_module("next", nn.Linear(6, 2))
    site = locate(net, ["input"], (torch.randn(2, 4),))["input"]
    assert (site.shape, site.producer, site.at_input) == ((4,), None, True)


def test_the_first_tensor_counts_where_there_are_several_arguments() -> None:
    class Block(nn.Module):
        def forward(self, flag: bool | None, x: Tensor, y: Tensor) -> Tensor:
            return x + y if flag else y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(None, x * 1.0, y=x)

    assert locate(Net(), ["block"], (torch.randn(2, 4),))["block"].shape == (4,)


def test_keyword_inputs_are_inputs() -> None:
    site = locate(OptionalInputs(), ["input", "block1"], (), {"x": images(), "double": True})
    assert site["input"].at_input
    assert site["block1"].shape == (8, 8, 8)


def test_the_run_leaves_no_trace() -> None:
    net = Nested()
    net.block1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = {name: module.training for name, module in net.named_modules()}
    locate(net, ["block2"], (images(),))
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_an_error_of_the_model_leaves_no_trace() -> None:
    net = Plain()
    with pytest.raises(RuntimeError, match="channels"):
        locate(net, ["block2"], (torch.randn(2, 4, 8, 8),))
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_outputs_are_not_kept_alive() -> None:
    # What all modules of a large model return does not fit into memory together.
    alive: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(1 for tensor in made if tensor() is not None))
            y = x + 1.0
            made.append(weakref.ref(y))
            return y

    made: list[Any] = []
    locate(nn.Sequential(*[Counting() for _ in range(6)]), ["5"], (torch.randn(2, 4),))
    assert max(alive) <= 2


def test_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        assert locate(Skip(), ["block1"], (images(),))["block1"].producer == "stem.2"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("blok1", r"'blok1' is not a module of Plain; did you mean 'block1'\? modules at that depth: stem, block1"),
        ("Input", r"did you mean 'input'\?"),
        ("block1.7", r"'block1.7' is not a module of Plain.*at that depth: stem.0, stem.1"),
        ("a.b.c.d", r"'a.b.c.d' is not a module of Plain; modules at that depth: stem, block1|did you mean"),
    ],
)
def test_unknown_names_come_with_near_ones(path: str, reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        check_names(Plain(), [path])


def test_frozen_gives_every_module_its_own_mode_back() -> None:
    net = Plain()
    net.block1.eval()
    with frozen(net):
        assert not any(module.training for module in net.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(KeyError, match="stop"), frozen(net):
        raise KeyError("stop")
    assert net.training
    assert not net.block1[0].training
    assert net.block2[0].training


def test_first_tensor_of_nothing_is_none() -> None:
    assert first_tensor((1, None), {"a": "b"}) is None


def test_named_modules_lists_the_model_itself() -> None:
    net = Plain()
    assert named_modules(net)[""] is net
    assert list(named_modules(net)) == [name for name, _ in net.named_modules()]
