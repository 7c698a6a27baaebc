"""The transform codec with one thing changed, for `benchmarks.ablations`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

import compoff
from compoff.codec import Directions, RefiningDecoder, TileMoments, UniformQuantizer
from compoff.codec.uniform import coarsen
from compoff.codec.units import ChannelMoments, ChannelUnits
from compoff.fitting.fitter import Fitter
from compoff.losses import distillation
from compoff.teaching import teacher_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from benchmarks.behind import KeptFeatures
    from benchmarks.rate_accuracy import Fitted
    from compoff.codec import Quality
    from compoff.coding import Code
    from compoff.coding.context_model import ContextModel

__all__ = ["BASELINE", "SEEDS", "VARIATIONS", "Variation", "context_bytes"]


@dataclass
class Variation:
    """One thing changed.

    Args:
        group: What kind of thing.
        options: Keyword arguments of `compoff.wrap`.
        recipe: Fields of the recipe.
        patches: Names inside compoff that stand for something else meanwhile.
        prepare: Called with the wrapped model, the batches and the bytes aimed at, before the fit.
        augmentation: What was done to the images: "none", "mirrored" or "moved".
        target_bytes: What the fit is aimed at, if not at what all others are.
        seed: Seed of the fit.
    """

    group: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    patches: dict[str, Any] = field(default_factory=dict[str, Any])
    prepare: Callable[[compoff.Wrapped, KeptFeatures, float], None] | None = None
    augmentation: str = "mirrored"
    target_bytes: float | None = None
    seed: int = 0


def _slopes_of_nothing(
    wrapped: Any, split: str, batch: Any, generator: torch.Generator
) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
    """Gradients that favor no direction: what remains is the plain Karhunen-Loève transform."""
    record = teacher_pass(wrapped.base, {split: wrapped.gate(split)}, wrapped.sites, batch, blocks=False)
    ys = record.features[split]
    return ys, [tuple(torch.randn(y.shape, generator=generator).to(y) for y in ys)]


def _orthogonal(self: TileMoments, channels: int) -> Directions:
    """Random orthonormal directions, those of the largest variance first."""
    mean, covariance, _, units = self._moments()
    noise = torch.randn(len(mean), channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = cast("Tensor", torch.linalg.qr(noise).Q).T
    deviation = (rows @ covariance * rows).sum(1).clamp_min(0).sqrt()
    order = deviation.argsort(descending=True)
    rows, deviation = rows[order].float(), deviation[order].float()
    unmixed = self._whole(mean).float()  # of the tile with all its channels
    return Directions(rows, rows, rows @ mean.float(), unmixed, deviation, units, self.mixing)


_units = ChannelMoments.units


def _around_zero(self: ChannelMoments) -> ChannelUnits:
    """Units without shifts: the encoder sees the feature as it is, but for its scale."""
    found = _units(self)
    found.shift.zero_()
    return found


def _one_unit(self: ChannelMoments) -> ChannelUnits:
    """One unit for all channels, around their means."""
    found = _units(self)
    found.scale.fill_(float(found.scale.log2().mean().round().exp2()))
    return found


class _LearnedPoints(UniformQuantizer):
    """Uniform decisions, but what a level stands for is learned for each channel."""

    def __init__(self, channels: int, num_levels: int = 255) -> None:
        super().__init__(channels, num_levels)
        self.points = nn.Parameter(torch.zeros(channels, num_levels))

    def restored(self, values: Tensor) -> Tensor:
        """Values plus what was learned, in units of twenty steps so that it moves as fast as they do."""
        levels = (values.detach().round() + self.num_centers // 2).long()
        flat = levels.transpose(0, 1).flatten(1)
        moved = 20 * self.points.gather(1, flat).view(levels.transpose(0, 1).shape).transpose(0, 1)
        return super().restored(values + moved)


def _learned_points(self: Any, channels: int, num_centers: int) -> _LearnedPoints:
    del self
    return _LearnedPoints(channels, num_centers)


def _no_contexts(symbols: NDArray[np.uint8], code: Code) -> tuple[ContextModel, ...]:
    del symbols, code
    return ()


def _stay_linear(model: compoff.Wrapped, batches: KeptFeatures, target: float) -> None:
    compoff.calibrate(model, batches, target_bytes=target)
    decoder = model.bottleneck("input").decoder
    assert isinstance(decoder, RefiningDecoder)
    decoder.leave.requires_grad_(requires_grad=False)  # the refinement starts at zero, and stays there


def _with_divergence(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    importance: Tensor | None = None,
    *,
    average: bool = False,
    outputs: int = 0,
) -> Tensor:
    """Eq. 11 and the divergence of the classes."""
    classes = nn.functional.kl_div(
        student[-1].log_softmax(1), teacher[-1].log_softmax(1), log_target=True, reduction="none"
    ).sum(1)
    weighted = classes.mean() if importance is None else (classes * importance).mean()
    return distillation(teacher, student, importance, average=average, outputs=outputs) + 0.2 * weighted


_step = Fitter.step


def _averaged(self: Fitter, batch: Any) -> float:
    """A step, and the mean of the last hundred or so; the fit ends with the mean."""
    loss, held = _step(self, batch), vars(self)
    now = self.wrapped.bottlenecks.state_dict()
    average = held.setdefault("average", {name: value.clone() for name, value in now.items()})
    decay = min(0.98, (1 + self.state.step) / (10 + self.state.step))
    for name, value in now.items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
    if self.state.step == self.total:
        self.wrapped.bottlenecks.load_state_dict(average)
    return loss


def _decoder(width: int, blocks: int) -> dict[str, Any]:
    names = {"_LATENT_WIDTH": 2 * width, "_LATENT_BLOCKS": blocks, "_FEATURE_WIDTH": width}
    return {f"compoff.codec.refiner.{name}": value for name, value in names.items()}


_ONE_RATE = {"compoff.codec.transform.LADDER": (1,)}
_FORMER_RATES = {"compoff.codec.transform.LADDER": (1, 2, 3, 4, 5, 7, 9), "compoff.codec.transform._SILENT": 1e-3}
_UNITS, _OFFSET_LR = "compoff.codec.units.ChannelMoments.units", "compoff.codec.transform._OFFSET_LR"
_SLOPES, _DIRECTIONS = "compoff.fitting.calibrating._slopes", "compoff.codec.directions.TileMoments.directions"
_QUANTIZER = "compoff.codec.transform.TransformBottleneck._make_quantizer"

BASELINE = Variation("as it is")

VARIATIONS = {
    "as it is": BASELINE,
    "start: the directions of largest variance (PCA)": Variation("start", patches={_SLOPES: _slopes_of_nothing}),
    "start: random orthonormal directions": Variation("start", patches={_DIRECTIONS: _orthogonal}),
    "units: one for all channels": Variation("units", patches={_UNITS: _one_unit}),
    "units: around zero": Variation("units", patches={_UNITS: _around_zero}),
    "units: around zero, zero points at the weights' rate": Variation(
        "units", patches={_UNITS: _around_zero, _OFFSET_LR: 2.0}
    ),
    "units: zero points at the weights' rate": Variation("units", patches={_OFFSET_LR: 2.0}),
    "rates: one fit for 50 B alone": Variation("rates", patches=_ONE_RATE, target_bytes=50),
    "rates: one fit for 100 B alone": Variation("rates", patches=_ONE_RATE),
    "rates: one fit for 180 B alone": Variation("rates", patches=_ONE_RATE, target_bytes=180),
    "rates: steps of 1, 2, 3, 4, 5, 7, 9, silent channels sent": Variation("rates", patches=_FORMER_RATES),
    "rate term: none": Variation("rate term", recipe={"rate": 0.0}),
    "quantizer: learned centers, 100 B alone": Variation(
        "quantizer", patches={**_ONE_RATE, _QUANTIZER: _learned_points}
    ),
    "coder: no context models": Variation("coder", patches={"compoff.fitting.measure.fit_contexts": _no_contexts}),
    "decoder: linear": Variation("decoder", prepare=_stay_linear),
    "decoder: half as wide": Variation("decoder", patches=_decoder(24, 1)),
    "decoder: twice as wide, 3 blocks": Variation("decoder", patches=_decoder(96, 3)),
    "tile: 4 × 4": Variation("tile", options={"stride": 4}),
    "tile: 2 × 2": Variation("tile", options={"stride": 2}),
    "channels: 64": Variation("channels", options={"channels": 64}),
    "channels: 192": Variation("channels", options={"channels": 192}),
    "loss: the output alone": Variation("loss", patches={"compoff.cutting.sites._later_blocks": lambda *_: ()}),
    "loss: no reconstruction": Variation("loss", recipe={"reconstruction": 0.0}),
    "loss: as much reconstruction as distillation": Variation("loss", recipe={"reconstruction": 1.0}),
    "loss: blocks summed, not averaged": Variation("loss", recipe={"average": False}),
    "loss: with the divergence of the classes": Variation(
        "loss", patches={"compoff.distilling.distillation": _with_divergence}
    ),
    "learning rate: three times": Variation("learning rate", recipe={"lr": 3e-3}),
    "weights: moving average": Variation("weights", patches={"compoff.fitting.fitter.Fitter.step": _averaged}),
    "tail: adapts": Variation("tail", options={"strict": False}),
    "the paper's codec, 8 channels": Variation("deepcod", options={"codec": "deepcod", "channels": 8}),
    "the paper's codec, 16 channels": Variation("deepcod", options={"codec": "deepcod", "channels": 16}),
    "the paper's codec, 32 channels": Variation("deepcod", options={"codec": "deepcod", "channels": 32}),
    "images: not mirrored": Variation("images", augmentation="none"),
    "images: mirrored and moved": Variation("images", augmentation="moved"),
}

SEEDS = {
    **{f"as it is, seed {seed}": Variation("as it is", seed=seed) for seed in (1, 2)},
    **{f"tail: adapts, seed {seed}": Variation("tail", options={"strict": False}, seed=seed) for seed in (1, 2)},
    **{
        f"{change}, seed {seed}": replace(variation, seed=seed)
        for seed in (1, 2)
        for change, variation in VARIATIONS.items()
        if variation.group == "rates"
    },
}


def context_bytes(fitted: Fitted, features: Tensor, symbols: Tensor, quality: Quality) -> dict[str, float]:
    """What the symbols would cost with tables of each channel, and with tables for each of four activities before it.

    Args:
        fitted: The codec.
        features: Features to count the tables on.
        symbols: Symbols to code.
        quality: What is sent of them.

    Returns:
        Bytes a sample by Shannon's measure, ``plain`` and ``context``.
    """
    counted, coded = (_values(fitted, one, quality) for one in (fitted.symbols(features), symbols))
    most = int(max(np.abs(counted).max(), np.abs(coded).max()))
    edges = np.quantile(_activity(counted), [0.25, 0.5, 0.75], axis=(0, 2))
    bits = {"plain": 0.0, "context": 0.0}
    for channel in range(counted.shape[1]):
        ours, theirs = counted[:, channel], coded[:, channel]
        whole = np.bincount(ours.ravel() + most, minlength=2 * most + 1) + 0.02
        whole = whole / whole.sum()
        bits["plain"] -= float(np.log2(whole[theirs + most]).sum())
        classes = [np.searchsorted(edges[:, channel], _activity(one)[:, channel]) for one in (counted, coded)]
        for kind in range(4):
            counts = np.bincount(ours[classes[0] == kind] + most, minlength=2 * most + 1) + 8 * whole
            bits["context"] -= float(np.log2((counts / counts.sum())[theirs[classes[1] == kind] + most]).sum())
    return {name: total / 8 / len(coded) for name, total in bits.items()}


def _values(fitted: Fitted, symbols: Tensor, quality: Quality) -> NDArray[np.int64]:
    """The whole numbers that travel, ``(samples, channels, positions)``."""
    values = coarsen(symbols.float() - fitted.bottleneck.num_centers // 2, quality.step) / quality.step
    return values[:, : quality.channels].flatten(2).numpy().astype(np.int64)


def _activity(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of the magnitudes of the 24 channels before each one, at the same position."""
    total = np.cumsum(np.abs(values), axis=1, dtype=np.float64)
    before = np.concatenate([np.zeros_like(total[:, :1]), total[:, :-1]], axis=1)
    before[:, 25:] -= total[:, :-25]
    return before
