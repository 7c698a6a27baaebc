"""Recipes by name, and values that no recipe can have."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from compoff.errors import FitError
from compoff.recipe import Recipe, recipe_named


def test_the_papers_recipe_weighs_reconstruction_and_distillation_alike() -> None:
    recipe = recipe_named("deepcod")
    assert recipe.reconstruction == recipe.distillation == 1.0
    assert 0 < recipe.reconstruction_share < 1


def test_a_recipe_of_ones_own_is_taken_as_it_is() -> None:
    own = Recipe(distillation=3.0)
    assert recipe_named(own) is own
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.distillation = 1.0  # type: ignore[misc]


def test_numbers_of_numpy_become_pythons_own() -> None:
    real, betas = np.float32(0.5), (np.float32(0.5), np.float32(0.75))
    own = Recipe(lr=real, rate=real, patience=np.int64(3), warmup=np.int8(4), average=np.bool_(True), betas=betas)  # type: ignore[arg-type]
    expected = Recipe(lr=0.5, rate=0.5, patience=3, warmup=4, average=True, betas=(0.5, 0.75))
    assert own == expected
    assert json.dumps(vars(own)) == json.dumps(vars(expected))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(FitError, match=r"'deepcdo' is not a recipe; expected one of \['deepcod', 'transform'\]"):
        recipe_named("deepcdo")


@pytest.mark.parametrize("name", ["orthogonality", "reconstruction", "distillation", "prior"])
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(name: str, weight: float) -> None:
    with pytest.raises(FitError, match=f"{name} is {weight}"):
        Recipe(**{name: weight})


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(FitError, match="reconstruction_share"):
        Recipe(reconstruction_share=share)


def test_patience_and_betas_out_of_range_are_refused() -> None:
    with pytest.raises(FitError, match="patience is 0"):
        Recipe(patience=0)
    with pytest.raises(FitError, match="warmup is -1"):
        Recipe(warmup=-1)
    with pytest.raises(FitError, match="betas"):
        Recipe(betas=(0.9, 1.0))


def test_betas_are_floats() -> None:
    assert [type(beta) for beta in Recipe(betas=(0, 0.5)).betas] == [float, float]
