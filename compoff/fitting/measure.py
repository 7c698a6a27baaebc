"""After the last step: count the symbols, and measure bytes and agreement as a user would meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from compoff.codec import Decoder, Encoder, TransformBottleneck
from compoff.coding import Code, PayloadFormat, SymbolTables
from compoff.coding.levels import coarse_tables, coarsen
from compoff.distilling import float_tensors, teacher_pass
from compoff.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compoff.codec import Bottleneck, Quality
    from compoff.distilling import Batch
    from compoff.fitting.report import SplitReport
    from compoff.wrapping import Wrapped

__all__ = ["Aim", "count_symbols", "local_gain", "measure", "symbols_of"]


@torch.no_grad()
def count_symbols(wrapped: Wrapped, split: str, batches: Iterable[Batch]) -> None:
    """Replace the learned prior by the frequencies that the fitted encoder really produces.

    Args:
        wrapped: The model.
        split: The split point.
        batches: What to count on.

    Examples:
        >>> import torch, compoff
        >>> from compoff.distilling import Batch
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)).eval()
        >>> count_symbols(model, "input", [Batch((torch.zeros(6, 32),))])
        >>> round(float(model.bottleneck("input").prior.tables().weights.max()) / 2**24, 2)  # (6 + ½) / (6 + 8 · ½)
        0.65
    """
    prior = wrapped.bottleneck(split).prior
    channels, num_centers = prior.logits.shape
    # One row a channel: symbol s of channel c is counted at c * num_centers + s.
    rows = torch.arange(channels, device=prior.logits.device).mul(num_centers).view(-1, 1)
    counts = torch.zeros(channels * num_centers, dtype=torch.int64, device=prior.logits.device)
    for batch in batches:
        symbols = symbols_of(wrapped, split, batch)
        places = symbols.reshape(len(symbols), channels, -1).long() + rows
        counts += torch.bincount(places.flatten(), minlength=len(counts))
    bottleneck = wrapped.bottleneck(split)
    expected = bottleneck.density.probabilities(num_centers) if isinstance(bottleneck, TransformBottleneck) else None
    prior.count(counts.view(channels, num_centers), expected)


@torch.no_grad()
def symbols_of(wrapped: Wrapped, split: str, batch: Batch) -> Tensor:
    """The symbols that the device would send for a batch.

    Args:
        wrapped: The model, its bottlenecks in eval mode.
        split: The split point.
        batch: The inputs.

    Returns:
        Symbols, uint8.

    Shapes:
        Result ``(batch, channels, *latent space)``.

    Examples:
        >>> import torch, compoff
        >>> from compoff.distilling import Batch
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)).eval()
        >>> symbols_of(model, "input", Batch((torch.randn(5, 32),))).shape
        torch.Size([5, 2])
    """
    bottleneck = wrapped.bottleneck(split)
    record = teacher_pass(wrapped.base, {split: wrapped.gate(split)}, wrapped.sites, batch, blocks=False)
    y = record.features[split]
    bottleneck.geometry.check(y)
    return bottleneck.encode(y.to(bottleneck.quantizer.centers.dtype))


class _Comparison:
    """Teacher against student over many batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)  # of the teacher, of its square, of the squared difference
        self._elements = 0
        self._agreed: list[Tensor] = []

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """Compare the outputs for one batch."""
        ours, theirs = teacher.detach().cpu().double(), student.detach().cpu().double()
        self._sums += torch.stack([ours.sum(), ours.square().sum(), (ours - theirs).square().sum()])
        self._elements += ours.numel()
        if teacher.dim() == 2 and teacher.shape[1] > 1:
            self._agreed.append(ours.argmax(1) == theirs.argmax(1))

    @property
    def agreement(self) -> float | None:
        """Share of samples with the same class; None where the output is no table of scores."""
        return float(torch.cat(self._agreed).double().mean()) if self._agreed else None

    @property
    def error(self) -> float:
        """Squared distance in units of the teacher's variance over all samples."""
        mean, square, distance = (float(value) / self._elements for value in self._sums)
        return distance / max(square - mean * mean, 1e-12)


