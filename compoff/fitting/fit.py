"""fit(): the label-free loop. First reconstruction alone (Eq. 10), then with every later block beside it (Eq. 11).

Reads from `batches`, computes through `distilling`, leaves a `FitReport`. The model itself is never trained.
"""

from __future__ import annotations

import contextlib
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

from compoff.distilling import Batch, TeacherRecord, refusals_named, student_pass, teacher_pass
from compoff.errors import FitError
from compoff.fingerprint import fingerprint
from compoff.fitting.batches import to_batch
from compoff.fitting.measure import count_symbols, measure
from compoff.fitting.report import FitReport, SplitReport
from compoff.fitting.state import FitState, RandomState, load_state, save_state
from compoff.recipe import Recipe, recipe_named
from compoff.wrapped import device_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sized

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
        self.gates = {split: wrapped.gate(split) for split in wrapped.split_points}
        self.recipe = recipe
        self.rate = rate
        self.lr = lr
        self.total = total
        self.state = FitState(
            loss={split: [] for split in self.gates}, reconstruction={split: [] for split in self.gates}
        )
        self.parameters = list(wrapped.bottleneck_parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=recipe.betas)
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
        losses: list[float] = []
        for split, gate in self.gates.items():
            distill = split in state.distilled_from
            terms = student_pass(wrapped.base, gate, wrapped.sites[split], record, batch, distill=distill)
            loss = terms.total(self.recipe, self.rate)
            loss.backward()
            losses.append(float(loss.detach()))
            state.loss[split].append(losses[-1])
            state.reconstruction[split].append(float(terms.reconstruction.detach()))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not (math.isfinite(sum(losses)) and bool(torch.isfinite(norm))):
            self._stop(losses, batch, record)
        if state.step % _KEEP_EVERY == 0:
            self.keep()  # only here is it known that these weights give a finite loss
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
        """Cosine from the full learning rate to a small share of it."""
        done = min(1.0, self.state.step / max(1, self.total))
        share = _FINAL_LR + (1 - _FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share

    def _stop(self, losses: list[float], batch: Batch, record: TeacherRecord) -> None:
        """Give the last good state back and say why the fit ends."""
        self.wrapped.bottlenecks.load_state_dict(self._good)
        if not _all_finite([*batch.args, *batch.kwargs.values()]):
            cause = "the batch itself holds NaN or infinity: clean the inputs"
        elif not _all_finite([*record.features.values(), *record.output]):
            cause = "the model itself computes NaN or infinity from this batch: check its weights"
        else:
            cause = "lower the learning rate"
        raise FitError(
            f"the loss is no longer finite at step {self.state.step} ({losses}); {cause}. The bottlenecks hold their "
            f"last good state, at most {_KEEP_EVERY} steps older"
        )


def _all_finite(values: list[Any]) -> bool:
    """Whether no tensor among the values holds NaN or infinity."""
    return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, torch.Tensor))


def _total_steps(batches: Iterable[Any], epochs: int | None, steps: int | None) -> int:
    """Number of optimizer steps that were asked for."""
    if steps is not None and epochs is not None:
        raise FitError(f"epochs is {epochs} and steps is {steps}; give one of them")
    for name, asked in (("steps", steps), ("epochs", epochs)):
        if asked is not None and asked < 1:
            raise FitError(f"{name} is {asked}; expected at least 1")
    if steps is not None:
        return steps
    if not hasattr(batches, "__len__"):
        raise FitError("these batches have no length, so epochs cannot be counted; say how long with steps=")
    sized: Sized = batches  # pyright: ignore[reportAssignmentType]
    if len(sized) == 0:
        raise FitError("the batches are empty; give at least one")
    return (10 if epochs is None else epochs) * len(sized)


def _check_weights(lr: float, rate: float) -> None:
    """Refuse a learning rate or a weight that cannot be meant."""
    if not (math.isfinite(lr) and lr > 0):
        raise FitError(f"lr is {lr}; expected a learning rate above 0, such as 3e-3")
    if not (math.isfinite(rate) and rate >= 0):
        raise FitError(f"rate is {rate}; expected a weight of 0 or more")


