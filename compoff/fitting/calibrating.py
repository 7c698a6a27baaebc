"""calibrate(): start each bottleneck from real features, before the first step of a fit.

The transform codec finds its directions and its step here, without labels: from the features at the split point and the
gradients of the model's own output there. Knows no optimizer and no loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compoff.codec import TileMoments, TransformBottleneck
from compoff.codec.transform import REFERENCE_STEP
from compoff.coding import Code, PayloadFormat
from compoff.distilling import float_tensors, refusals_named, teacher_pass
from compoff.errors import FitError
from compoff.fitting.batches import to_batch
from compoff.losses import relative_error
from compoff.wrapped import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from compoff.codec import Directions
    from compoff.distilling import Batch
    from compoff.wrapping import Wrapped

__all__ = ["SAMPLES", "calibrate", "overhead_bytes"]

SAMPLES = 2048
"""Samples that directions are found from."""
_SEARCHED = 256  # samples that the step is sought with
_DRAWS = 2  # projections of the output whose gradients stand for a sample
_BISECTIONS = 10
# Without a number of bytes to aim at, the reference step is where the linear start puts this share of the output's
# variance in error; training takes more than half of it away.
_START_ERROR = 0.1


def calibrate(wrapped: Wrapped, batches: Iterable[Any], *, target_bytes: float | None = None, seed: int = 0) -> None:
    """Start each bottleneck from real features; `fit` does it by itself, a loop of your own calls it once.

    Bottlenecks that have been started before are left as they are.

    Args:
        wrapped: What `compoff.wrap` returned.
        batches: Batches as `fit` takes them; the first 2048 samples are looked at.
        target_bytes: Mean length of a payload to aim at, in bytes; None to aim at a small error of the output.
        seed: Seed of the random projections of the output; the caller's random numbers are left alone.

    Raises:
        FitError: No usable batches, or `target_bytes` leaves no room for symbols.
        FeatureError: A tile is too large for the transform codec.

    Examples:
        >>> import torch, compoff
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 256, 5))
        >>> model = compoff.wrap(net, "input", codec="transform", example_input=torch.zeros(2, 3, 18, 18))
        >>> compoff.calibrate(model, [torch.randn(16, 3, 18, 18)])
        >>> with model.at("input"):
        ...     model(torch.randn(4, 3, 18, 18)).shape
        torch.Size([4, 5])

    Source: this project.
    """
    where = device_of(wrapped.base)
    taken: list[Batch] = []
    for item in batches:
        taken.append(to_batch(item, wrapped.base, where))
        if sum(batch.size for batch in taken) >= SAMPLES:
            break
    if not taken:
        raise FitError("the batches are empty, so there is nothing to start from; give at least one")
    if not wrapped.built:
        with refusals_named(taken[0]):
            wrapped.build(*taken[0].args, **taken[0].kwargs)
    wrapped.freeze()
    generator = torch.Generator().manual_seed(seed)
    for split in wrapped.split_points:
        bottleneck = wrapped.bottleneck(split)
        if isinstance(bottleneck, TransformBottleneck) and not bottleneck.calibrated:
            _start(wrapped, split, bottleneck, taken, target_bytes, generator)


def overhead_bytes(bottleneck: TransformBottleneck) -> int:
    """Bytes of a payload of one sample that are not symbols.

    Args:
        bottleneck: The bottleneck.

    Returns:
        Bytes of header and checksum.

    Examples:
        >>> from compoff.codec import Geometry
        >>> overhead_bytes(TransformBottleneck(Geometry((4, 8, 8)), 8))
        7
    """
    coder = PayloadFormat(bytes(32), [Code(bottleneck.prior.tables(), bottleneck.latent_shape)])
    return coder.max_bytes(1) - coder.packed_bytes(1)


def _start(
    wrapped: Wrapped,
    split: str,
    bottleneck: TransformBottleneck,
    batches: list[Batch],
    target_bytes: float | None,
    generator: torch.Generator,
) -> None:
    """Find directions and step of one bottleneck."""
    moments, features, samples = TileMoments(bottleneck.geometry), list[Tensor](), 0
    for batch in batches:
        y, slopes = _slopes(wrapped, split, batch, generator)
        for slope in slopes:
            moments.add(y, slope)
        if samples < _SEARCHED:
            features.append(y.detach())
            samples += len(y)
    directions = moments.directions(bottleneck.latent_shape[0])
    if target_bytes is None:
        step = _step_for_error(wrapped, split, bottleneck, directions, batches[: len(features)], features)
    else:
        step = _step_for_bytes(bottleneck, directions, torch.cat(features), target_bytes)
    bottleneck.start(directions, step / REFERENCE_STEP, torch.cat(features))


def _slopes(wrapped: Wrapped, split: str, batch: Batch, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
    """The feature, and gradients of random projections of the output at it."""
    gate, leaves = wrapped.gate(split), list[Tensor]()

    def open_gradient(y: Tensor) -> Tensor:
        leaves.append(y.detach().float().clone().requires_grad_())
        return leaves[-1].to(y.dtype).clone()  # the model may go on to change it in place

    gate.replace = open_gradient
    try:
        with torch.enable_grad(), refusals_named(batch):
            outputs = float_tensors(wrapped.base(*batch.args, **batch.kwargs))
            if not outputs:
                raise FitError("the model returns no floating-point tensor, so there is nothing to distil")
            projections = [_projection(outputs, generator) for _ in range(_DRAWS)]
            slopes = [_gradient(projection, leaves[-1], split) for projection in projections]
    finally:
        gate.replace = None
    return leaves[-1].detach(), slopes


def _gradient(projection: Tensor, y: Tensor, split: str) -> Tensor:
    """Gradient of a projection of the output at the feature."""
    found = None
    if projection.requires_grad:
        found = torch.autograd.grad(projection, y, retain_graph=True, allow_unused=True)[0]
    if found is None:
        raise FitError(
            f"no gradient of the model's output reaches the feature at '{split}', so nothing says what the output "
            "depends on; a common cause is gradient checkpointing inside the model with use_reentrant=True, or a model "
            'that switches gradients off: turn that off, or wrap with codec="deepcod"'
        )
    return found


def _projection(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """A random weighted sum of the outputs, each in the unit of its own deviation."""
    total = outputs[0].new_zeros(())
    for output in outputs:
        # What is added to all scores alike changes no answer.
        centered = output - output.mean(1, keepdim=True) if output.dim() == 2 and output.shape[1] > 1 else output
        weights = torch.randn(centered.shape, generator=generator).to(centered)
        total = total + (centered * weights).sum() / output.detach().float().std(unbiased=False).clamp_min(1e-12)
    return total


@torch.no_grad()
def _step_for_bytes(bottleneck: TransformBottleneck, directions: Directions, y: Tensor, target_bytes: float) -> float:
    """The step at which the symbols' entropy is that of the bytes asked for."""
    body = target_bytes - overhead_bytes(bottleneck)
    if body < 1:
        raise FitError(
            f"target_bytes is {target_bytes}, but header and checksum take {overhead_bytes(bottleneck)}; ask for more"
        )
    tiles = bottleneck.geometry.tiles(y.float()) - directions.mean.to(y.device)
    latent = (tiles @ directions.analysis.to(y.device).T).cpu().numpy()

    def too_fine(step: float) -> bool:
        return _entropy_bytes(np.round(latent / step).astype(np.int64), len(y)) > body

    return _bisect(too_fine, float(directions.deviation[0]))


