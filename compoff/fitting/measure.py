"""After the last step: count the symbols, and measure bytes and agreement as a user would meet them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from compoff.codec import Decoder, Encoder
from compoff.coding import Code, PayloadFormat
from compoff.distilling import float_tensors, teacher_pass
from compoff.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compoff.codec import Bottleneck
    from compoff.distilling import Batch
    from compoff.fitting.report import SplitReport
    from compoff.wrapping import Wrapped

__all__ = ["count_symbols", "local_gain", "measure", "symbols_of"]


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
    prior.count(counts.view(channels, num_centers))


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


def measure(wrapped: Wrapped, split: str, batches: list[Batch], report: SplitReport) -> int:
    """Fill in what a report says of a fitted bottleneck.

    Args:
        wrapped: The model, its bottlenecks in eval mode.
        split: The split point.
        batches: Inputs to measure on.
        report: The report to fill in.

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
    coder = PayloadFormat(bytes(32), [Code(bottleneck.prior.tables(), bottleneck.latent_shape)])
    lengths: list[int] = []
    comparison = _Comparison()
    with torch.no_grad():
        for batch in batches:
            symbols = symbols_of(wrapped, split, batch).cpu().numpy()
            lengths += [len(coder.encode([sample[None]])) for sample in symbols]
            teacher = float_tensors(wrapped(*batch.args, **batch.kwargs))
            with wrapped.at(split):
                student = float_tensors(wrapped(*batch.args, **batch.kwargs))
            if not teacher:
                raise FitError("the model returns no floating-point tensor, so there is nothing to compare")
            comparison.add(teacher[0], student[0])
    report.bytes = sum(lengths) / len(lengths)
    report.ceiling_bytes = coder.max_bytes(1)
    report.raw_bytes = bottleneck.geometry.raw_bytes
    report.agreement = comparison.agreement
    report.output_error = comparison.error
    _guarantee(wrapped, split, batches[0], report)
    return len(lengths)


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
