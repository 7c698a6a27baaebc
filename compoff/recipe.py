"""What a fit optimises: the weights of its terms and the shape of its two phases.

A recipe is data; `fit` carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from compoff.errors import FitError

__all__ = ["Recipe", "recipe_named"]


@dataclass(frozen=True)
class Recipe:
    """Weights and schedule of a fit.

    Args:
        orthogonality: α of Eq. 10, the weight of Eq. 7.
        reconstruction: Weight of Eq. 10's first term, in both phases.
        distillation: Weight of Eq. 11, in the second phase.
        prior: Weight of the term that fits the prior to the symbols (bits a latent value); it does not reach the encoder.
        reconstruction_share: Largest share of all steps that the first phase may take.
        patience: The first phase has converged when its loss, averaged over this many steps, has improved by less than
            one percent over the same number of steps before.
        betas: Adam's decay rates.

    Example:
        >>> Recipe().orthogonality
        0.01
    """

    orthogonality: float = 0.01
    reconstruction: float = 1.0
    distillation: float = 1.0
    prior: float = 0.01
    reconstruction_share: float = 0.4
    patience: int = 100
    betas: tuple[float, float] = (0.9, 0.999)


_RECIPES = {"deepcod": Recipe()}


def recipe_named(recipe: str | Recipe) -> Recipe:
    """The recipe of a name.

    Args:
        recipe: A name, or a recipe of your own, which is handed back.

    Returns:
        The recipe.

    Raises:
        FitError: There is no recipe of this name.

    Example:
        >>> recipe_named("deepcod") == Recipe()
        True
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in _RECIPES:
        raise FitError(f"'{recipe}' is not a recipe; expected one of {sorted(_RECIPES)}, or a compoff.Recipe of your own")
    return _RECIPES[recipe]
