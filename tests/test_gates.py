"""The switch at a split point: catches what crosses, and at the moment of the cut decodes it all."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

from compoff.codec import Bottleneck, Geometry
from compoff.codec.layout import Layout
from compoff.errors import SplitError
from compoff.gates import Gate, Work


def gate(features: int = 1, own: bool = True) -> Gate:
    bottlenecks = [Bottleneck(Geometry((4, 8)), channels=2).eval() for _ in range(features)]
    return Gate("here", bottlenecks, [Layout.channels_first(3)] * features, [own] * features)


def test_off_on_and_replaced() -> None:
    switch, y = gate(), torch.randn(3, 4, 8)
    assert switch.catch(0, y) is y
    switch.on = True
    assert torch.equal(switch.catch(0, y.clone()), switch.bottleneck(y))
    switch.replace = lambda features: [-one for one in features]  # stronger than on
    assert torch.equal(switch.catch(0, y.clone()), -y)


def test_a_feature_that_passes_by_changes_at_the_moment_of_the_cut() -> None:
    switch, y, skip = gate(2), torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    before = skip.clone()
    switch.replace = lambda features: [-one for one in features]
    switch.begin()
    assert switch.catch(1, skip) is skip
    assert torch.equal(skip, before)  # who reads it before the cut reads what the model made
    assert torch.equal(switch.catch(0, y.clone()), -y)
    assert torch.equal(skip, -before)  # who reads it afterwards reads the decoded one


def test_whoever_holds_the_feature_itself_has_the_decoded_one_too() -> None:
    switch, y = gate(), torch.randn(3, 4, 8)
    before, held = y.clone(), [y]
    switch.replace = lambda features: [-one for one in features]
    assert switch.catch(0, y) is held[0]
    assert torch.equal(held[0], -before)


@pytest.mark.parametrize("own", [True, False])
def test_a_feature_that_is_not_ours_or_has_a_history_is_never_written_to(own: bool) -> None:
    switch, y = gate(own=own), torch.randn(3, 4, 8, requires_grad=own)
    before = y.detach().clone()
    switch.replace = lambda features: [-one for one in features]
    assert torch.equal(switch.catch(0, y), -before)
    assert torch.equal(y, before)


def test_a_feature_whose_memory_others_share_is_copied_first() -> None:
    switch, y, skip = gate(2, own=False), torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    before = skip.clone()
    switch.replace = lambda features: [-one for one in features]
    switch.begin()
    kept = switch.catch(1, skip)
    switch.catch(0, y)
    assert torch.equal(skip, before)
    assert torch.equal(kept, -before)


def test_gradients_reach_every_bottleneck_through_what_was_written_in_place() -> None:
    switch, skip = gate(2), torch.randn(3, 4, 8)
    for bottleneck in switch.bottlenecks:
        bottleneck.train()
    switch.on = True
    switch.begin()
    switch.catch(1, skip)
    (switch.catch(0, torch.randn(3, 4, 8)) * skip).sum().backward()
    for bottleneck in switch.bottlenecks:
        assert bottleneck.get_parameter("encoder.layer.weight").grad is not None


def test_a_feature_that_did_not_come_by_is_an_error() -> None:
    switch = gate(2)
    switch.on = True
    switch.begin()
    with pytest.raises(SplitError, match="did not pass tensor 1 of those that cross at 'here'"):
        switch.catch(0, torch.randn(3, 4, 8))
    switch.catch(1, torch.randn(3, 4, 8))
    switch.begin()  # nothing is left over from an earlier pass
    with pytest.raises(SplitError, match="did not pass tensor 1"):
        switch.catch(0, torch.randn(3, 4, 8))


def test_side_tensors_are_kept_and_not_changed() -> None:
    switch, mask = gate(), torch.ones(3, 5, dtype=torch.bool)
    switch.on = True
    switch.begin()
    assert switch.catch(1, mask) is mask
    switch.catch(0, torch.randn(3, 4, 8))
    assert switch.sides(1)[0] is mask


def test_given_features_stand_in_and_are_forgotten() -> None:
    switch, y = gate(), torch.randn(3, 4, 8)
    with switch.replacing([torch.full_like(y, 2.0).double()]):
        replaced = switch.catch(0, y)
    assert replaced.dtype == y.dtype
    assert bool((replaced == 2.0).all())
    assert switch.catch(0, y) is y


def test_the_model_is_told_from_what_the_gate_computes() -> None:
    work = Work()
    switch = Gate("here", gate().bottlenecks, [Layout.channels_first(3)], work=work)
    seen: list[bool] = []

    def look(features: list[Tensor]) -> list[Tensor]:
        seen.append(switch.at_work)
        return features

    switch.replace = look
    switch.catch(0, torch.randn(3, 4, 8))
    assert (seen, switch.at_work) == ([True], False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_owns_its_own_bottleneck_and_no_running_pass(copied: object) -> None:
    assert callable(copied)
    switch = gate()
    switch.on, switch.replace = True, lambda features: features
    again = copied(switch)
    assert again.on
    assert again.replace is None
    assert again.bottleneck is not switch.bottleneck
    y = torch.randn(3, 4, 8)
    assert torch.equal(again.catch(0, y.clone()), switch.bottleneck(y))
