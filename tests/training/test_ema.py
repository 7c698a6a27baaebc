"""Exponential moving averages, which copy the model deeply and then average its parameters."""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import compoff
from tests.small_networks import Plain

DECAY = 0.9


def student(model: compoff.Wrapped, x: torch.Tensor) -> torch.Tensor:
    with model.eval().at("block1"), torch.no_grad():
        return model(x)


def test_an_averaged_copy_is_the_student_of_the_averaged_bottlenecks() -> None:
    x = torch.randn(8, 3, 8, 8)
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod").train()
    model.distillation_loss(x)  # sets the units before the first copy
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=False)
    by_hand = [value.detach().clone() for value in model.bottleneck_parameters()]
    optimizer = torch.optim.Adam(model.bottleneck_parameters(), lr=1e-2)
    for step in range(5):
        loss = model.train().distillation_loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
        for mean, value in zip(by_hand, model.bottleneck_parameters(), strict=True):
            mean.copy_(value.detach() if step == 0 else DECAY * mean + (1 - DECAY) * value.detach())
    copied = averaged.module
    for ours, theirs in zip(copied.bottleneck_parameters(), by_hand, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(student(copied, x), student(model, x))

    # The copy's hooks lead to the copy's bottleneck: with its weights in the model, the model says the same.
    expected = student(copied, x)
    model.bottlenecks.load_state_dict(copied.bottlenecks.state_dict())
    torch.testing.assert_close(student(model, x), expected)


def test_a_copy_trains_on_its_own() -> None:
    x = torch.randn(8, 3, 8, 8)
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod").train()
    before = student(model, x)
    twin = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(twin.bottleneck_parameters(), lr=1e-2)
    twin.distillation_loss(x).backward()
    optimizer.step()
    assert torch.equal(student(model, x), before)
    assert not torch.equal(student(twin, x), before)
    head, tail = compoff.export(twin, "block1")
    torch.testing.assert_close(tail(bytes(head(x))), student(twin, x))
