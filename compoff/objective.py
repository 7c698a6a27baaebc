"""The distillation loss as a module: for whatever works on modules, such as DistributedDataParallel or a compiler.

Those see a step only where they are called themselves; a method of the wrapped model passes them by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.checks import check_weight
from compoff.errors import FitError
from compoff.mounting import require_wrapped
from compoff.recipe import recipe_for

if TYPE_CHECKING:
    from compoff.recipe import Recipe
    from compoff.wrapped import Wrapped

__all__ = ["DistillationLoss"]


class DistillationLoss(nn.Module):
    """`Wrapped.distillation_loss` as a module: called with a batch, it returns the loss.

    Give this, not the wrapped model, to DistributedDataParallel, to ``accelerator.prepare`` or to ``torch.compile``:
    each process then averages the gradients with the others. Its parameters that want a gradient are the bottlenecks'.

    Args:
        model: What `compoff.wrap` returned, its shapes known.
        split: The split point to train; None for all of them, their losses added.
        recipe: Weights of the terms; None for those of the codec that the model was wrapped with.
        rate: Weight of the rate; None for the recipe's.

    Raises:
        SplitError: `split` is not one of the model's split points, or shapes are not known yet.
        FitError: `recipe` is for another codec, or `rate` is negative or not finite.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> x = torch.randn(4, 3, 18, 18)
        >>> model = compoff.wrap(net, "1", example_input=x)
        >>> compoff.calibrate(model, [x])
        >>> loss = compoff.DistillationLoss(model)
        >>> loss(x).backward()

    Source: DeepCOD (SenSys 2020), Eq. 10-11.
    """

    def __init__(
        self,
        model: Wrapped,
        split: str | None = None,
        *,
        recipe: str | Recipe | None = None,
        rate: float | None = None,
    ) -> None:
        super().__init__()
        require_wrapped(model)
        chosen = recipe_for(model.options.codec, recipe)
        check_weight("rate", chosen.rate if rate is None else rate, FitError)
        self.splits = model.split_points if split is None else (split,)
        for name in self.splits:
            model.bottleneck(name)
        self.model = model
        self.recipe = recipe
        self.rate = rate
        self.distill = True

    @torch.no_grad()
    def calibrate(self, *inputs: Any, **keywords: Any) -> None:
        """Set the units of the bottlenecks from one batch, as the first step would; codec ``"deepcod"`` only.

        For codec ``"transform"`` call `compoff.calibrate` with many batches instead.

        With several processes call it before the model is handed to DistributedDataParallel, which then copies the
        units of the first process to the others; else each process would measure its own.

        Args:
            *inputs: One batch, as the model takes it.
            **keywords: What of it the model takes by name.
        """
        for split in self.splits:
            if not all(bottleneck.calibrated for bottleneck in self.model.bottlenecks_at(split)):
                self.model.distillation_loss(*inputs, keywords=keywords, split=split, distill=False)

    def forward(self, *inputs: Any, **keywords: Any) -> Tensor:
        """Compute the loss.

        Args:
            *inputs: One batch, as the model takes it.
            **keywords: What of it the model takes by name.

        Returns:
            A scalar that reaches the bottlenecks' parameters only.

        Raises:
            FitError: Several processes train together and the bottlenecks have no units yet.
        """

        def loss(split: str) -> Tensor:
            return self.model.distillation_loss(
                *inputs, keywords=keywords, split=split, recipe=self.recipe, rate=self.rate, distill=self.distill
            )

        return torch.stack([loss(split) for split in self.splits]).sum()
