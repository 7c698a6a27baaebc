"""calibrate(): start each bottleneck from real features, before the first step of a fit.

The transform codec finds its directions and its step here, without labels: from the features at the split point and the
gradients of the model's own output there. Knows no optimizer and no loop.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.batch import refusals_named
from compoff.checks import check_flag
from compoff.codec import TileMoments, TransformBottleneck, WaveMoments
from compoff.codec.waves import described_by, rides_waves
from compoff.errors import FitError
from compoff.fitting.aim import Aim
from compoff.fitting.batches import check_seed, not_finite, require_batches
from compoff.fitting.finishing import refuse_on, up_to
from compoff.fitting.overhead import symbol_bytes
from compoff.fitting.progress import Done, bar
from compoff.fitting.randomness import own_random_numbers
from compoff.fitting.reach import tell_of_latents_too_small
from compoff.fitting.step_search import step_for_bytes, step_for_error
from compoff.hooks import uncompiled
from compoff.mounting import device_of, quantized_modules, require_gradients, require_wrapped
from compoff.outer_hooks import require_onlookers
from compoff.spare import spare_attributes, spare_buffers
from compoff.teaching import float_tensors, teacher_pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from compoff.batch import Batch
    from compoff.codec import Directions
    from compoff.wrapping import Wrapped

    _Slopes = tuple[list[Tensor], list[tuple[Tensor, ...]]]  # features, and gradients at them, draw by draw

__all__ = ["SAMPLES", "calibrate", "start"]

_log = logging.getLogger("compoff.fit")

SAMPLES = 2048
"""Samples that directions are found from."""
_SEARCHED = 256  # samples that the step is sought with
# Samples that tell what wide tiles are described by, and how many tiles they have at least where each has few.
_DESCRIBED_FROM, _TILES = 256, 2**14
_KEPT = 2**27  # numbers of features and gradients that are kept from the look at positions for the one at tiles
_DRAWS = 2  # projections of the output whose gradients stand for a sample


def calibrate(
    wrapped: Wrapped,
    batches: Iterable[Any],
    *,
    target_bytes: float | Mapping[str, float] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> None:
    """Start each bottleneck from real features; `fit` does it by itself, a loop of your own calls it once.

    Those of codec ``"transform"`` find their directions, those of ``"deepcod"`` take their units from the first batch.
    Bottlenecks that have been started before are left as they are, and a warning says so.

    Args:
        wrapped: What `compoff.wrap` returned.
        batches: Batches as `fit` takes them; the first 2048 samples are looked at, or the first 2 GiB.
        target_bytes: Mean length of a payload to aim at, in bytes; by split point where they differ, as for `fit`; None
            to aim at a small error of the output.
        seed: Seed of the random projections of the output, and of what a loader draws; the caller's random numbers are
            left alone.
        progress: Whether to draw a progress bar; None to draw it on a terminal only.

    Raises:
        FitError: No usable batches, or `target_bytes` leaves no room for symbols.
        FeatureError: A tile is too large for the transform codec, or its numbers are too large or too small.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 5))
        >>> model = compoff.wrap(net, "input", example_input=torch.zeros(2, 3, 18, 18))
        >>> compoff.calibrate(model, [torch.randn(16, 3, 18, 18)])
        >>> with model.at("input"):
        ...     model(torch.randn(4, 3, 18, 18)).shape
        torch.Size([4, 5])

    Source: this project.
    """
    require_wrapped(wrapped)
    require_batches("batches", batches)
    aim = Aim(target_bytes)
    aim.check(wrapped.options.codec)
    seed = check_seed(seed)
    check_flag("progress", progress, FitError, or_none=True)
    refuse_on(wrapped, "calibrate")
    require_gradients(wrapped.base)
    if started := [split for split in wrapped.sites if all(one.calibrated for one in wrapped.bottlenecks_at(split))]:
        _log.warning(
            "the bottlenecks at %s have been started before and stay as they are; to start them from other batches or "
            "for other bytes, wrap the model anew",
            ", ".join(f"'{split}'" for split in started),
        )
    with spare_attributes(wrapped.base, hooks=False), own_random_numbers(seed, device_of(wrapped.base)):
        start(wrapped, batches, aim, seed, progress=progress)
    tell_of_latents_too_small(wrapped, aim)


def start(wrapped: Wrapped, batches: Iterable[Any], aim: Aim, seed: int, *, progress: bool | None) -> None:
    """Start each bottleneck, its arguments checked; what loaders and new bottlenecks draw is the caller's.

    Args:
        wrapped: As for `calibrate`.
        batches: As for `calibrate`.
        aim: Bytes to aim at, if any.
        seed: As for `calibrate`.
        progress: As for `calibrate`.

    Raises:
        FitError: As `calibrate`.
        FeatureError: As `calibrate`.
    """
    taken = up_to(batches, wrapped, device_of(wrapped.base), SAMPLES)
    if not taken:
        raise FitError("the batches are empty, so there is nothing to start from; give at least one")
    if len(taken) > 1 and all(batch.size == 1 for batch in taken):
        _log.warning(
            "every batch holds one sample, and does not tell what samples differ by, which a step of a fit counts "
            "errors in; give batches of several, such as DataLoader(..., batch_size=16)"
        )
    if not wrapped.built:
        with refusals_named(taken[0]):
            wrapped.build(*taken[0].args, **taken[0].kwargs)
    require_onlookers(wrapped, FitError)
    aim.check_points(wrapped.split_points)
    wrapped.freeze()
    generator = torch.Generator("cpu").manual_seed(seed)
    for split in wrapped.split_points:
        found = wrapped.bottlenecks_at(split)
        bottlenecks = [one for one in found if isinstance(one, TransformBottleneck) and not one.calibrated]
        if bottlenecks and len(bottlenecks) == len(found):
            with bar(f"compoff.calibrate {split}", len(taken), "batch", progress) as done:
                try:
                    _start(wrapped, split, bottlenecks, taken, aim.bytes_at(split), generator, done)
                except BaseException:  # an interrupt, too: what the search tried last is no start
                    for bottleneck in bottlenecks:
                        bottleneck.calibrated.fill_(False)
                    raise
        elif not any(one.calibrated for one in found):
            record = teacher_pass(wrapped.base, {split: wrapped.gate(split)}, wrapped.sites, taken[0], blocks=False)
            for bottleneck, y in zip(found, record.features[split], strict=True):
                bottleneck.calibrate(y.to(bottleneck.quantizer.centers.dtype))


def _start(
    wrapped: Wrapped,
    split: str,
    bottlenecks: list[TransformBottleneck],
    batches: list[Batch],
    target_bytes: float | None,
    generator: torch.Generator,
    done: Done,
) -> None:
    """Find directions of the bottlenecks at one split point, and the step that they share.

    The unit of every direction is what it does to the output, so that one step serves several features alike.
    """
    mixings, seen = _mixings(wrapped, split, bottlenecks, batches, generator)
    moments = [TileMoments(one.geometry, mixing) for one, mixing in zip(bottlenecks, mixings, strict=True)]
    features: list[list[Tensor]] = []
    samples = 0
    for batch in batches:
        ys, slopes = seen.popleft() if seen else _slopes(wrapped, split, batch, generator)
        for draw in slopes:
            for moment, y, slope in zip(moments, ys, draw, strict=True):
                moment.add(y, slope)
        if samples < _SEARCHED:
            features.append([y.to(one.quantizer.centers.dtype) for one, y in zip(bottlenecks, ys, strict=True)])
            samples += len(ys[0])
        done(None)
    directions = [
        moment.directions(bottleneck.latent_shape[0]) for moment, bottleneck in zip(moments, bottlenecks, strict=True)
    ]
    together = [torch.cat(list(parts)) for parts in zip(*features, strict=True)]
    if target_bytes is None:
        step = step_for_error(wrapped, split, bottlenecks, directions, batches[: len(features)], features, together)
    else:
        step = step_for_bytes(bottlenecks, directions, together, symbol_bytes(wrapped, split, target_bytes))
    for bottleneck, one, y in zip(bottlenecks, directions, together, strict=True):
        bottleneck.start(one, step / bottleneck.reference_step, y)


def _mixings(
    wrapped: Wrapped,
    split: str,
    bottlenecks: list[TransformBottleneck],
    batches: list[Batch],
    generator: torch.Generator,
) -> tuple[list[Directions | None], deque[_Slopes]]:
    """What describes tiles that are too wide to keep all of their elements.

    Returns also what was computed of the first batches, as far as there is room for it.
    """
    moments = [WaveMoments(one.geometry) if rides_waves(one.geometry) else None for one in bottlenecks]
    tiles = min(math.prod(one.geometry.latent_space) for one in bottlenecks)
    if all(moment is None for moment in moments):
        return [None] * len(moments), deque()
    seen: deque[_Slopes] = deque()
    room, samples = _KEPT, 0
    for batch in batches:
        ys, slopes = _slopes(wrapped, split, batch, generator)
        room -= sum(y.numel() for y in ys) * (1 + len(slopes))
        if room >= 0:  # which it will not be again: what is kept are the first ones
            seen.append((ys, slopes))
        for draw in slopes:
            for moment, y, slope in zip(moments, ys, draw, strict=True):
                if moment is not None:
                    moment.add(y, slope)
        samples += len(ys[0])
        if samples >= max(_DESCRIBED_FROM, _TILES // tiles):
            break
    mixings = [
        None if moment is None else moment.directions(described_by(one.geometry))
        for moment, one in zip(moments, bottlenecks, strict=True)
    ]
    return mixings, seen


def _check_finite(batch: Batch, ys: list[Tensor], slopes: list[tuple[Tensor, ...]]) -> None:
    """Refuse numbers that no directions can be found from."""
    if not all(bool(torch.isfinite(value).all()) for value in (*ys, *(slope for draw in slopes for slope in draw))):
        raise not_finite(batch)


def _slopes(wrapped: Wrapped, split: str, batch: Batch, generator: torch.Generator) -> _Slopes:
    """The features, and gradients of random projections of the output at them, draw by draw."""
    gate, leaves = wrapped.gate(split), list[Tensor]()

    def open_gradient(features: list[Tensor]) -> list[Tensor]:
        leaves[:] = [y.detach().float().clone().requires_grad_() for y in features]
        # Cloned, because the model may go on to change them in place.
        return [leaf.to(y.dtype).clone() for leaf, y in zip(leaves, features, strict=True)]

    before, gate.replace = gate.replace, open_gradient
    try:
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            uncompiled(wrapped.base),
            spare_buffers(wrapped.base),
            refusals_named(batch),
        ):
            outputs = float_tensors(batch.call(wrapped.base))
            if not outputs:
                raise FitError("the model returns no floating-point tensor, so there is nothing to distil")
            outputs = [output for output in outputs if output.numel()]
            if not outputs:
                raise FitError(
                    "the model finds nothing in a batch: what it returns is empty, and says nothing of what the answer "
                    "depends on; fit with a lower threshold, or wrap the part of the model that returns scores"
                )
            projections = [_projection(outputs, generator) for _ in range(_DRAWS)]
            slopes = [_gradients(projection, leaves, split, wrapped.base) for projection in projections]
    finally:
        gate.replace = before
    for bottleneck, leaf in zip(gate.bottlenecks, leaves, strict=True):
        bottleneck.geometry.check(leaf)
    ys = [leaf.detach() for leaf in leaves]
    _check_finite(batch, ys, slopes)
    return ys, slopes


def _gradients(projection: Tensor, leaves: list[Tensor], split: str, base: nn.Module) -> tuple[Tensor, ...]:
    """Gradients of a projection of the output at the features."""
    found: tuple[Tensor | None, ...] = (None,)
    if projection.requires_grad:
        found = torch.autograd.grad(projection, leaves, retain_graph=True, allow_unused=True)
    if all(slope is None for slope in found):
        if quantized := quantized_modules(base):
            raise FitError(
                f"no gradient of the model's output reaches the feature at '{split}': '{quantized[0]}' is quantized, "
                "and such a module has none, and becomes no program; fit and export the model in floating-point"
            )
        raise FitError(
            f"no gradient of the model's output reaches the feature at '{split}', so nothing says what the output "
            "depends on; a common cause is gradient checkpointing inside the model with use_reentrant=True, or a model "
            'that switches gradients off: turn that off, or wrap with codec="deepcod"'
        )
    # A skip that no output depends on has no slope; that of the others says enough.
    return tuple(torch.zeros_like(y) if slope is None else slope for slope, y in zip(found, leaves, strict=True))


def _projection(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """A random weighted sum of the outputs, each in the unit of its own deviation."""
    total = outputs[0].new_zeros(())
    for output in outputs:
        # What is added to all scores alike changes no answer.
        centered = output - output.mean(1, keepdim=True) if output.dim() == 2 and output.shape[1] > 1 else output
        weights = torch.randn(centered.shape, generator=generator, dtype=torch.float32, device="cpu").to(centered)
        total = total + (centered * weights).sum() / output.detach().float().std(unbiased=False).clamp_min(1e-12)
    return total
