"""fit(): the label-free loop. First reconstruction alone (Eq. 10), then with every later block beside it (Eq. 11).

Reads from `batches`, computes through `distilling`, leaves a `FitReport`. The model itself is never trained.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from compoff.distilling import Batch, student_pass, teacher_pass
from compoff.errors import FitError
from compoff.fitting.batches import to_batch
from compoff.fitting.measure import count_symbols, measure
from compoff.fitting.report import FitReport, SplitReport
from compoff.fitting.state import FitState, load_state, save_state
from compoff.recipe import Recipe, recipe_named

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sized

    from torch import Tensor

    from compoff.wrapping import Wrapped

__all__ = ["fit"]

_log = logging.getLogger("compoff.fit")

_SAVE_EVERY = 200  # steps between two states on disk
_KEEP_EVERY = 50  # steps between two states in memory, to return to when a loss is not finite
_MEASURED = 2048  # samples that symbols are counted on and, without validation, measured on
_FINAL_LR = 0.02  # the cosine ends at this share of the learning rate


class _Fitter:
    """One fit under way."""

    def __init__(self, wrapped: Wrapped, recipe: Recipe, *, lr: float, rate: float, total: int) -> None:
        self.wrapped = wrapped
        self.recipe = recipe
        self.rate = rate
        self.lr = lr
        self.total = total
        self.state = FitState(
            loss={split: [] for split in wrapped.split_points}, reconstruction={split: [] for split in wrapped.split_points}
        )
        self.parameters = list(wrapped.bottleneck_parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=recipe.betas)
        self._good = copy.deepcopy(wrapped.bottlenecks.state_dict())

    def step(self, batch: Batch) -> float:
        """One optimizer step on every split point; returns the mean loss."""
        state, wrapped = self.state, self.wrapped
        gates = {split: wrapped.gate(split) for split in wrapped.split_points}
        for split in gates:
            self._advance_phase(split)
        wrapped.freeze()
        record = teacher_pass(wrapped.base, gates, wrapped.sites, batch, blocks=bool(state.distilled_from))
        self._schedule()
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[float] = []
        for split, gate in gates.items():
            distill = split in state.distilled_from
            terms = student_pass(wrapped.base, gate, wrapped.sites[split], record, batch, distill=distill)
            loss = terms.total(self.recipe, self.rate)
            loss.backward()
            losses.append(float(loss.detach()))
            state.loss[split].append(losses[-1])
            state.reconstruction[split].append(float(terms.reconstruction.detach()))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not (math.isfinite(sum(losses)) and bool(torch.isfinite(norm))):
            self._stop(losses, batch)
        self.optimizer.step()
        state.step += 1
        if state.step % _KEEP_EVERY == 0:
            self._good = copy.deepcopy(wrapped.bottlenecks.state_dict())
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
        """Cosine from the full learning rate to a small share of it."""
        done = min(1.0, self.state.step / max(1, self.total))
        share = _FINAL_LR + (1 - _FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share

    def _stop(self, losses: list[float], batch: Batch) -> None:
        """Give the last good state back and say why the fit ends."""
        self.wrapped.bottlenecks.load_state_dict(self._good)
        inputs = [tensor for tensor in (*batch.args, *batch.kwargs.values()) if isinstance(tensor, torch.Tensor)]
        clean = all(bool(torch.isfinite(tensor).all()) for tensor in inputs if tensor.is_floating_point())
        cause = "lower the learning rate" if clean else "the batch itself holds NaN or infinity: clean the inputs"
        raise FitError(
            f"the loss is no longer finite at step {self.state.step} ({losses}); {cause}. The bottlenecks hold their last "
            f"good state, at most {_KEEP_EVERY} steps older"
        )


def _total_steps(batches: Iterable[Any], epochs: int | None, steps: int | None) -> int:
    """Number of optimizer steps that were asked for."""
    if steps is not None:
        if steps < 1:
            raise FitError(f"steps is {steps}; expected at least 1")
        return steps
    if epochs is not None and epochs < 1:
        raise FitError(f"epochs is {epochs}; expected at least 1")
    if not hasattr(batches, "__len__"):
        raise FitError("these batches have no length, so epochs cannot be counted; say how long with steps=")
    sized: Sized = batches  # pyright: ignore[reportAssignmentType]
    if len(sized) == 0:
        raise FitError("the batches are empty; give at least one")
    return (10 if epochs is None else epochs) * len(sized)


def fit(
    wrapped: Wrapped,
    batches: Iterable[Any],
    *,
    # how long
    epochs: int | None = None,
    steps: int | None = None,
    # what for
    recipe: str | Recipe = "deepcod",
    rate: float = 0.0,
    lr: float = 3e-3,
    validation: Iterable[Any] | None = None,
    # where and how
    device: str | torch.device | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> FitReport:
    """Train the bottlenecks so that the model behaves as it does without them; no labels, the model frozen.

    Afterwards the symbols' frequencies are counted and stored as the tables that the coder uses.

    Args:
        wrapped: What `compoff.wrap` returned.
        batches: Any iterable of tensors, of (input, label) tuples, or of dicts; labels are ignored. Gone through again
            and again.
        epochs: Rounds through `batches`; None for 10.
        steps: Optimizer steps instead of rounds.
        recipe: ``"deepcod"`` (the paper's), or a `Recipe` of your own.
        rate: Weight of the rate, per bit and latent value: more gives fewer bytes and less accuracy. 0 is the paper's.
        lr: Learning rate at the start.
        validation: Held-out batches to measure bytes and agreement on; None for training inputs.
        device: Where to train, such as ``"cuda"``; None for where the model is. The model is moved there.
        seed: Seed of everything random in the fit; the caller's random state is left alone.
        resume: File to keep the state in: a fit that was killed goes on from it, one that was finished returns at once.
        progress: Whether to draw a progress bar; None to draw it on a terminal only.

    Returns:
        Loss curves, bytes, agreement.

    Raises:
        FitError: No usable batches, a loss that is not finite (the last good state is kept), or a foreign `resume`.
        SplitError: Shapes were not known before and a split point turns out to be unusable.
        FeatureError: An input has another size than the model was wrapped with.

    Example:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 5))
        >>> model = compoff.wrap(net, ["input"])
        >>> report = compoff.fit(model, [torch.randn(8, 3, 18, 18)], steps=2)
        >>> report.steps
        2

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2 (Eq. 10), Sec. 3.3 (Eq. 11, and why it comes second).
    """
    chosen, total = recipe_named(recipe), _total_steps(batches, epochs, steps)
    if device is not None:
        wrapped.to(device)
    where = next((parameter.device for parameter in wrapped.base.parameters()), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not wrapped.built:
            item, batches = _peek(batches)
            first = to_batch(item, wrapped.base, where)
            wrapped.build(*first.args, **first.kwargs)
        fitter = _Fitter(wrapped, chosen, lr=lr, rate=rate, total=total)
        settings = {
            "split_points": list(wrapped.split_points),
            "steps": total,
            "recipe": vars(chosen),
            "rate": rate,
            "lr": lr,
            "seed": seed,
        }
        keeper = _Keeper(Path(resume), settings, fitter) if resume is not None else None
        recent = _train(fitter, batches, where, keeper, progress=progress)
        return _finish(fitter, recent, batches, validation, where)


class _Keeper:
    """Writes the state of a fit to disk now and then, and reads it back at the start."""

    def __init__(self, path: Path, settings: dict[str, Any], fitter: _Fitter) -> None:
        self.path = path
        self.settings = settings
        self.fitter = fitter

    def restore(self) -> Tensor | None:
        """Go on from the file if there is one; returns the random state of the round."""
        if not self.path.exists():
            return None
        self.fitter.state, rng = load_state(
            self.path, self.settings, self.fitter.wrapped.bottlenecks, self.fitter.optimizer
        )
        _log.info("going on from step %d of %s", self.fitter.state.step, self.path)
        return rng

    def save(self, rng: Tensor) -> None:
        """Write the file."""
        save_state(
            self.path, self.fitter.state, self.settings, self.fitter.wrapped.bottlenecks, self.fitter.optimizer, rng
        )


def _train(
    fitter: _Fitter, batches: Iterable[Any], device: torch.device | None, keeper: _Keeper | None, *, progress: bool | None
) -> deque[Batch]:
    """The loop itself; returns the last batches."""
    wrapped, recent = fitter.wrapped, deque[Batch](maxlen=8)
    rng = keeper.restore() if keeper else None
    if rng is not None:
        torch.set_rng_state(rng)  # the loader then shuffles this round as it did before the kill
    state, was_training = fitter.state, wrapped.training
    began = time.monotonic() - state.seconds
    shown = sys.stderr.isatty() if progress is None else progress
    wrapped.train()
    try:
        with tqdm(total=fitter.total, initial=state.step, desc="compoff.fit", disable=not shown, unit="step") as bar:
            while state.step < fitter.total:
                rng = torch.get_rng_state()
                for item in _one_round(batches, state):
                    recent.append(to_batch(item, wrapped.base, device))
                    mean = fitter.step(recent[-1])
                    state.seconds = time.monotonic() - began
                    bar.update()
                    bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                    if keeper and (state.step % _SAVE_EVERY == 0 or state.step == fitter.total):
                        keeper.save(rng)
                    if state.step == fitter.total:
                        break
    finally:
        wrapped.train(was_training)
    return recent


def _one_round(batches: Iterable[Any], state: FitState) -> Iterator[Any]:
    """The batches of one round from where the state stands, which moves on with each."""
    count = 0
    for count, item in enumerate(batches, start=1):
        if count > state.position:
            state.position = count
            yield item
    if count == 0:
        raise FitError(
            "the batches gave nothing, or were used up before the last step; give a list, a DataLoader, or anything that "
            "can be gone through again and again, or ask for fewer steps"
        )
    state.position = 0


def _peek(batches: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """The first item, and batches that still hold it even if they can be gone through only once."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise FitError("the batches are empty; give at least one")
    return first, (itertools.chain([first], iterator) if iterator is batches else batches)


