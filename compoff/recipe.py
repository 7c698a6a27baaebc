"""What a fit optimises: the weights of its terms and the shape of its two phases.

A recipe is data; `fit` carries it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from compoff.checks import check_flag, check_number, check_weight, check_whole, is_number, plain
from compoff.errors import FitError

if TYPE_CHECKING:
    from compoff.codec import CodecName

__all__ = ["Recipe", "recipe_for", "recipe_named"]


@dataclass(frozen=True)
class Recipe:
    """Weights and schedule of a fit; what is not given is as for the codec of the paper, `named` has the others.

    Args:
        codec: The codec that the recipe is for, as `compoff.wrap` takes it.
        lr: Learning rate at the start, unless `fit` is given one.
        rate: Weight of the rate, unless `fit` is given one: of bits per latent value for codec ``"deepcod"``, of bits
            as a share of those at the start for ``"transform"``.
        average: Whether Eq. 11 is averaged over the later blocks instead of summed, so that one weight of the rate fits
            networks of any depth.
        orthogonality: α of Eq. 10, the weight of Eq. 7.
        reconstruction: Weight of Eq. 10's first term, in both phases.
        distillation: Weight of Eq. 11, in the second phase.
        prior: Weight of the term that fits the prior to the symbols, per bit and latent value; it does not reach the
            encoder.
        reconstruction_share: Largest share of all steps that the first phase may take.
        patience: The first phase has converged when its loss, averaged over this many steps, has improved by less than
            one percent over the same number of steps before.
        warmup: Steps in which the learning rate rises to its full, at most a tenth of all.
        betas: Adam's decay rates.

    Raises:
        FitError: A weight is negative or not finite, or the share, the patience or a decay rate is out of range.

    Examples:
        >>> Recipe().orthogonality
        0.01

    Source: DeepCOD (SenSys 2020), Eq. 10-11 and Sec. 3.3, which give no weights; these are this project's.
    """

    codec: CodecName = "deepcod"
    lr: float = 3e-3
    rate: float = 0.0
    average: bool = False
    orthogonality: float = 0.01
    reconstruction: float = 1.0
    distillation: float = 1.0
    prior: float = 0.01
    reconstruction_share: float = 0.4
    patience: int = 100
    warmup: int = 0
    betas: tuple[float, float] = (0.9, 0.999)

    @classmethod
    def named(cls, name: str) -> Recipe:
        """One of the recipes that `fit` knows by name, to start a recipe of your own from.

        Args:
            name: ``"deepcod"`` or ``"transform"``.

        Returns:
            The recipe.

        Raises:
            FitError: There is no recipe of this name.

        Examples:
            >>> from dataclasses import replace
            >>> replace(Recipe.named("transform"), rate=0.2).rate
            0.2
        """
        return recipe_named(name)

    def __post_init__(self) -> None:
        if self.codec not in ("deepcod", "transform"):
            raise FitError(f"the recipe's codec is {self.codec!r:.80}; expected 'deepcod' or 'transform'")
        for name in ("lr", "rate", "orthogonality", "reconstruction", "distillation", "prior", "reconstruction_share"):
            check_number(f"the recipe's {name}", getattr(self, name), FitError)
        check_flag("the recipe's average", self.average, FitError)
        check_whole("the recipe's patience", self.patience, FitError)
        check_whole("the recipe's warmup", self.warmup, FitError, least=0)
        if not (isinstance(self.betas, (tuple, list)) and len(self.betas) == 2 and all(map(is_number, self.betas))):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FitError(f"the recipe's betas are {self.betas!r:.80}; expected two numbers from 0 to below 1")
        for name in ("rate", "orthogonality", "reconstruction", "distillation", "prior"):
            check_weight(f"the recipe's {name}", getattr(self, name), FitError)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise FitError(f"the recipe's lr is {self.lr}; expected a learning rate above 0, such as 1e-3")
        if not 0 <= self.reconstruction_share <= 1:
            raise FitError(f"the recipe's reconstruction_share is {self.reconstruction_share}; expected 0 to 1")
        if self.patience < 1:
            raise FitError(f"the recipe's patience is {self.patience}; expected at least 1 step")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise FitError(f"the recipe's betas are {self.betas}; expected two numbers from 0 to below 1")
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))  # the state of a fit is JSON
        object.__setattr__(self, "betas", tuple(float(plain(beta)) for beta in self.betas))


_RECIPES = {
    "deepcod": Recipe(),
    "transform": Recipe(
        codec="transform",
        lr=1e-3,
        rate=0.14,
        average=True,
        orthogonality=0.0,
        reconstruction=0.1,
        prior=0.0,  # the rate term fits the density by itself
        reconstruction_share=0.0,  # the linear start has converged before the first step
        warmup=20,  # Adam's first steps are as large where it knows nothing yet, and would undo a good start
    ),
}


def recipe_named(recipe: str | Recipe) -> Recipe:
    """The recipe of a name.

    Args:
        recipe: A name, or a recipe of your own, which is handed back.

    Returns:
        The recipe.

    Raises:
        FitError: There is no recipe of this name.

    Examples:
        >>> recipe_named("deepcod") == Recipe()
        True
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str) or recipe not in _RECIPES:  # pyright: ignore[reportUnnecessaryIsInstance]
        known = sorted(_RECIPES)
        raise FitError(f"'{recipe}' is not a recipe; expected one of {known}, or a compoff.Recipe of your own")
    return _RECIPES[recipe]


def recipe_for(codec: CodecName, recipe: str | Recipe | None) -> Recipe:
    """The recipe to train a codec with.

    Args:
        codec: The codec that the model was wrapped with.
        recipe: What was asked for; None for the codec's own.

    Returns:
        The recipe.

    Raises:
        FitError: There is no recipe of this name, or it is for another codec.

    Examples:
        >>> recipe_for("transform", None).rate
        0.14
    """
    chosen = recipe_named(codec if recipe is None else recipe)
    if chosen.codec != codec:
        raise FitError(
            f'the recipe is for codec "{chosen.codec}", but the model was wrapped with "{codec}"; wrap it with '
            f'codec="{chosen.codec}", or leave out the recipe'
        )
    return chosen
