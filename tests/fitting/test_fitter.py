"""One step of a fit at a time: whose gradients it takes, and what its factors and rates may become."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.batch import Batch
from compoff.errors import FitError
from compoff.fitting.aim import Aim
from compoff.fitting.fitter import Fitter
from compoff.recipe import Recipe

if TYPE_CHECKING:
    from compoff.codec import CodecName

X = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))


def model(codec: CodecName = "deepcod") -> compoff.Wrapped:
    """Two layers with a split point before each."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))
    return compoff.wrap(net, ["input", "1"], example_input=X[:2], codec=codec).train()


def fitter(wrapped: compoff.Wrapped, recipe: Recipe | None = None, **options: Any) -> Fitter:
    return Fitter(wrapped, recipe or Recipe(), **{"lr": 1e-3, "rate": 0.0, "total": 100, **options})


def gradients(wrapped: compoff.Wrapped, split: str) -> Tensor:
    found = (parameter.grad for one in wrapped.bottlenecks_at(split) for parameter in one.parameters())
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def test_a_step_takes_the_gradients_of_its_own_batch_alone() -> None:
    wrapped = model()
    steps = fitter(wrapped)
    steps.step(Batch((X,)))
    fresh = copy.deepcopy(wrapped)
    for parameter in fresh.bottlenecks.parameters():
        parameter.grad = None
    mean = steps.step(Batch((-X,)))
    assert mean == pytest.approx(sum(losses[-1] for losses in steps.state.loss.values()) / 2)
    fitter(fresh).step(Batch((-X,)))
    for split in wrapped.split_points:
        assert torch.equal(gradients(wrapped, split), gradients(fresh, split))


def test_the_loss_and_its_first_term_are_noted_each_by_itself() -> None:
    steps = fitter(model(), Recipe(reconstruction=3.0, orthogonality=0.0, prior=0.0))
    steps.step(Batch((X,)))
    for split, losses in steps.state.loss.items():
        assert losses == pytest.approx([3.0 * one for one in steps.state.reconstruction[split]])


def test_gradients_are_clipped_for_each_split_point_by_itself() -> None:
    wrapped = model()
    fitter(wrapped, Recipe(reconstruction=1e4)).step(Batch((X,)))
    assert [float(gradients(wrapped, split).norm()) for split in wrapped.split_points] == pytest.approx([1.0, 1.0])


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    wrapped = model()
    steps = fitter(wrapped)
    next(wrapped.bottleneck("1").parameters()).register_hook(lambda gradient: gradient * math.nan)
    before = copy.deepcopy(wrapped.bottlenecks.state_dict())
    with pytest.raises(FitError, match=r"no longer finite at step 0 .*no step was taken yet"):
        steps.step(Batch((X,)))
    for name, tensor in wrapped.bottlenecks.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_inputs_by_name_are_looked_at_for_the_cause_too() -> None:
    with pytest.raises(FitError, match="the batch itself holds NaN or infinity"):
        fitter(model()).step(Batch((), {"input": X * math.nan}))


@pytest.mark.parametrize(("last", "converged"), [(0.98, False), (0.995, True), (1.1, True)])
def test_a_phase_ends_where_a_window_is_less_than_a_hundredth_better(last: float, converged: bool) -> None:
    wrapped = model()
    steps = fitter(wrapped, Recipe(reconstruction_share=1.0, patience=5))
    steps.state.reconstruction["input"] = [9.0, *[1.0] * 5, *[last] * 5]
    steps.step(Batch((X,)))
    assert steps.state.distilled_from == ({"input": 0} if converged else {})


def test_adam_has_the_rates_of_the_recipe_and_of_each_group() -> None:
    wrapped = model("transform")
    compoff.calibrate(wrapped, [X])
    rates = [group["lr"] for group in wrapped.parameter_groups(1e-3)]
    assert len(set(rates)) > 1
    steps = fitter(wrapped, Recipe(betas=(0.5, 0.9)))
    steps.step(Batch((X,)))
    groups = steps.optimizer.param_groups
    assert {group["betas"] for group in groups} == {(0.5, 0.9)}
    assert [group["lr"] for group in groups] == rates


def test_the_rate_weighs_as_much_as_it_is_held_at() -> None:
    wrapped = model("transform")
    compoff.calibrate(wrapped, [X], target_bytes=20)
    recipe, losses = Recipe(reconstruction=0.0, orthogonality=0.0, prior=0.0), list[dict[str, list[float]]]()
    for held in (0.0, -2.0):
        steps = fitter(copy.deepcopy(wrapped), recipe, rate=1.0, aim=Aim({"input": 20}))
        steps.state.held["input"] = held
        torch.manual_seed(0)  # the noise that stands for rounding
        steps.step(Batch((X,)))
        assert steps.state.bytes.keys() == {"input"}
        losses.append(steps.state.loss)
    assert losses[1]["input"] == pytest.approx([math.exp(-2) * one for one in losses[0]["input"]])
    assert losses[1]["1"] == losses[0]["1"]


def test_the_weight_of_the_rate_follows_the_bytes_within_bounds() -> None:
    wrapped = model("transform")
    compoff.calibrate(wrapped, [X], target_bytes=20)
    steps = fitter(wrapped, rate=1.0, aim=Aim({"input": 20}))
    assert steps._hold("1", torch.tensor(800.0)) == 1.0, "nothing is asked for there"
    at_target, twice = torch.tensor(8 * 13.0), torch.tensor(8 * 33.0)  # seven bytes are no symbols
    assert steps._hold("input", at_target) == pytest.approx(1.0)
    assert 1 < steps._hold("input", twice) < math.exp(3 * 0.1 + 0.02), "one batch in ten counts"
    far = [steps._hold("input", torch.tensor(8e6)) for _ in range(600)]
    assert far == sorted(far)
    assert far[100] < far[400] / 10, "what lasts goes on"
    assert far[-1] == pytest.approx(math.exp(10 + 3))
    few = [steps._hold("input", torch.tensor(0.0)) for _ in range(2400)]
    assert few[-1] == pytest.approx(math.exp(-10 - 3 * 13 / 20))
