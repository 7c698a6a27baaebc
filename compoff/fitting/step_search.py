"""The step that a linear codec starts from: so many bytes of symbols, or so large an error at the output."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compoff.answering import answers, student_output, telling
from compoff.codec import RefiningDecoder
from compoff.codec.precision import own_defaults
from compoff.fitting.comparison import Comparison
from compoff.teaching import float_tensors, teacher_pass

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from compoff.batch import Batch
    from compoff.codec import Directions, TransformBottleneck
    from compoff.wrapping import Wrapped

__all__ = ["step_for_bytes", "step_for_error"]

_BISECTIONS = 10
# Without a number of bytes to aim at, the reference step is where the linear start puts this share of the output's
# variance in error; training takes more than half of it away. Where the directions themselves leave out more than half
# as much, rounding may add as much again, but not so much that nothing is left.
_START_ERROR = 0.1
_FINEST, _COARSEST = 1e-3, 10.0  # steps that are looked at, in units of the largest deviation


@torch.no_grad()
def step_for_bytes(
    bottlenecks: list[TransformBottleneck], directions: list[Directions], ys: list[Tensor], target_bytes: float
) -> float:
    """The step at which the symbols' entropy is so many bytes.

    Args:
        bottlenecks: The bottlenecks, which share the step.
        directions: What each is to measure.
        ys: A feature for each.
        target_bytes: The bytes for one sample.

    Returns:
        The step, in the unit of the directions.
    """
    latents: list[NDArray[Any]] = []
    for bottleneck, one, y in zip(bottlenecks, directions, ys, strict=True):
        latents.append(one.measure(bottleneck.geometry, y.float()).cpu().numpy())

    def too_fine(step: float) -> bool:
        spent = sum(_entropy_bytes(np.round(latent / step).astype(np.int64), len(ys[0])) for latent in latents)
        return spent > target_bytes

    return _bisect(too_fine, _largest_deviation(directions))


def _largest_deviation(directions: list[Directions]) -> float:
    return max(float(one.deviation[0]) for one in directions)


def _entropy_bytes(symbols: NDArray[np.int64], samples: int) -> float:
    """Bytes per sample of symbols with a table of its own for each column."""
    bits = 0.0
    for index in range(symbols.shape[1]):
        column: NDArray[np.int64] = symbols[:, index]
        counts = np.unique(column, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8 / samples


@contextlib.contextmanager
def _linear_decoders(bottlenecks: list[TransformBottleneck]) -> Generator[None]:
    """Give bottlenecks the linear inverse in place of a decoder of the user's own, which knows nothing yet."""
    own = [one.decoder for one in bottlenecks]
    for one in bottlenecks:
        if not isinstance(one.decoder, RefiningDecoder):
            where = one.quantizer.centers
            with own_defaults():
                one.decoder = RefiningDecoder(one.geometry, one.latent_shape[0]).eval().to(where)
    try:
        yield
    finally:
        for one, decoder in zip(bottlenecks, own, strict=True):
            one.decoder = decoder


@torch.no_grad()
def step_for_error(
    wrapped: Wrapped,
    split: str,
    bottlenecks: list[TransformBottleneck],
    directions: list[Directions],
    batches: list[Batch],
    features: list[list[Tensor]],
    together: list[Tensor],
) -> float:
    """The step at which the linear codec's error at the output is the one to start from.

    Args:
        wrapped: The model.
        split: The split point.
        bottlenecks: Its bottlenecks, which share the step; they hold what was tried last afterwards.
        directions: What each is to measure.
        batches: Inputs.
        features: What crosses for each of them, a feature for each bottleneck.
        together: The same of all batches, a feature for each bottleneck.

    Returns:
        The step, in the unit of the directions.
    """
    gate = wrapped.gate(split)
    teacher = [teacher_pass(wrapped.base, {split: gate}, wrapped.sites, batch, blocks=True).output for batch in batches]
    which = telling(wrapped.base, gate, batches[0], features[0], teacher[0])

    def error(step: float) -> float:
        for bottleneck, one, y in zip(bottlenecks, directions, together, strict=True):
            bottleneck.start(one, step / bottleneck.reference_step, y)
        compared = Comparison()  # over all batches: one of a single sample does not tell what samples differ by
        for batch, ys, expected in zip(batches, features, teacher, strict=True):
            restored = [one.decode_at(y, one.reference_step) for one, y in zip(bottlenecks, ys, strict=True)]
            output = float_tensors(student_output(wrapped.base, gate, batch, restored))
            place = wrapped.sites[split]
            compared.add(*answers(wrapped.base, gate, place, batch, restored, output, expected, which))
        return compared.error

    deviation = _largest_deviation(directions)
    with _linear_decoders(bottlenecks):
        left_out = error(_FINEST * deviation) if deviation > 0 else 0.0
        aim = max(_START_ERROR, min(2 * left_out, (1 + left_out) / 2))

        def too_fine(step: float) -> bool:
            return error(step) < aim

        return _bisect(too_fine, deviation)


def _bisect(too_fine: Any, deviation: float) -> float:
    """The step between much too fine and much too coarse at which `too_fine` turns false."""
    if deviation <= 0:  # features that are all alike need no step
        return 1.0
    low, high = _FINEST * deviation, _COARSEST * deviation
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_fine(middle) else (low, middle)
    return math.sqrt(low * high)