@contextlib.contextmanager
def _own_random_numbers(seed: int, device: torch.device | None) -> Generator[None]:
    """Seed what the block draws; the caller's random numbers go on afterwards as if nothing had been drawn."""
    accelerators = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=accelerators):
        # torch.manual_seed would seed every accelerator, the caller's other ones too.
        torch.default_generator.manual_seed(seed)
        for accelerator in accelerators:
            with torch.cuda.device(accelerator):
                torch.cuda.manual_seed(seed)
        yield


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
            and again; one that can be gone through only once needs `steps`, and is measured by its last 8 batches.
        epochs: Rounds through `batches`; None for 10.
        steps: Optimizer steps instead of rounds.
        recipe: ``"deepcod"`` (the paper's), or a `Recipe` of your own.
        rate: Weight of the rate, per bit and latent value: more gives fewer bytes and less accuracy. 0 is the paper's.
        lr: Learning rate at the start.
        validation: Held-out batches to measure bytes and agreement on; None for training inputs.
        device: Where to train, such as ``"cuda"``; None for where the model is. The model is moved there.
        seed: Seed of PyTorch's random numbers in the fit, the loader's among them; the caller's go on afterwards as if
            nothing had been drawn.
        resume: File to keep the state in: a fit that was killed goes on from it, one that was finished returns at once.
        progress: Whether to draw a progress bar; None to draw it on a terminal only.

    Returns:
        Loss curves, bytes, agreement.

    Raises:
        FitError: No usable batches, an argument out of range, a loss that is not finite (the last good state is kept),
            or a foreign or damaged `resume`.
        SplitError: Shapes were not known before and a split point turns out to be unusable.
        FeatureError: An input has another size or dtype than the model takes or was wrapped with.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 5))
        >>> model = compoff.wrap(net, ["input"])
        >>> report = compoff.fit(model, [torch.randn(8, 3, 18, 18)], steps=2)
        >>> report.steps
        2

    Source: DeepCOD (SenSys 2020), Sec. 3.2.2 (Eq. 10), Sec. 3.3 (Eq. 11, and why it comes second).
    """
    chosen, total = recipe_named(recipe), _total_steps(batches, epochs, steps)
    _check_weights(lr, rate)
    if device is not None:
        wrapped.to(device)
    where = device_of(wrapped.base)
    with _own_random_numbers(seed, where), torch.enable_grad():
        batches = _build(wrapped, batches, where)
        fitter = _Fitter(wrapped, chosen, lr=lr, rate=rate, total=total)
        if any(gate.on for gate in fitter.gates.values()):
            raise FitError(
                "fit was called with a bottleneck on, so there is no teacher; call it outside `with model.at(…)`"
            )
        keeper = _Keeper(Path(resume), seed, fitter) if resume is not None else None
        recent = _train(fitter, batches, where, keeper, progress=progress)
        return _finish(fitter, recent, batches, validation, where)


def _build(wrapped: Wrapped, batches: Iterable[Any], device: torch.device | None) -> Iterable[Any]:
    """Learn the shapes from the first batch where they are not known; returns batches that still hold it."""
    if wrapped.built:
        return batches
    iterator = iter(batches)
    peeked = list(itertools.islice(iterator, 1))
    if not peeked:
        raise FitError("the batches are empty; give at least one")
    first = to_batch(peeked[0], wrapped.base, device)
    with refusals_named(first):
        wrapped.build(*first.args, **first.kwargs)
    return itertools.chain(peeked, iterator) if iterator is batches else batches


class _Keeper:
    """Writes the state of a fit to disk now and then, and reads it back at the start."""

    def __init__(self, path: Path, seed: int, fitter: _Fitter) -> None:
        self.path = path
        self.fitter = fitter
        self.settings: dict[str, Any] = {
            "model": fingerprint(fitter.wrapped.base.state_dict()),
            "split_points": list(fitter.wrapped.split_points),
            "steps": fitter.total,
            "recipe": vars(fitter.recipe),
            "rate": fitter.rate,
            "lr": fitter.lr,
            "seed": seed,
        }

    def restore(self) -> RandomState | None:
        """Go on from the file if there is one; returns the random state to go on with."""
        if not self.path.exists():
            return None
        fitter = self.fitter
        fitter.state, rng = load_state(self.path, self.settings, fitter.wrapped.bottlenecks, fitter.optimizer)
        fitter.keep()
        _log.info("going on from step %d of %s", fitter.state.step, self.path)
        return rng

    def save(self, began: Tensor) -> None:
        """Write the file; `began` is the random state at the start of the round."""
        fitter, rng = self.fitter, RandomState(began, torch.get_rng_state())
        save_state(self.path, fitter.state, self.settings, fitter.wrapped.bottlenecks, fitter.optimizer, rng)


def _train(
    fitter: _Fitter,
    batches: Iterable[Any],
    device: torch.device | None,
    keeper: _Keeper | None,
    *,
    progress: bool | None,
) -> deque[Batch]:
    """The loop itself; returns the last batches."""
    wrapped, recent = fitter.wrapped, deque[Batch](maxlen=8)
    rng = keeper.restore() if keeper else None
    if rng is not None:
        finished = fitter.state.step >= fitter.total
        torch.set_rng_state(rng.now if finished and rng.now is not None else rng.round)
    state, was_training = fitter.state, wrapped.training
    start = time.monotonic() - state.seconds
    shown = sys.stderr.isatty() if progress is None else progress
    wrapped.train()
    try:
        with tqdm(total=fitter.total, initial=state.step, desc="compoff.fit", disable=not shown, unit="step") as bar:
            while state.step < fitter.total:
                began = torch.get_rng_state()
                for item in _one_round(batches, state, rng):
                    recent.append(to_batch(item, wrapped.base, device))
                    mean = fitter.step(recent[-1])
                    state.seconds = time.monotonic() - start
                    bar.update()
                    bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                    if keeper and (state.step % _SAVE_EVERY == 0 or state.step == fitter.total):
                        keeper.save(began)
                    if state.step == fitter.total:
                        break
                rng = None
    finally:
        wrapped.train(was_training)
    return recent


def _one_round(batches: Iterable[Any], state: FitState, rng: RandomState | None) -> Iterator[Any]:
    """The batches of one round from where the state stands, which moves on with each.

    Those that were used up before a kill are drawn once more, so that the loader shuffles as it did; from there on the
    random numbers are those that followed.
    """
    items = iter(batches)
    for _ in itertools.islice(items, state.position):
        pass
    if rng is not None and rng.now is not None:
        torch.set_rng_state(rng.now)
    for item in items:
        state.position += 1
        yield item
    if state.position == 0:
        raise FitError(
            "the batches gave nothing, or were used up before the last step; give a list, a DataLoader, or anything "
            "that can be gone through again and again, or ask for fewer steps"
        )
    state.position = 0


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
    counted = list(recent) if once and recent else _up_to(batches, wrapped, device, _MEASURED)
    measured = counted if validation is None else _up_to(validation, wrapped, device, None)
    if not (counted and measured):
        given = "batches" if not counted else "validation batches"
        raise FitError(f"the {given} are empty, so there is nothing to measure on; give at least one")
    was_training, samples = wrapped.training, 0
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


def _up_to(batches: Iterable[Any], wrapped: Wrapped, device: torch.device | None, limit: int | None) -> list[Batch]:
    """Batches of at least `limit` samples together, or all of them."""
    taken: list[Batch] = []
    samples = 0
    for item in batches:
        taken.append(to_batch(item, wrapped.base, device))
        samples += taken[-1].size
        if limit is not None and samples >= limit:
            break
    return taken