def _entropy_bytes(symbols: NDArray[np.int64], samples: int) -> float:
    """Bytes per sample of symbols with a table of its own for each column."""
    bits = 0.0
    for index in range(symbols.shape[1]):
        column: NDArray[np.int64] = symbols[:, index]
        counts = np.unique(column, return_counts=True)[1]
        bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8 / samples


@torch.no_grad()
def _step_for_error(
    wrapped: Wrapped,
    split: str,
    bottleneck: TransformBottleneck,
    directions: Directions,
    batches: list[Batch],
    features: list[Tensor],
) -> float:
    """The step at which the linear codec's error at the output is the one to start from."""
    gate, site = wrapped.gate(split), {split: wrapped.gate(split)}
    teacher = [teacher_pass(wrapped.base, site, wrapped.sites, batch, blocks=True).output for batch in batches]
    bottleneck.eval()

    def too_fine(step: float) -> bool:
        bottleneck.start(directions, step / REFERENCE_STEP, features[0])
        errors: list[float] = []
        for batch, y, expected in zip(batches, features, teacher, strict=True):
            y_hat = bottleneck.decode_at(y, REFERENCE_STEP)
            gate.replace = lambda fresh, y_hat=y_hat: y_hat.to(fresh.dtype)
            try:
                output = float_tensors(wrapped.base(*batch.args, **batch.kwargs))
            finally:
                gate.replace = None
            errors.append(float(relative_error(expected[0], output[0])))
        return sum(errors) / len(errors) < _START_ERROR

    try:
        return _bisect(too_fine, float(directions.deviation[0]))
    finally:
        bottleneck.train(wrapped.training)


def _bisect(too_fine: Any, deviation: float) -> float:
    """The step between much too fine and much too coarse at which `too_fine` turns false."""
    if deviation <= 0:  # features that are all alike need no step
        return 1.0
    low, high = 1e-3 * deviation, 10 * deviation
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if too_fine(middle) else (low, middle)
    return math.sqrt(low * high)
