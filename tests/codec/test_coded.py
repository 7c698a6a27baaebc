"""What the coder is told of a bottleneck, and how context models are kept with its weights."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from compoff.codec import Geometry, TransformBottleneck, code_of
from compoff.coding import SymbolTables
from compoff.coding.context_model import CONTEXTS, ContextModel
from compoff.coding.levels import num_coarse


def with_models(seed: int = 0) -> TransformBottleneck:
    torch.manual_seed(seed)
    bottleneck = TransformBottleneck(Geometry((3, 16), stride=4), channels=12, num_centers=43)
    generator = np.random.default_rng(seed)
    models: list[ContextModel] = []
    for quality in bottleneck.qualities():
        tables = SymbolTables.from_counts(generator.integers(0, 9, (4, num_coarse(43, quality.step))))
        weights = generator.integers(-999, 999, (quality.channels, CONTEXTS))
        models.append(ContextModel(weights, [10, 200, 3000], tables))
    bottleneck.prior.contexts = tuple(models)
    return bottleneck


def test_a_code_has_the_models_that_were_kept() -> None:
    bottleneck = with_models()
    code = code_of(bottleneck)
    assert len(code.contexts) == len(code.qualities) == len(bottleneck.qualities())
    assert code.tables.contexts == code.contexts
    assert code.steps == tuple(quality.step for quality in bottleneck.qualities())
    bottleneck.prior.contexts = ()
    assert code_of(bottleneck).contexts == ()
    assert code_of(bottleneck).steps == code.steps


def test_models_are_saved_with_the_weights() -> None:
    buffer = io.BytesIO()
    torch.save(with_models().state_dict(), buffer)
    buffer.seek(0)
    fresh = TransformBottleneck(Geometry((3, 16), stride=4), channels=12, num_centers=43)
    fresh.load_state_dict(torch.load(buffer))
    assert code_of(fresh).contexts == code_of(with_models()).contexts
    assert code_of(with_models(1)).contexts != code_of(fresh).contexts


def test_weights_from_before_there_were_models_have_none() -> None:
    state = {name: value for name, value in with_models().state_dict().items() if ".contexts." not in name}
    bottleneck = with_models()
    bottleneck.load_state_dict(state)
    assert code_of(bottleneck).contexts == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("prior.contexts.3.bounds"),
        lambda state: [state.pop(name) for name in list(state) if ".contexts.2." in name],
        lambda state: state.update({"prior.contexts.3.bounds": torch.tensor([3, 2, 1])}),
        lambda state: state.update({"prior.contexts.3.weights": torch.tensor(3)}),
        lambda state: state.update({"prior.contexts.3.weights": torch.zeros(2, CONTEXTS)}),
        lambda state: state.update({"prior.contexts.3.tables": None}),
    ],
)
def test_damaged_models_are_refused_and_change_nothing_of_them(change: Any) -> None:
    state = dict(with_models(1).state_dict())
    change(state)
    bottleneck = with_models()
    with pytest.raises(RuntimeError, match=r"context models under prior\.contexts\. are damaged"):
        bottleneck.load_state_dict(state)
    assert bottleneck.prior.contexts == with_models().prior.contexts


def test_models_of_other_qualities_are_left_out() -> None:
    bottleneck = with_models()
    bottleneck.prior.contexts = bottleneck.prior.contexts[::-1]
    assert code_of(bottleneck).contexts == ()
    bottleneck.prior.contexts = with_models().prior.contexts[:-1]
    assert code_of(bottleneck).contexts == ()


def test_a_state_of_something_else_leaves_all_as_it_is() -> None:
    bottleneck = with_models()
    bottleneck.ladder.copy_(bottleneck.ladder + 2)
    bottleneck.load_state_dict({}, strict=False)
    assert bottleneck.prior.contexts == with_models().prior.contexts
    assert torch.equal(bottleneck.ladder, with_models().ladder + 2)


def test_what_copies_buffers_needs_none_of_them() -> None:
    """As an average of models does: one with context models, the other without."""
    plain, fitted = with_models(), with_models()
    plain.prior.contexts = ()
    for mine, other in zip(plain.buffers(), fitted.buffers(), strict=True):
        mine.copy_(other)
    averaged = torch.optim.swa_utils.AveragedModel(plain)
    averaged.module.prior.contexts = with_models().prior.contexts
    averaged.update_parameters(plain)
    assert copy.deepcopy(fitted).prior.contexts == pickle.loads(pickle.dumps(fitted)).prior.contexts
