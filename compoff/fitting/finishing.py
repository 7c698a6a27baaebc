"""After the last step of whichever loop: settle, count the symbols, measure, and choose the default quality.

`finish` is for a loop of the user's own; `fit` comes to the same `conclude`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from compoff.checks import check_flag
from compoff.errors import FitError
from compoff.fingerprint import fingerprint
from compoff.fitting.agreeing import require_agreement
from compoff.fitting.aim import Aim
from compoff.fitting.batches import Batches, require_batches, to_batch
from compoff.fitting.measure import check_output, count_symbols, features_of, measure
from compoff.fitting.progress import each
from compoff.fitting.randomness import own_random_numbers
from compoff.fitting.reach import tell_of_what_is_left_out
from compoff.fitting.report import FitReport, SplitReport
from compoff.mounting import device_of, require_wrapped
from compoff.outer_hooks import require_onlookers
from compoff.spare import spare_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from compoff.batch import Batch
    from compoff.fitting.agreeing import Agreement
    from compoff.wrapping import Wrapped

__all__ = ["MEASURED", "conclude", "finish", "held_out", "refuse_on", "up_to"]

_log = logging.getLogger("compoff.fit")

MEASURED = 2048
"""Samples that symbols are counted on and, without validation, measured on."""
# Memory that samples may take which are held together, beyond the first few: large ones show as much in fewer.
_HELD_BYTES, _FEW = 2**31, 64


def finish(
    wrapped: Wrapped,
    batches: Iterable[Any],
    *,
    target_bytes: float | Mapping[str, float] | None = None,
    max_drop: float | None = None,
    agreement: Agreement | None = None,
    validation: Iterable[Any] | None = None,
    progress: bool | None = None,
) -> FitReport:
    """Make the coder's tables, measure, and choose the default quality; what a loop of your own does last.

    `fit` does it by itself. Without it payloads are as long as they can be, since no symbol counts as likelier than
    another, and the export sends the most of them. The caller's random numbers are left alone, whatever a loader draws.

    Args:
        wrapped: The model, its bottlenecks trained with `Wrapped.distillation_loss`.
        batches: Batches as `fit` takes them; symbols are counted on the first 2048 samples, or on the first 2 GiB.
        target_bytes: The best quality within these bytes, give or take 2 %, becomes the export's default; without it
            and `max_drop` the last one, with the most bytes. A dict gives each split point bytes of its own.
        max_drop: The cheapest quality that changes at most this share of the answers becomes the export's default.
        agreement: What counts as an answer that is kept, as `fit` takes it; None for the same class.
        validation: Held-out batches to measure on; None for those of `batches`.
        progress: Whether to draw a progress bar; None to draw it on a terminal only.

    Returns:
        Bytes and agreement of every quality; without loss curves, which are your loop's.

    Raises:
        FitError: No usable batches, NaN or infinity in them, an argument out of range, bottlenecks that have not been
            started, a bottleneck that is on, or a hook on `wrapped` that changes what passes.
        SplitError: Shapes are not known yet.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 5))
        >>> model, images = compoff.wrap(net, "input"), [torch.randn(16, 3, 18, 18)]
        >>> compoff.calibrate(model, images)
        >>> # ... your loop ...
        >>> report = compoff.finish(model, images)
        >>> 0 < report.splits["input"].bytes < report.splits["input"].raw_bytes
        True

    Source: this project.
    """
    require_wrapped(wrapped)
    require_batches("batches", batches)
    require_batches("validation", validation, or_none=True)
    check_flag("progress", progress, FitError, or_none=True)
    aim = Aim(target_bytes, max_drop)
    aim.check(wrapped.options.codec)
    require_agreement(agreement)
    aim.check_points(wrapped.split_points)
    for split in wrapped.split_points:
        if not all(bottleneck.calibrated for bottleneck in wrapped.bottlenecks_at(split)):
            raise FitError(
                f"the bottleneck at '{split}' has not been started; call compoff.calibrate(model, batches), train it, "
                "and call compoff.finish last, or let compoff.fit do all of it"
            )
    refuse_on(wrapped, "finish")
    where, began = device_of(wrapped.base), time.monotonic()
    reports = {split: SplitReport() for split in wrapped.split_points}
    with spare_attributes(wrapped.base, hooks=False), own_random_numbers(0, where):  # a loader that shuffles draws
        require_onlookers(wrapped, FitError)
        check_output(wrapped, aim, agreement)
        measured = held_out(validation, wrapped, where)
        counted = up_to(batches, wrapped, where, MEASURED)
        samples = conclude(wrapped, reports, counted, measured, aim, agreement, progress=progress)
    return FitReport(reports, 0, 0.0, samples, validation is not None, time.monotonic() - began)


def conclude(
    wrapped: Wrapped,
    reports: dict[str, SplitReport],
    counted: list[Batch],
    measured: Iterable[Batch] | None,
    aim: Aim,
    agreement: Agreement | None,
    *,
    progress: bool | None,
) -> int:
    """Make the tables of every split point from real symbols, and fill in its report.

    Args:
        wrapped: The model.
        reports: A report for each split point, to be filled in.
        counted: What symbols are counted on.
        measured: What bytes and agreement are measured on; None for what symbols are counted on.
        aim: What the default quality is chosen by.
        agreement: What counts as an answer that is kept; None for the same class.
        progress: As for `finish`.

    Returns:
        Number of samples measured.

    Raises:
        FitError: There are no batches, or `agreement` gives no shares.
    """
    if not counted:
        raise FitError("the batches are empty, so there is nothing to measure on; give at least one")
    was_training, samples, base = wrapped.training, 0, fingerprint(wrapped.base.state_dict())
    wrapped.eval()
    try:
        for split, report in reports.items():
            for layer in [layer for one in wrapped.bottlenecks_at(split) for layer in one.spectral_layers()]:
                layer.settle()
            count_symbols(wrapped, split, counted)
            given = each(counted if measured is None else measured, f"compoff.measure {split}", "batch", progress)
            samples = measure(wrapped, split, given, report, aim, agreement)
            report.measured_on, report.held_out = samples, measured is not None
            wrapped.note_figures(split, report.figures(), base)
            wrapped.bottleneck(split).choose(report.quality)
            if report.aim_met is False:
                _log.warning("no quality at '%s' keeps to %s; the default is the nearest", split, aim.asked(split))
            if not _told_of_what_is_lost(split, report, wrapped.options.codec):
                tell_of_what_is_left_out(wrapped, split, report.curve)
    finally:
        wrapped.train(was_training)
    return samples


def _told_of_what_is_lost(split: str, report: SplitReport, codec: str) -> bool:
    """Say where the answer does not come through, or nothing is sent of which it could be made; whether that is so."""
    more = "aim at more bytes with target_bytes, in a model wrapped anew"
    if report.answer_lost:
        deepcod = "with features whose mean is near zero in units of their deviation"
        _log.warning(
            "what comes out behind '%s' has nothing to do with the model's answer (output error %.3g); train longer, "
            "with a lower lr, or %s",
            split,
            report.output_error,
            deepcod if codec == "deepcod" else more,
        )
        return True
    if len(report.curve) > 1 and report.curve[0]["bytes"] == report.curve[-1]["bytes"]:
        _log.warning(
            "every quality at '%s' takes %.0f bytes, so nothing is told of the feature (output error %.3g); %s",
            split,
            report.bytes,
            report.output_error,
            more,
        )
        return True
    return False


def held_out(validation: Iterable[Any] | None, wrapped: Wrapped, device: torch.device | None) -> Iterable[Batch] | None:
    """What to measure on, tried before the first step of a fit rather than after the last.

    Args:
        validation: Held-out batches as people have them.
        wrapped: The model that takes them.
        device: Where to move them; None to leave them.

    Returns:
        The batches, gone through one by one; those that can be gone through only once are kept. None for None.

    Raises:
        FitError: There are none.
        FeatureError: The model, or a bottleneck, does not take the first.
    """
    if validation is None:
        return None
    once = isinstance(validation, Iterator)
    with torch.random.fork_rng(devices=[]):  # a loader that shuffles would draw
        given = up_to(validation, wrapped, device, None if once else 1)
    if not given:
        raise FitError("the validation batches are empty, so there is nothing to measure on; give at least one")
    for split in wrapped.sites:
        features_of(wrapped, split, given[0])
    return given if once else Batches(validation, wrapped, device)


def up_to(batches: Iterable[Any], wrapped: Wrapped, device: torch.device | None, limit: int | None) -> list[Batch]:
    """Batches of at least `limit` samples together, or of 2 GiB, or all of them.

    Args:
        batches: Batches as people have them.
        wrapped: The model that takes them.
        device: Where to move them; None to leave them.
        limit: Number of samples; None for all, however large.

    Returns:
        The batches.
    """
    taken: list[Batch] = []
    samples = held = 0
    for item in batches:
        batch = to_batch(item, wrapped, device)
        # A loader may fill the same memory again; what a list holds is all there.
        taken.append(batch if isinstance(batches, (list, tuple)) else batch.copy())
        samples, held = samples + taken[-1].size, held + taken[-1].num_bytes
        if limit is not None and (samples >= limit or (samples >= _FEW and held >= _HELD_BYTES)):
            break
    return taken


def refuse_on(wrapped: Wrapped, called: str) -> None:
    """Refuse a model whose bottleneck is on: it would be its own teacher.

    Args:
        wrapped: The model.
        called: The function that was called.

    Raises:
        FitError: A bottleneck is on.
    """
    if any(wrapped.gate(split).on for split in wrapped.sites):
        raise FitError(
            f"{called} was called with a bottleneck on, so there is no teacher; call it outside `with model.at(…)`"
        )
