"""After the last step: count the symbols, settle the norms, and measure bytes and agreement as a user would meet them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compoff.codec import Decoder, Encoder
from compoff.coding import PayloadFormat
from compoff.distilling import float_tensors
from compoff.losses import relative_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from compoff.codec import Bottleneck
    from compoff.distilling import Batch
    from compoff.fitting.report import SplitReport
    from compoff.wrapping import Wrapped

__all__ = ["count_symbols", "measure"]


@torch.no_grad()
def count_symbols(wrapped: Wrapped, split: str, batches: Iterable[Batch]) -> None:
    """Replace the learned prior by the frequencies that the fitted encoder really produces.

    Args:
        wrapped: The model.
        split: The split point.
        batches: What to count on.
    """
    bottleneck = wrapped.bottleneck(split)
    counts = torch.zeros(bottleneck.latent_shape[0], bottleneck.num_centers, dtype=torch.int64)
    for batch in batches:
        symbols = symbols_of(wrapped, split, batch).flatten(2) if bottleneck.geometry.space else symbols_of(
            wrapped, split, batch
        ).unsqueeze(2)
        for channel in range(symbols.shape[1]):
            counts[channel] += torch.bincount(symbols[:, channel].flatten().long().cpu(), minlength=counts.shape[1])
    bottleneck.prior.count(counts.to(bottleneck.prior.logits.device))


@torch.no_grad()
def symbols_of(wrapped: Wrapped, split: str, batch: Batch) -> Tensor:
    """The symbols that the device would send for a batch.

    Args:
        wrapped: The model.
        split: The split point.
        batch: The inputs.

    Returns:
        Symbols, uint8.
    """
    gate = wrapped.gate(split)
    kept: list[Tensor] = []

    def keep(y: Tensor) -> Tensor:
        kept.append(gate.bottleneck.encode(y.to(gate.bottleneck.quantizer.centers.dtype)))
        return y

    gate.replace = keep
    try:
        wrapped.base(*batch.args, **batch.kwargs)
    finally:
        gate.replace = None
    return kept[0]


def measure(wrapped: Wrapped, split: str, batches: list[Batch], report: SplitReport) -> int:
    """Fill in what a report says of a fitted bottleneck.

    Args:
        wrapped: The model, its bottlenecks in eval mode.
        split: The split point.
        batches: Inputs to measure on.
        report: The report to fill in.

    Returns:
        Number of samples measured.
    """
    bottleneck = wrapped.bottleneck(split)
    coder = PayloadFormat(bytes(32), bottleneck.prior.tables(), bottleneck.latent_shape)
    lengths: list[int] = []
    agreed: list[Tensor] = []
    errors: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            symbols = symbols_of(wrapped, split, batch).cpu().numpy()
            lengths += [len(coder.encode(sample[None])) for sample in symbols]
            teacher = float_tensors(wrapped(*batch.args, **batch.kwargs))
            with wrapped.at(split):
                student = float_tensors(wrapped(*batch.args, **batch.kwargs))
            errors.append(relative_error(teacher[0], student[0]).cpu())
            if teacher[0].dim() == 2 and teacher[0].shape[1] > 1:
                agreed.append((teacher[0].argmax(1) == student[0].argmax(1)).cpu())
    report.bytes = sum(lengths) / len(lengths)
    report.ceiling_bytes = coder.max_bytes(1)
    report.raw_bytes = bottleneck.geometry.raw_bytes
    report.agreement = float(torch.cat(agreed).float().mean()) if agreed else None
    report.output_error = float(torch.stack(errors).mean())
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

    Example:
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
        direction = direction / direction.norm()
        _, moved = torch.autograd.functional.jvp(decode, z_hat, direction)
        gain = float(moved.norm())
        if gain == 0.0:
            break
        _, direction = torch.autograd.functional.vjp(decode, z_hat, moved)
    return gain
