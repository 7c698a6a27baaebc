"""The switch at a split point, and the two hooks that put it there."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from compoff.codec import Bottleneck, Geometry
from compoff.gates import Gate, InputHook, OutputHook


def gate() -> Gate:
    return Gate(Bottleneck(Geometry((4, 8)), channels=2).eval())


def test_off_on_and_replaced() -> None:
    switch, y = gate(), torch.randn(3, 4, 8)
    assert switch(y) is y
    switch.on = True
    assert torch.equal(switch(y), switch.bottleneck(y))
    switch.replace = torch.neg  # stronger than on
    assert torch.equal(switch(y), -y)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("kind", [OutputHook, InputHook])
def test_a_copy_owns_its_own_bottleneck_and_no_running_pass(copied: object, kind: type) -> None:
    assert callable(copied)
    hook = kind(gate())
    hook.gate.on, hook.gate.replace = True, lambda y: y
    again = copied(hook)
    assert type(again) is kind
    assert again.gate.on
    assert again.gate.replace is None
    assert again.gate.bottleneck is not hook.gate.bottleneck
    y = torch.randn(3, 4, 8)
    assert torch.equal(again.gate(y), hook.gate.bottleneck(y))


class Weighted(nn.Module):
    def forward(self, scale: float, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return scale * y if mask is None else scale * y * mask


def test_behind_a_module_every_reader_sees_what_the_gate_gives() -> None:
    switch, module = gate(), nn.Identity()
    module.register_forward_hook(OutputHook(switch))
    switch.replace = torch.neg
    y = torch.randn(3, 4, 8)
    assert torch.equal(module(y), -y)


def test_before_a_module_the_first_tensor_goes_through_the_gate() -> None:
    switch, module = gate(), Weighted()
    module.register_forward_pre_hook(InputHook(switch), with_kwargs=True)
    switch.replace = torch.neg
    y, mask = torch.randn(3, 4, 8), torch.rand(3, 4, 8)
    assert torch.equal(module(2.0, y), -2 * y)
    assert torch.equal(module(2.0, y, mask=mask), -2 * y * mask)
    assert torch.equal(module(2.0, mask=mask, y=y), 2 * y * -mask)  # the first as they were given
    assert torch.equal(module(scale=2.0, y=y), -2 * y)


def test_a_call_without_a_tensor_passes_untouched() -> None:
    hook = InputHook(gate())
    assert hook(nn.Identity(), (3,), {"name": "x"}) == ((3,), {"name": "x"})
