"""fit(): the label-free loop. First reconstruction alone (Eq. 10), then with every later block beside it (Eq. 11).

Reads from `batches`, computes through `distilling`, leaves a `FitReport`. The model itself is never trained.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from compoff.batch import Batch, refusals_named
from compoff.checks import check_flag, check_path, check_weight, check_whole, is_number
from compoff.coding.side import DTYPES
from compoff.errors import FitError
from compoff.fitting.agreeing import require_agreement
from compoff.fitting.aim import Aim
from compoff.fitting.batches import check_seed, require_batches, require_device, to_batch
from compoff.fitting.calibrating import SAMPLES, start
from compoff.fitting.finishing import MEASURED, conclude, held_out, refuse_on, up_to
from compoff.fitting.fitter import Fitter
from compoff.fitting.keeper import Keeper
from compoff.fitting.measure import check_output
from compoff.fitting.progress import bar
from compoff.fitting.randomness import own_generators, own_random_numbers, random_states, set_random_states
from compoff.fitting.reach import tell_of_latents_too_small, tell_of_what_was_left
from compoff.fitting.report import FitReport, SplitReport
from compoff.fitting.rounds import Recent, one_round
from compoff.fitting.state import RandomState
from compoff.mounting import device_of, quantized_modules, require_gradients, require_wrapped
from compoff.outer_hooks import require_onlookers
from compoff.recipe import recipe_for
from compoff.spare import spare_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sized
    from pathlib import Path

    from compoff.fitting.agreeing import Agreement
    from compoff.recipe import Recipe
    from compoff.wrapping import Wrapped

__all__ = ["fit"]

_log = logging.getLogger("compoff.fit")

_FEW_STEPS = 10  # of fewer nothing can be said
_WORSE = 2.0  # times the loss of the first step; from batch to batch it differs by less


def _total_steps(batches: Iterable[Any], epochs: int | None, steps: int | None) -> int:
    """Number of optimizer steps that were asked for."""
    if steps is not None and epochs is not None:
        raise FitError(f"epochs is {epochs} and steps is {steps}; give one of them")
    for name, asked in (("steps", steps), ("epochs", epochs)):
        check_whole(name, asked, FitError, least=1, or_none=True)
    if steps is not None:
        return int(steps)
    sized: Sized = batches  # pyright: ignore[reportAssignmentType]
    try:
        length = len(sized)
    except TypeError as error:  # also of a DataLoader over an iterable dataset, which has the method all the same
        raise FitError("these batches have no length, so epochs cannot be counted; say how long with steps=") from error
    if length == 0:
        raise FitError("the batches are empty; give at least one")
    return (10 if epochs is None else int(epochs)) * length


def _weights(lr: float, rate: float) -> tuple[float, float]:
    """The learning rate and the weight of the rate, refused where they cannot be meant."""
    if not (is_number(lr) and math.isfinite(lr) and lr > 0):
        raise FitError(f"lr is {lr!r:.80}; expected a learning rate above 0, such as 3e-3")
    check_weight("rate", rate, FitError)
    return float(lr), float(rate)


def _state_file(resume: str | Path) -> Path:
    """Where the state is kept, with a folder that it can be written to."""
    path = check_path("resume", resume, FitError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FitError(f"resume is '{path}', whose folder cannot be made ({error.strerror}); choose another") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise FitError(f"resume is '{path}', which cannot be written; give the path of a file in a folder of yours")
    return path


def _check_precision(wrapped: Wrapped) -> None:
    """Refuse bottlenecks in which an optimizer cannot step."""
    if any(parameter.dtype == torch.float16 for parameter in wrapped.bottlenecks.parameters()):
        raise FitError(
            "the bottlenecks are in float16, whose range an optimizer's steps leave; wrapped.bottlenecks.float() puts "
            "them into float32, and the model may stay as it is"
        )


def _warn_of_export(wrapped: Wrapped) -> None:
    """Say before a long fit what the export will refuse after it."""
    if quantized := quantized_modules(wrapped.base):
        _log.warning(
            "'%s' is quantized, and export makes no program of such a module; to export what is fitted, fit the model "
            "in floating-point",
            quantized[0],
        )
    if isinstance(wrapped.base, nn.parallel.DistributedDataParallel):
        _log.warning(
            "the model is a DistributedDataParallel, of which export makes no program; to export what is fitted, wrap "
            "what is in it, its .module"
        )
    names = {str(tensor.dtype).removeprefix("torch.") for tensor in wrapped.example_inputs().tensors}
    if unknown := sorted(names - {*DTYPES}):
        _log.warning(
            "the model takes %s, which export refuses, since neither numpy nor the wire has it; to export what is "
            "fitted, wrap the model in a module that converts at its ends first, or use torch.autocast",
            ", ".join(unknown),
        )


def _all_started(wrapped: Wrapped) -> bool:
    return all(one.calibrated for split in wrapped.split_points for one in wrapped.bottlenecks_at(split))


def _calibrated(wrapped: Wrapped, batches: Iterable[Any], aim: Aim, seed: int, progress: bool | None) -> Iterable[Any]:
    """Start the bottlenecks that need it; returns batches that still hold what was looked at."""
    if _all_started(wrapped) or wrapped.options.codec == "deepcod":
        return batches
    _log.info("finding the directions at %s on up to %d samples", ", ".join(wrapped.split_points), SAMPLES)
    iterator = iter(batches)
    if iterator is not batches:
        start(wrapped, batches, aim, seed, progress=progress)
        return batches
    peeked = up_to(iterator, wrapped, None, SAMPLES)
    start(wrapped, peeked, aim, seed, progress=progress)
    return itertools.chain(peeked, iterator)


def fit(
    wrapped: Wrapped,
    batches: Iterable[Any],
    *,
    # how long
    epochs: int | None = None,
    steps: int | None = None,
    # what for
    recipe: str | Recipe | None = None,
    rate: float | None = None,
    target_bytes: float | Mapping[str, float] | None = None,
    max_drop: float | None = None,
    agreement: Agreement | None = None,
    lr: float | None = None,
    validation: Iterable[Any] | None = None,
    # where and how
    device: str | int | torch.device | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool | None = None,
) -> FitReport:
    """Train the bottlenecks so that the model behaves as it does without them; no labels, the model frozen.

    Afterwards the symbols' frequencies are counted and stored as the tables that the coder uses.

    Args:
        wrapped: What `compoff.wrap` returned.
        batches: Any iterable of tensors, of (input, label) tuples, or of dicts with the names of the model's arguments;
            labels are ignored. Several inputs are ``((image, mask), label)``, a dict, or ``((image,), dict)`` of
            both. In a dict ``label``, ``labels``, ``target`` and ``targets`` are labels, unless the model was wrapped
            with an input of this name. Gone through again and again; one that can be gone through only once needs
            `steps`, and is measured by its last 8 batches.
        epochs: Rounds through `batches`; None for 10.
        steps: Optimizer steps instead of rounds.
        recipe: ``"deepcod"`` (the paper's), ``"transform"``, or a `Recipe` of your own; None for that of the codec
            which the model was wrapped with.
        rate: Weight of the rate: more gives fewer bytes and less accuracy. None for the recipe's; 0 is the paper's.
        target_bytes: Mean length of a payload to aim at, in bytes (codec ``"transform"``). The fit serves other rates
            too; the best quality within the target, give or take 2 %, becomes the export's default. Of several split
            points each may have its own: ``{"layer2": 2000, "layer3": 1000}``; one that the dict does not name is
            fitted all the same, to a small error of the output, without an aim of bytes. A warning says where the
            latent of `channels` and `stride` does not take so many.
        max_drop: Share of answers that may change, such as 0.01 (codec ``"transform"``), for a model that returns
            scores: the cheapest quality that keeps to it becomes the export's default. On the measured samples the
            drop in accuracy cannot be larger. Give one of the two; with neither the last quality is the default, the
            one with the most bytes.
        agreement: What counts as an answer that is kept, for a model that returns something else than scores: a
            function of two answers for a batch, the student's and the model's own, each as the model returns it, that
            gives a tensor of one share a sample, 1 for an answer that is kept and 0 for one that is lost. The report
            has their mean, and `max_drop` is what may be lost of it. None for the same class.
        lr: Learning rate at the start; None for the recipe's.
        validation: Held-out batches to measure bytes and agreement on; None for training inputs.
        device: Where to train, such as ``"cuda"``; None for where the model is. The model is moved there.
        seed: Seed of PyTorch's random numbers in the fit, the loader's among them unless it has a generator of its
            own; the caller's go on afterwards as if nothing had been drawn.
        resume: File to keep the state in: a fit that was killed goes on from it, one that was finished is only measured
            again.
        progress: Whether to draw a progress bar; None to draw it on a terminal only.

    Returns:
        Loss curves, bytes, agreement.

    Raises:
        BackendError: There is no such `device` here.
        FitError: No usable batches, or one of which an input that the model was wrapped with may fall away, or that
            gives the model a tensor which it was not wrapped with, an argument out of range, a loss that is not finite
            (the last good state is kept), NaN in `validation` (the bottlenecks stay fitted: measure with `finish`), a
            foreign or damaged `resume`, or a hook on `wrapped` that changes what passes.
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
    require_wrapped(wrapped)
    require_batches("batches", batches)
    require_batches("validation", validation, or_none=True)
    seed = check_seed(seed)
    check_flag("progress", progress, FitError, or_none=True)
    state = None if resume is None else _state_file(resume)
    chosen, total = recipe_for(wrapped.options.codec, recipe), _total_steps(batches, epochs, steps)
    lr, rate = _weights(chosen.lr if lr is None else lr, chosen.rate if rate is None else rate)
    aim = Aim(target_bytes, max_drop)
    aim.check(wrapped.options.codec)
    require_agreement(agreement)
    refuse_on(wrapped, "fit")
    if device is not None:
        require_device(device)
        wrapped.to(device)
    require_gradients(wrapped.base)
    where, began = device_of(wrapped.base), time.monotonic()
    again = wrapped.built and _all_started(wrapped)
    untouched = spare_attributes(wrapped.base, hooks=False)
    with untouched, own_random_numbers(seed, where), torch.inference_mode(mode=False), torch.enable_grad():
        batches = _build(wrapped, batches, where)
        require_onlookers(wrapped, FitError)
        _check_precision(wrapped)
        _warn_of_export(wrapped)
        aim.check_points(wrapped.split_points)
        check_output(wrapped, aim, agreement)
        tell_of_latents_too_small(wrapped, aim)
        measured = held_out(validation, wrapped, where)
        if state is None or not state.exists():
            batches = _calibrated(wrapped, batches, aim, seed, progress)
        fitter = Fitter(wrapped, chosen, lr=lr, rate=rate, total=total, aim=aim)
        fitter.state.seconds = time.monotonic() - began  # what finding the directions took
        keeper = Keeper(state, seed, fitter) if state is not None else None
        recent = _train(fitter, batches, where, keeper, progress=progress)
        report = _finish(fitter, recent, batches, measured, where, aim, agreement, progress=progress)
    tell_of_what_was_left(wrapped, report, aim, again=again)
    return report


def _build(wrapped: Wrapped, batches: Iterable[Any], device: torch.device | None) -> Iterable[Any]:
    """Learn the shapes from the first batch where they are not known; returns batches that still hold it."""
    if wrapped.built:
        return batches
    iterator = iter(batches)
    peeked = list(itertools.islice(iterator, 1))
    if not peeked:
        raise FitError("the batches are empty; give at least one")
    first = to_batch(peeked[0], wrapped, device)
    with refusals_named(first):
        wrapped.build(*first.args, **first.kwargs)
    return itertools.chain(peeked, iterator) if iterator is batches else batches


def _train(
    fitter: Fitter,
    batches: Iterable[Any],
    device: torch.device | None,
    keeper: Keeper | None,
    *,
    progress: bool | None,
) -> list[Batch]:
    """The loop itself; returns the last batches of what can be gone through only once."""
    wrapped, recent = fitter.wrapped, Recent(batches, fitter.wrapped, device)
    rng = keeper.restore() if keeper else None
    if rng is not None:
        finished = fitter.state.step >= fitter.total
        set_random_states(rng.now if finished and rng.now else rng.round, device)
        for generator, stood in zip(own_generators(batches), rng.loader, strict=False):
            generator.set_state(stood)
        if finished and recent.wanted:
            recent.pass_by(iter(batches), fitter.state.position)
    state, was_training = fitter.state, wrapped.training
    start = time.monotonic() - state.seconds
    wrapped.train()
    try:
        with bar("compoff.fit", fitter.total, "step", progress, begun=state.step) as done:
            while state.step < fitter.total:
                loader = tuple(one.get_state() for one in own_generators(batches))
                began = RandomState(random_states(device), loader=loader)
                for item in one_round(batches, state, rng, recent):
                    batch = to_batch(item, wrapped, device)
                    recent.keep(batch)
                    mean = fitter.step(batch)
                    state.seconds = time.monotonic() - start
                    done(mean)
                    if keeper and keeper.due:
                        keeper.save(began)
                    if state.step == fitter.total:
                        break
                rng = None
    finally:
        wrapped.train(was_training)
    return list(recent.batches)


def _finish(
    fitter: Fitter,
    recent: list[Batch],
    batches: Iterable[Any],
    measured: Iterable[Batch] | None,
    device: torch.device | None,
    aim: Aim,
    agreement: Agreement | None,
    *,
    progress: bool | None,
) -> FitReport:
    """Measure on what the loop saw, or on what was held out."""
    _log.info("counting symbols and measuring every quality")
    wrapped, state, began = fitter.wrapped, fitter.state, time.monotonic()
    counted = recent or up_to(batches, wrapped, device, MEASURED)
    reports = {
        split: SplitReport(loss=state.loss[split], distilled_from=state.distilled_from.get(split))
        for split in wrapped.split_points
    }
    samples = conclude(wrapped, reports, counted, measured, aim, agreement, progress=progress)
    seconds = time.monotonic() - began
    for split, report in reports.items():
        _tell_of_worse(split, report.loss[report.distilled_from or 0 :])
    return FitReport(reports, state.step, state.seconds, samples, measured is not None, seconds)


def _tell_of_worse(split: str, losses: list[float]) -> None:
    """Say where steps have undone what they started from."""
    if len(losses) < _FEW_STEPS:
        return
    last = fmean(losses[-(len(losses) // 10) :])
    if last <= _WORSE * losses[0]:
        return
    _log.warning(
        "the fit at '%s' ended worse than it began (loss %.3g, at first %.3g); take a lower lr, do without steps "
        '(calibrate, then finish), or, with codec="deepcod", normalize a feature whose channels have unlike units or '
        "means far from zero",
        split,
        last,
        losses[0],
    )