@dataclass(frozen=True)
class Aim:
    """What the default quality is chosen by.

    Args:
        target_bytes: Mean length of a payload that it shall not exceed, in bytes.
        max_drop: Share of answers that it may change.

    Examples:
        >>> Aim(max_drop=0.01).choose([{"bytes": 50.0, "agreement": 0.95}, {"bytes": 90.0, "agreement": 0.995}])
        1
    """

    target_bytes: float | None = None
    max_drop: float | None = None

    def check(self) -> None:
        """Refuse aims that cannot be meant.

        Raises:
            FitError: A number is out of range, or both are given.
        """
        if self.target_bytes is not None and self.max_drop is not None:
            raise FitError(f"target_bytes is {self.target_bytes} and max_drop is {self.max_drop}; give one of them")
        if self.target_bytes is not None and not (math.isfinite(self.target_bytes) and self.target_bytes > 0):
            raise FitError(f"target_bytes is {self.target_bytes}; expected a number of bytes above 0")
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise FitError(f"max_drop is {self.max_drop}; expected a share between 0 and 1, such as 0.01")

    def choose(self, curve: list[dict[str, Any]]) -> int:
        """The quality that keeps to the aim.

        Args:
            curve: Points from the fewest bytes to the most, with ``bytes`` and ``agreement``.

        Returns:
            Index of the best one within `target_bytes` (with 2 % of tolerance), of the cheapest one within `max_drop`,
            or without an aim of the last. Where none keeps to the aim, the nearest.
        """
        if self.target_bytes is not None:
            within = [index for index, point in enumerate(curve) if self.met(point)]
            return within[-1] if within else 0
        if self.max_drop is not None:
            return next((index for index, point in enumerate(curve) if self.met(point)), len(curve) - 1)
        return len(curve) - 1

    def met(self, point: dict[str, Any]) -> bool:
        """Whether a quality keeps to the aim.

        Args:
            point: A point of the curve.

        Returns:
            Whether it does; where the output is no table of scores, no share of changed answers is known to be small.
        """
        if self.target_bytes is not None:
            return point["bytes"] <= 1.02 * self.target_bytes
        return self.max_drop is None or (point["agreement"] is not None and 1 - point["agreement"] <= self.max_drop)


def measure(wrapped: Wrapped, split: str, batches: list[Batch], report: SplitReport, aim: Aim | None = None) -> int:
    """Fill in what a report says of a fitted bottleneck.

    Args:
        wrapped: The model, its bottlenecks in eval mode.
        split: The split point.
        batches: Inputs to measure on.
        report: The report to fill in.
        aim: What the default quality is chosen by.

    Returns:
        Number of samples measured.

    Raises:
        FitError: The model's output holds no floating-point tensor to compare.

    Examples:
        >>> import torch, compoff
        >>> from compoff.distilling import Batch
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)).eval()
        >>> report = compoff.SplitReport()
        >>> measure(model, "input", [Batch((torch.randn(6, 32),))], report), report.raw_bytes
        (6, 128)
    """
    bottleneck = wrapped.bottleneck(split)
    rates = [_Rate(bottleneck, quality) for quality in bottleneck.qualities()]
    gate, samples = wrapped.gate(split), 0
    with torch.no_grad():
        for batch in batches:
            y = teacher_pass(wrapped.base, {split: gate}, wrapped.sites, batch, blocks=False).features[split]
            teacher = float_tensors(wrapped(*batch.args, **batch.kwargs))
            if not teacher:
                raise FitError("the model returns no floating-point tensor, so there is nothing to compare")
            symbols = bottleneck.encode(y.to(bottleneck.quantizer.centers.dtype))
            for rate in rates:
                y_hat = rate.add(symbols)
                gate.replace = lambda fresh, y_hat=y_hat: y_hat.to(fresh.dtype)
                try:
                    student = float_tensors(wrapped.base(*batch.args, **batch.kwargs))
                finally:
                    gate.replace = None
                rate.comparison.add(teacher[0], student[0])
            samples += len(symbols)
    report.curve = [rate.point() for rate in rates]
    report.quality = (aim or Aim()).choose(report.curve)
    chosen = report.curve[report.quality]
    report.aim_met = (aim or Aim()).met(chosen)
    report.bytes, report.agreement, report.output_error = (
        chosen[key] for key in ("bytes", "agreement", "output_error")
    )
    report.ceiling_bytes = rates[report.quality].coder.max_bytes(1)
    report.raw_bytes = bottleneck.geometry.raw_bytes
    _guarantee(wrapped, split, batches[0], report)
    return samples


