"""Hooks on the object that wrap returned: those that look may stay, those that change something are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FitError, SplitError

if TYPE_CHECKING:
    from collections.abc import Callable


def wrapped() -> compoff.Wrapped:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    return compoff.wrap(net, "2", example_input=torch.zeros(2, 8))


def batches() -> list[Tensor]:
    return [torch.randn(16, 8) for _ in range(4)]


def hang_pre(change: Callable[[Tensor], Any]) -> Callable[[compoff.Wrapped], None]:
    return lambda model: [model.register_forward_pre_hook(lambda module, args: change(args[0]))].clear()


def hang(change: Callable[[Tensor], Any]) -> Callable[[compoff.Wrapped], None]:
    return lambda model: [model.register_forward_hook(lambda module, args, output: change(output))].clear()


CHANGING = {
    "input": [hang_pre(lambda x: (x / 255,)), hang_pre(lambda x: x.add_(1).sum() and None)],
    "output": [hang(lambda y: y * 2), hang(lambda y: y.mul_(2).sum() and None), hang(lambda y: {"logits": y})],
}


@pytest.mark.parametrize(("what", "hook"), [(what, hook) for what, hooks in CHANGING.items() for hook in hooks])
def test_a_hook_that_changes_what_passes_is_refused_by_fit_and_export(what: str, hook: Any) -> None:
    model = wrapped()
    hook(model)
    for call in (compoff.fit, compoff.calibrate):
        with pytest.raises(FitError, match=f"a hook on what compoff.wrap returned changes its {what}"):
            call(model, batches())
    with pytest.raises(SplitError, match=f"changes its {what}"):
        compoff.export(model, "2")


def test_it_is_refused_by_finish_too() -> None:
    model = wrapped()
    compoff.calibrate(model, batches())
    hang(lambda y: y + 1)(model)
    with pytest.raises(FitError, match=r"register it on wrapped\.base"):
        compoff.finish(model, batches())


def test_a_model_whose_shapes_the_fit_learns_is_looked_at_too() -> None:
    model = compoff.wrap(nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 3)), "1")
    hang(lambda y: y + 1)(model)
    with pytest.raises(FitError, match="changes its output"):
        compoff.fit(model, batches(), steps=1)


def test_a_hook_that_only_looks_may_stay_and_no_other_is_left_behind() -> None:
    model, seen = wrapped(), list[Any]()
    model.register_forward_pre_hook(lambda module, args: seen.append(args))
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    compoff.fit(model, batches(), steps=2)
    compoff.export(model, "2")
    assert seen
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == (1, 1)


def test_hooks_on_the_base_count_everywhere() -> None:
    model = wrapped()
    model.base.register_forward_pre_hook(lambda module, args: (args[0] * 3 + 1,))
    compoff.fit(model, batches(), steps=2)
    head, tail = compoff.export(model, "2")
    x = torch.randn(5, 8)
    with model.eval().at("2"), torch.no_grad():
        torch.testing.assert_close(tail(head(x, quality=10)), model(x))
