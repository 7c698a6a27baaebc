"""torch.compile around the wrapped model, around the loss, and around the model before it is wrapped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import compoff
from tests.small_networks import Plain

BACKEND = "aot_eager"  # traces forward and backward as the default one does, and needs no C++ compiler


@pytest.fixture(autouse=True)
def _compiled_afresh() -> None:
    torch.compiler.reset()


def wrapped_plain(x: Tensor) -> compoff.Wrapped:
    return compoff.wrap(Plain().eval(), ["block1", "block2"], example_input=x, codec="deepcod").eval()


def test_each_student_and_the_teacher_stay_themselves() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = wrapped_plain(x)
    compiled = torch.compile(model, backend=BACKEND)
    seen = []
    for _ in range(2):  # the second time from what was compiled
        seen.append(compiled(x))
        torch.testing.assert_close(seen[-1], model(x))
        for split in model.split_points:
            with model.at(split):
                seen.append(compiled(x))
                torch.testing.assert_close(seen[-1], model(x))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


# The compiler looks at a gradient that it does not need.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loss_has_the_same_value_and_gradients() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = wrapped_plain(x)
    loss = compoff.DistillationLoss(model, "block1")
    loss.calibrate(x)
    found = []
    for call in (loss, torch.compile(loss, backend=BACKEND)):
        model.zero_grad()
        value = call(x)
        value.backward()
        gradients = [value.grad.flatten() for value in model.bottleneck_parameters() if value.grad is not None]
        found.append((value.detach(), torch.cat(gradients)))
    assert found[0][1].abs().max() > 0
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])


def test_a_compiled_model_can_be_wrapped_by_the_names_it_had() -> None:
    x = torch.randn(2, 3, 8, 8)
    net = Plain().eval()
    expected = net(x).detach()
    model = compoff.wrap(
        torch.compile(net, backend="eager"), ["_orig_mod.block1"], example_input=x, codec="deepcod"
    ).eval()
    torch.testing.assert_close(model(x), expected)
    with model.at("_orig_mod.block1"):
        assert not torch.equal(model(x), expected)
    model.distillation_loss(x).backward()


def test_a_model_compiled_in_place_is_fitted_and_stays_compiled() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = Plain().eval()
    expected = net(x).detach()
    net.compile(backend="eager")
    model = compoff.wrap(net, "block1", example_input=x, codec="deepcod").eval()
    compoff.fit(model, [x], steps=2, progress=False)
    torch.testing.assert_close(model(x), expected)
    assert net._compiled_call_impl is not None
