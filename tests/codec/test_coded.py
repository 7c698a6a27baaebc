"""What the coder is told of a bottleneck, and how context models are kept with its weights."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from compoff.codec import Geometry, Prior, TransformBottleneck, code_of
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
    bottleneck.prior.keep_contexts(models)
    return bottleneck


def test_a_code_has_the_models_that_were_kept() -> None:
    bottleneck = with_models()
    code = code_of(bottleneck)
    assert len(code.contexts) == len(code.qualities) == len(bottleneck.qualities())
    assert code.tables.contexts == code.contexts
    assert code.steps == tuple(quality.step for quality in bottleneck.qualities())
    bottleneck.prior.keep_contexts(())
    assert code_of(bottleneck).contexts == ()


def test_models_are_saved_with_the_weights() -> None:
    buffer = io.BytesIO()
    torch.save(with_models().state_dict(), buffer)
    buffer.seek(0)
    fresh = TransformBottleneck(Geometry((3, 16), stride=4), channels=12, num_centers=43)
    fresh.load_state_dict(torch.load(buffer))
    assert code_of(fresh).contexts == code_of(with_models()).contexts
    assert code_of(with_models(1)).contexts != code_of(fresh).contexts


def test_weights_from_before_there_were_models_have_none() -> None:
    state = {name: value for name, value in with_models().state_dict().items() if ".context_" not in name}
    bottleneck = with_models()
    bottleneck.load_state_dict(state)
    assert code_of(bottleneck).contexts == ()


def test_models_that_do_not_go_together_are_refused() -> None:
    state = with_models().state_dict()
    state["prior.context_bounds"] = state["prior.context_bounds"][:, :1]
    with pytest.raises(RuntimeError, match="context models of shapes"):
        with_models().load_state_dict(state)


def test_models_of_another_number_of_qualities_are_left_out() -> None:
    bottleneck = with_models()
    assert bottleneck.prior.contexts([1, 2]) == ()


def test_they_move_with_the_model() -> None:
    prior = with_models().prior.to("meta")
    assert prior.context_tables.device.type == "meta"
    assert isinstance(prior, Prior)