def _finish(
    fitter: _Fitter,
    recent: deque[Batch],
    batches: Iterable[Any],
    validation: Iterable[Any] | None,
    device: torch.device | None,
) -> FitReport:
    """Settle, count and measure."""
    wrapped, state = fitter.wrapped, fitter.state
    once = iter(batches) is batches
    counted = list(recent) if once else _up_to(batches, fitter, device)
    measured = counted if validation is None else _up_to(validation, fitter, device, limit=None)
    was_training = wrapped.training
    wrapped.eval()
    reports: dict[str, SplitReport] = {}
    try:
        for split in wrapped.split_points:
            for layer in wrapped.bottleneck(split).spectral_layers():
                layer.settle()
            count_symbols(wrapped, split, counted)
            reports[split] = SplitReport(loss=state.loss[split], distilled_from=state.distilled_from.get(split))
            samples = measure(wrapped, split, measured, reports[split])
            wrapped.reports[split] = reports[split].figures()
    finally:
        wrapped.train(was_training)
    return FitReport(reports, state.step, state.seconds, samples, held_out=validation is not None)


def _up_to(
    batches: Iterable[Any], fitter: _Fitter, device: torch.device | None, limit: int | None = _MEASURED
) -> list[Batch]:
    """Batches of at least `limit` samples together, or all of them."""
    taken: list[Batch] = []
    samples = 0
    for item in batches:
        batch = to_batch(item, fitter.wrapped.base, device)
        taken.append(batch)
        samples += batch.size
        if limit is not None and samples >= limit:
            break
    if not taken:
        raise FitError("the validation batches are empty; give at least one, or none at all")
    return taken
