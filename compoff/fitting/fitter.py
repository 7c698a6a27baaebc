"""One fit under way: the optimizer, the phases, the rate that is held, and the way back when a loss is not finite.

Takes one step at a time; where batches come from and when to stop is the loop's (`fit`).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, cast

import torch

from compoff.codec.precision import own_defaults
from compoff.distilling import student_pass
from compoff.errors import FitError
from compoff.fitting.aim import Aim
from compoff.fitting.overhead import symbol_bytes
from compoff.fitting.state import FitState
from compoff.teaching import TeacherRecord, teacher_pass

if TYPE_CHECKING:
    from torch import Tensor

    from compoff.batch import Batch
    from compoff.recipe import Recipe
    from compoff.wrapping import Wrapped

__all__ = ["Fitter"]

_KEEP_EVERY = 50  # steps between two states in memory, to return to when a loss is not finite
_FINAL_LR = 0.02  # the cosine ends at this share of the learning rate
# The rate's weight follows the distance from the target: at once by the first, lastingly by the second a step.
_AT_ONCE, _LASTING, _SMOOTHING = 3.0, 0.02, 0.1
_MOST_HELD = 10.0


class Fitter:
    """One fit under way.

    Args:
        wrapped: The model with its bottlenecks.
        recipe: Weights and schedule.
        lr: Learning rate at the start.
        rate: Weight of the rate.
        total: Number of steps of the whole fit.
        aim: Its bytes are what the mean payload at the reference step is held at; without, `rate` decides.

    Examples:
        >>> import torch, compoff
        >>> from compoff.batch import Batch
        >>> x = torch.randn(8, 32)
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 4))
        >>> model = compoff.wrap(net, "input", example_input=x, codec="deepcod").train()
        >>> fitter = Fitter(model, compoff.Recipe(), lr=1e-3, rate=0.0, total=2)
        >>> fitter.step(Batch((x,))) > 0
        True
    """

    def __init__(
        self,
        wrapped: Wrapped,
        recipe: Recipe,
        *,
        lr: float,
        rate: float,
        total: int,
        aim: Aim | None = None,
    ) -> None:
        self.wrapped = wrapped
        self.gates = {split: wrapped.gate(split) for split in wrapped.split_points}
        self.recipe = recipe
        self.rate = rate
        self.lr = lr
        self.total = total
        self.aim = aim or Aim()
        self.state = FitState(
            loss={split: [] for split in self.gates}, reconstruction={split: [] for split in self.gates}
        )
        groups = wrapped.parameter_groups(lr)
        self.parameters = [
            [parameter for bottleneck in gate.bottlenecks for parameter in bottleneck.parameters()]
            for gate in self.gates.values()
        ]
        self.optimizer = torch.optim.Adam(groups, betas=recipe.betas)
        self.state.lrs = [group["lr"] for group in groups]
        self.keep()

    def keep(self) -> None:
        """Remember the bottlenecks as they are, to return to."""
        self._good = copy.deepcopy(self.wrapped.bottlenecks.state_dict())

    def step(self, batch: Batch) -> float:
        """One optimizer step on every split point; returns the mean loss."""
        state, wrapped = self.state, self.wrapped
        for split in self.gates:
            self._advance_phase(split)
        wrapped.freeze()
        record = teacher_pass(wrapped.base, self.gates, wrapped.sites, batch, blocks=bool(state.distilled_from))
        self._schedule()
        self.optimizer.zero_grad(set_to_none=True)
        found: list[Tensor] = []
        for split, gate in self.gates.items():
            distill = split in state.distilled_from
            terms = student_pass(wrapped.base, gate, wrapped.sites[split], record, batch, self.recipe, distill=distill)
            loss = terms.total(self.recipe, self.rate * self._hold(split, terms.bits))
            loss.backward()
            found += [loss.detach(), terms.reconstruction.detach()]
        # Each split point by itself: what is fitted at one must not depend on the others.
        norms = [torch.nn.utils.clip_grad_norm_(parameters, 1.0) for parameters in self.parameters]
        # Read at once: to read is to wait for the device. A model may have its split points on several.
        noted = torch.stack([one.to(found[0].device) for one in (*found, *norms)])
        values = cast("list[float]", noted.tolist())
        losses = values[: len(found) : 2]
        for split, loss, reconstruction in zip(self.gates, losses, values[1 : len(found) : 2], strict=True):
            state.loss[split].append(loss)
            state.reconstruction[split].append(reconstruction)
        if not all(map(math.isfinite, [sum(losses), *values[len(found) :]])):
            self._stop(losses, batch, record)
        if state.step % _KEEP_EVERY == 0:
            self.keep()  # only here is it known that these weights give a finite loss
        with own_defaults():  # older ones of Adam count its steps wherever the script's tensors go
            self.optimizer.step()
        state.step += 1
        return sum(losses) / len(losses)

    def _advance_phase(self, split: str) -> None:
        """Add Eq. 11 at a split point once Eq. 10 alone has converged there (Sec. 3.3)."""
        if split in self.state.distilled_from:
            return
        curve, window = self.state.reconstruction[split], self.recipe.patience
        recent, before = sum(curve[-window:]), sum(curve[-2 * window : -window])
        converged = len(curve) >= 2 * window and recent > 0.99 * before
        if converged or self.state.step >= self.recipe.reconstruction_share * self.total:
            self.state.distilled_from[split] = self.state.step

    def _schedule(self) -> None:
        """A straight rise to the full learning rate, if any, and a cosine down to a small share of it."""
        done = min(1.0, self.state.step / max(1, self.total))
        share = _FINAL_LR + (1 - _FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))
        warmup = min(self.recipe.warmup, self.total // 10)
        share *= min(1.0, (self.state.step + 1) / (warmup + 1))
        for group, lr in zip(self.optimizer.param_groups, self.state.lrs, strict=True):
            group["lr"] = lr * share

    def _hold(self, split: str, bits: Tensor | None) -> float:
        """Factor on the rate's weight that brings the payload to the bytes asked for."""
        target = self.aim.bytes_at(split)
        if target is None or bits is None:
            return 1.0
        state = self.state
        if split not in state.overhead:
            state.overhead[split] = target - symbol_bytes(self.wrapped, split, target)
        seen = float(bits) / 8 + state.overhead[split]
        mean = state.bytes[split] = seen + (1 - _SMOOTHING) * (state.bytes.get(split, seen) - seen)
        excess = max(-1.0, min(1.0, (mean - target) / target))
        held = state.held.get(split, 0.0) + _LASTING * excess
        state.held[split] = max(-_MOST_HELD, min(_MOST_HELD, held))  # what cannot be reached is not sought for ever
        return math.exp(state.held[split] + _AT_ONCE * excess)

    def _stop(self, losses: list[float], batch: Batch, record: TeacherRecord) -> None:
        """Give the last good state back and say why the fit ends."""
        self.wrapped.bottlenecks.load_state_dict(self._good)
        if not _all_finite([*batch.args, *batch.kwargs.values()]):
            cause = "the batch itself holds NaN or infinity: clean the inputs"
        elif not _all_finite([*(y for ys in record.features.values() for y in ys), *record.output]):
            cause = "the model itself computes NaN or infinity from this batch: check its weights"
        elif self.state.step == 0:
            cause = "no step was taken yet, so what is computed is out of range: bring the features to a size near 1"
        else:
            cause = "lower the learning rate"
        raise FitError(
            f"the loss is no longer finite at step {self.state.step} ({losses}); {cause}. The bottlenecks hold their "
            f"last good state, at most {_KEEP_EVERY} steps older"
        )


def _all_finite(values: list[Any]) -> bool:
    """Whether no tensor among the values holds NaN or infinity."""
    return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, torch.Tensor))
