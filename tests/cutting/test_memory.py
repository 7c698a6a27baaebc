"""Models that remember in plain attributes what they were asked, and those that only look like it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.cutting.capture import KeepsState
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.memory import require_memoryless
from tests.small_networks import tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Callable


class Net(nn.Module):
    """Two layers, and whatever `step` does with attributes."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.body, self.end = step, nn.Linear(8, 8), nn.Linear(8, 3)
        self.calls, self.seen, self.last, self.table = 0, {"means": [0.0]}, None, None

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, self.end(self.body(x).relu()))


def counts(net: Any, y: Tensor) -> Tensor:
    net.calls += 1
    return y


def multiplies(net: Any, y: Tensor) -> Tensor:
    net.calls += 1
    return y * net.calls


def lists(net: Any, y: Tensor) -> Tensor:
    net.seen["means"].append(0.0)
    return y + len(net.seen["means"])


def follows(net: Any, y: Tensor) -> Tensor:
    net.last = y if net.last is None or net.last.shape != y.shape else 0.5 * net.last + 0.5 * y
    return net.last


def sums(net: Any, y: Tensor) -> Tensor:
    net.last = torch.zeros_like(y) if net.last is None or net.last.shape != y.shape else net.last
    return net.last.add_(y.detach())


def remembers(net: Any, y: Tensor) -> Tensor:
    net.last = y
    return y


def fills_once(net: Any, y: Tensor) -> Tensor:
    net.table = torch.arange(3.0) if net.table is None else net.table
    return y + net.table


def draws(net: Any, y: Tensor) -> Tensor:
    net.last = torch.rand(3)
    return y + net.last


def refuses(net: Any, y: Tensor) -> Tensor:
    net.calls += 1
    if net.calls > 1:
        raise RuntimeError("once only")
    return y


@pytest.mark.parametrize(("step", "name"), [(multiplies, "calls"), (lists, "seen"), (follows, "last"), (sums, "last")])
def test_answers_that_change_with_an_attribute_are_refused(step: Any, name: str) -> None:
    net = Net(step)
    with pytest.raises(KeepsState, match=f"Net changes its own attribute '{name}' with every call, and its answers"):
        require_memoryless(net, ExampleInputs.of_call(net, (torch.ones(4, 8),)))
    assert (net.calls, net.seen, net.last) == (0, {"means": [0.0]}, None)


@pytest.mark.parametrize("step", [counts, remembers, fills_once, draws, refuses])
def test_other_attributes_pass(step: Any, caplog: pytest.LogCaptureFixture) -> None:
    net = Net(step)
    drawn = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "compoff"):
        require_memoryless(net, ExampleInputs.of_call(net, (torch.ones(4, 8),)))
    words = "Net changes its own attribute 'calls' with every call; the exported programs keep the value of now"
    assert caplog.messages == ([words] if step is counts else [])
    assert torch.equal(drawn, torch.get_rng_state())


def test_export_refuses_a_model_that_counts_and_leaves_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    for step in (multiplies, counts):
        net = Net(step).eval()
        wrapped = compoff.wrap(
            net, "end", example_input=torch.ones(4, 8), encoder=tiny_encoder, decoder=tiny_decoder, channels=2
        )
        if step is multiplies:
            with pytest.raises(KeepsState, match="'calls'"):
                compoff.export(wrapped, "end")
            with pytest.raises(KeepsState, match="'calls'"):
                compoff.export(wrapped, "end", tail_factory="tests.small_networks:Plain")
        else:
            with caplog.at_level(logging.WARNING, "compoff.export"):
                compoff.export(wrapped, "end")
            assert "'calls' with every call; the exported programs keep" in caplog.text
        assert net.calls == 0
