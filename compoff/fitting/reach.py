"""Whether a latent can take the bytes that are aimed at and make use of them, and what to say where not.

Changes nothing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from compoff.codec.transform import TransformBottleneck
from compoff.codec.waves import described_by
from compoff.coding import Code, PayloadFormat
from compoff.fitting.overhead import sides_of

if TYPE_CHECKING:
    from compoff.codec import Bottleneck
    from compoff.fitting.aim import Aim
    from compoff.fitting.report import FitReport
    from compoff.wrapping import Wrapped

__all__ = ["most_bytes", "tell_of_latents_too_small", "tell_of_what_is_left_out", "tell_of_what_was_left"]

_log = logging.getLogger("compoff.fit")

_NEAR = 0.8  # share of the bytes aimed at that is near enough to say nothing
# Power of the bytes that the output's error falls with at least. In fits whose channels hold what the model reads it is
# 0.6 to 1.6; with too few channels of the same features, 0.01 to 0.2.
_FALLING = 0.4
_SMALL = 0.05  # error of the output below which less of it is of no use
_APART = 1.2  # times the bytes of one quality from which another tells whether more help
# A channel is started with deviations that its levels hold some four of; one with half as many can hardly be finer.
_FULL = 1 / 8


def most_bytes(wrapped: Wrapped, split: str) -> int:
    """The most bytes that a payload of one sample can take, however fine the steps that a fit finds.

    Args:
        wrapped: The model.
        split: The split point.

    Returns:
        Bytes, with header and checksum.

    Examples:
        >>> import torch, compoff
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32), channels=8)
        >>> most_bytes(model, "input")
        14
    """
    codes = [
        Code(one.prior.tables(), one.latent_shape, one.latent_shape[:1], (one.qualities()[-1].step,))
        for one in wrapped.bottlenecks_at(split)
    ]
    return PayloadFormat(bytes(32), codes, sides_of(wrapped, split)).max_bytes(1)


def tell_of_latents_too_small(wrapped: Wrapped, aim: Aim) -> None:
    """Warn, before anything is fitted, of bytes that no payload takes.

    Args:
        wrapped: The model, its shapes known.
        aim: What is aimed at.
    """
    for split in wrapped.split_points:
        target = aim.bytes_at(split)
        if target is not None and target > (most := most_bytes(wrapped, split)):
            _log.warning(
                "target_bytes is %g, but a payload at '%s' takes at most %d bytes with %s",
                target,
                split,
                most,
                _sizes(wrapped.bottlenecks_at(split)),
            )


def tell_of_what_was_left(wrapped: Wrapped, report: FitReport, aim: Aim, *, again: bool) -> None:
    """Warn of a best quality far below the aim, and say why.

    Args:
        wrapped: The model, fitted.
        report: What was measured.
        aim: What was aimed at.
        again: Whether the bottlenecks had been started before this fit, and so have a ladder of rates from then.
    """
    for split, one in report.splits.items():
        target, best = aim.bytes_at(split), one.curve[-1]["bytes"]
        if target is None or best >= _NEAR * target:
            continue
        found = wrapped.bottlenecks_at(split)
        if again and not all(_is_full(bottleneck) for bottleneck in found):
            _log.warning(
                "the best quality at '%s' takes %.0f bytes, and target_bytes is %g: an earlier fit or calibrate "
                "has started the bottleneck for fewer, and it keeps that ladder of rates; wrap the model anew to aim "
                "higher",
                split,
                best,
                target,
            )
        elif target <= most_bytes(wrapped, split):  # else told of before
            _log.warning(
                "the best quality at '%s' takes %.0f bytes, and target_bytes is %g: the features say no more with %s",
                split,
                best,
                target,
                _sizes(found),
            )


def tell_of_what_is_left_out(wrapped: Wrapped, split: str, curve: list[dict[str, Any]]) -> None:
    """Warn of a codec whose error no longer falls with more bytes, since its channels leave out what the model reads.

    Args:
        wrapped: The model, fitted.
        split: The split point.
        curve: What was measured of each quality, from the fewest bytes to the most.
    """
    middle, last = curve[len(curve) // 2], curve[-1]
    errors, sizes = ([point[key] for point in (middle, last)] for key in ("output_error", "bytes"))
    if errors[1] < _SMALL or sizes[1] < _APART * sizes[0]:
        return
    if errors[0] * sizes[0] ** _FALLING < errors[1] * sizes[1] ** _FALLING:
        _log.warning(
            "more bytes bring little at '%s': the error of the output is %.2g with %.0f of them, and %.2g with %.0f. "
            "What is left out is lost at any rate with %s",
            split,
            errors[0],
            sizes[0],
            errors[1],
            sizes[1],
            _sizes(wrapped.bottlenecks_at(split)),
        )


@torch.no_grad()
def _is_full(bottleneck: Bottleneck) -> bool:
    """Whether the values of each channel are spread over all of its levels, so that finer steps would be clipped."""
    values = bottleneck.quantizer.centers.cpu().double()
    shares = bottleneck.prior.probabilities().cpu().double()
    deviation = (shares @ values.square() - (shares @ values).square()).clamp_min(0).sqrt()
    return bool((deviation >= _FULL * (bottleneck.num_centers // 2)).all())


def _sizes(bottlenecks: list[Bottleneck]) -> str:
    """The sizes that limit the bytes, and which of them can be chosen otherwise."""
    channels = ", ".join(str(one.latent_shape[0]) for one in bottlenecks)
    strides = ", ".join(str(one.geometry.stride) for one in bottlenecks if one.geometry.space)
    ways = ["more channels"] if any(_has_more(one) for one in bottlenecks) else []
    ways += ["a smaller stride"] if any(max(one.geometry.tile, default=1) > 1 for one in bottlenecks) else []
    sizes = f"channels={channels}" + (f" and stride={strides}" if strides else "")
    return f"{sizes}; wrap with {' or '.join(ways)} to use them" if ways else f"{sizes}, which is all there is"


def _has_more(bottleneck: Bottleneck) -> bool:
    """Whether a feature has more channels to give than are taken."""
    return not isinstance(bottleneck, TransformBottleneck) or bottleneck.latent_shape[0] < described_by(
        bottleneck.geometry
    )