class _Rate:
    """Bytes and answers at one quality, over many batches."""

    def __init__(self, bottleneck: Bottleneck, quality: Quality) -> None:
        self.bottleneck = bottleneck
        self.quality = quality
        tables = (
            coarse_tables(bottleneck.prior.tables(), quality.step) if quality.step > 1 else bottleneck.prior.tables()
        )
        shape = (quality.channels, *bottleneck.latent_shape[1:])
        self.coder = PayloadFormat(bytes(32), [Code(SymbolTables(tables.weights[: quality.channels]), shape)])
        self.lengths: list[int] = []
        self.comparison = _Comparison()

    def add(self, symbols: Tensor) -> Tensor:
        """Code the symbols of a batch, and decode what the edge would have of them."""
        sent = symbols[:, : self.quality.channels].cpu().numpy()
        if self.quality.step > 1:
            sent = coarsen(sent, self.bottleneck.num_centers, self.quality.step)
        self.lengths += [len(self.coder.encode([sample[None]])) for sample in sent]
        return self.bottleneck.decode(self.bottleneck.received(symbols, self.quality))

    def point(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "channels": self.quality.channels,
            "step": self.quality.step,
            "bytes": sum(self.lengths) / len(self.lengths),
            "agreement": self.comparison.agreement,
            "output_error": self.comparison.error,
        }


def _guarantee(wrapped: Wrapped, split: str, batch: Batch, report: SplitReport) -> None:
    """The terms of the paper's recovery guarantee."""
    bottleneck = wrapped.bottleneck(split)
    report.semi_orthogonality_error = float(bottleneck.semi_orthogonality_error().detach())
    report.lipschitz_bound = bottleneck.decoder.lipschitz_bound if isinstance(bottleneck.decoder, Decoder) else None
    report.encoder_macs = bottleneck.encoder.macs if isinstance(bottleneck.encoder, Encoder) else None
    report.local_gain = local_gain(bottleneck, symbols_of(wrapped, split, batch)[:4])


def local_gain(bottleneck: Bottleneck, symbols: Tensor, iterations: int = 8) -> float:
    """Largest gain of the decoder around given symbols: the top singular value of its Jacobian, by power iteration.

    Args:
        bottleneck: The bottleneck, in eval mode.
        symbols: Symbols of a few samples.
        iterations: Number of power iterations.

    Returns:
        The gain, output distance over input distance; a lower bound of the Lipschitz constant.

    Examples:
        >>> import torch
        >>> from compoff.codec import Bottleneck, Geometry
        >>> bottleneck = Bottleneck(Geometry((4, 8)), 2).eval()
        >>> local_gain(bottleneck, torch.zeros(1, 2, 2, dtype=torch.uint8)) > 0
        True

    Source: this project (Eq. 8 at the data).
    """
    z_hat = bottleneck.quantizer.dequantize(symbols).detach()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(z_hat.shape, generator=generator).to(z_hat)
    gain = 0.0

    def decode(value: Tensor) -> Any:
        return bottleneck.decoder(value)

    for _ in range(iterations):
        direction = direction / direction.square().sum().sqrt()
        moved = cast("Tensor", torch.autograd.functional.jvp(decode, z_hat, direction)[1])
        gain = float(moved.square().sum().sqrt())
        if gain == 0.0:
            break
        direction = cast("Tensor", torch.autograd.functional.vjp(decode, z_hat, moved)[1])
    return gain
