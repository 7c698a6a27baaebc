"""After the last step: count the symbols, and measure bytes and agreement as a user would meet them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from compoff.answering import answers, student_output, telling
from compoff.batch import Batch
from compoff.codec import Decoder, Encoder, TransformBottleneck, code_of
from compoff.coding import PayloadFormat
from compoff.errors import FitError
from compoff.fitting.agreeing import require_whole, shares_of
from compoff.fitting.aim import Aim
from compoff.fitting.batches import not_finite
from compoff.fitting.comparison import Comparison, is_scores
from compoff.fitting.contexts import SomeSamples, fit_contexts
from compoff.fitting.overhead import sides_at, sides_of
from compoff.spare import spare_buffers
from compoff.teaching import float_tensors, teacher_pass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from compoff.codec import Bottleneck
    from compoff.fitting.agreeing import Agreement
    from compoff.fitting.report import SplitReport
    from compoff.wrapping import Wrapped

__all__ = ["check_output", "count_symbols", "features_of", "local_gain", "measure", "symbols_of", "telling_of"]

_GAIN_NUMBERS = 2**20  # of a feature, or of up to four, at which the largest gain is sought


@torch.no_grad()
def count_symbols(wrapped: Wrapped, split: str, batches: Iterable[Batch]) -> None:
    """Replace the learned prior by the frequencies that the fitted encoder really produces, and fit context models.

    Args:
        wrapped: The model.
        split: The split point.
        batches: What to count on.

    Examples:
        >>> import torch, compoff
        >>> from compoff.batch import Batch
        >>> net, x = torch.nn.Linear(32, 4), torch.zeros(2, 32)
        >>> model = compoff.wrap(net, "input", example_input=x, codec="deepcod").eval()
        >>> count_symbols(model, "input", [Batch((torch.zeros(6, 32),))])
        >>> round(float(model.bottleneck("input").prior.tables().weights.max()) / 2**24, 2)  # (6 + ½) / (6 + 8 · ½)
        0.65
    """
    bottlenecks = wrapped.bottlenecks_at(split)
    priors = [bottleneck.prior for bottleneck in bottlenecks]
    # One row a channel: symbol s of channel c is counted at c * num_centers + s.
    counts = [torch.zeros(prior.logits.numel(), dtype=torch.int64, device=prior.logits.device) for prior in priors]
    # The paper's centers are no numbers, and its codec stays the paper's: no context models.
    some = [SomeSamples() if isinstance(bottleneck, TransformBottleneck) else None for bottleneck in bottlenecks]
    for batch in batches:
        found = symbols_of(wrapped, split, batch)
        for symbols, prior, count, kept in zip(found, priors, counts, some, strict=True):
            if kept is not None:
                kept.add(symbols)
            channels, num_centers = prior.logits.shape
            rows = torch.arange(channels, device=count.device).mul(num_centers).view(-1, 1)
            places = symbols.reshape(len(symbols), channels, -1).long() + rows
            count += torch.bincount(places.flatten(), minlength=len(count))
    for bottleneck, count, kept in zip(bottlenecks, counts, some, strict=True):
        transform = isinstance(bottleneck, TransformBottleneck)
        expected = bottleneck.density.probabilities(bottleneck.num_centers) if transform else None
        bottleneck.prior.count(count.view(bottleneck.prior.logits.shape), expected)
        bottleneck.prior.contexts = ()
        if kept is not None and kept.num_samples:
            bottleneck.prior.contexts = fit_contexts(kept.symbols(), code_of(bottleneck))


def features_of(wrapped: Wrapped, split: str, batch: Batch) -> list[Tensor]:
    """The features that cross a split point for a batch, once they are known to fit their bottlenecks.

    Args:
        wrapped: The model.
        split: The split point.
        batch: The inputs.

    Returns:
        The features, in the codec's layout.

    Raises:
        FeatureError: The model refuses the batch, or a feature has another shape than its bottleneck was made for.
    """
    gate = wrapped.gate(split)
    features = teacher_pass(wrapped.base, {split: gate}, wrapped.sites, batch, blocks=False).features[split]
    for bottleneck, y in zip(gate.bottlenecks, features, strict=True):
        bottleneck.geometry.check(y)
    return features


def telling_of(wrapped: Wrapped, split: str, batch: Batch, teacher: list[Tensor]) -> int:
    """Which tensor of the output stands for the answer, as `compoff.distilling.telling` says.

    Args:
        wrapped: The model.
        split: The split point.
        batch: The inputs.
        teacher: Floating-point tensors of the model's output for them.

    Returns:
        Its place.
    """
    if len(teacher) < 2:
        return 0
    return telling(wrapped.base, wrapped.gate(split), batch, features_of(wrapped, split, batch), teacher)


@torch.no_grad()
def symbols_of(wrapped: Wrapped, split: str, batch: Batch) -> list[Tensor]:
    """The symbols that the device would send for a batch.

    Args:
        wrapped: The model, its bottlenecks in eval mode.
        split: The split point.
        batch: The inputs.

    Returns:
        Symbols of each code, uint8.

    Raises:
        FitError: A value is not finite, so that no symbol stands for it.

    Shapes:
        Each ``(batch, channels, *latent space)``.

    Examples:
        >>> import torch, compoff
        >>> from compoff.batch import Batch
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)).eval()
        >>> symbols_of(model, "input", Batch((torch.randn(5, 32),)))[0].shape
        torch.Size([5, 26])
    """
    symbols: list[Tensor] = []
    for bottleneck, y in zip(wrapped.gate(split).bottlenecks, features_of(wrapped, split, batch), strict=True):
        found, finite = bottleneck.encode_checked(y.to(bottleneck.quantizer.centers.dtype))
        if not bool(finite.all()):
            raise not_finite(batch)
        symbols.append(found)
    return symbols


def check_output(wrapped: Wrapped, aim: Aim, agreement: Agreement | None = None) -> None:
    """Refuse, before a long fit, an aim that the model's output says nothing about.

    Args:
        wrapped: The model, its shapes known.
        aim: The aim.
        agreement: What counts as an answer that is kept; None for the same class.

    Raises:
        FitError: `max_drop` was given, and the output is no table of scores; or `agreement` gives no shares, or less
            than 1 for an answer beside itself.
    """
    if aim.max_drop is None and agreement is None:
        return
    example = wrapped.example_inputs()
    batch = Batch(example.args, example.keywords)
    with torch.no_grad(), spare_buffers(wrapped.base):
        answer = batch.call(wrapped.base)
        if agreement is not None:
            require_whole(agreement, answer, batch.size)
            return
    outputs = float_tensors(answer)
    for split in wrapped.split_points if outputs else ():
        scores = outputs[telling_of(wrapped, split, batch, outputs)]
        if not is_scores(scores):
            raise FitError(
                "max_drop counts answers that change, which the first tensor that the model returns and that "
                f"depends on '{split}', {tuple(scores.shape)} for two samples, does not show; expected scores, "
                "(batch, classes): say with agreement= what counts, or give target_bytes instead"
            )


def measure(
    wrapped: Wrapped,
    split: str,
    batches: Iterable[Batch],
    report: SplitReport,
    aim: Aim | None = None,
    agreement: Agreement | None = None,
) -> int:
    """Fill in what a report says of a fitted bottleneck.

    Args:
        wrapped: The model, its bottlenecks in eval mode.
        split: The split point.
        batches: Inputs to measure on.
        report: The report to fill in.
        aim: What the default quality is chosen by.
        agreement: What counts as an answer that is kept; None for the same class.

    Returns:
        Number of samples measured.

    Raises:
        FitError: The model's output holds no floating-point tensor to compare, or `agreement` gives no shares.

    Examples:
        >>> import torch, compoff
        >>> from compoff.batch import Batch
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)).eval()
        >>> report = compoff.SplitReport()
        >>> measure(model, "input", [Batch((torch.randn(6, 32),))], report), report.raw_bytes
        (6, 128)
    """
    bottlenecks, gate = wrapped.bottlenecks_at(split), wrapped.gate(split)
    kept = sides_of(wrapped, split)
    coder = PayloadFormat(bytes(32), list(map(code_of, bottlenecks)), kept)
    rates, samples = [_Rate(bottlenecks, index, coder) for index in range(coder.num_qualities)], 0
    first: Batch | None = None
    which = 0
    with torch.no_grad():
        for batch in batches:
            symbols = symbols_of(wrapped, split, batch)
            sides = [side.cpu().numpy() for side in gate.sides(len(kept))]
            with spare_buffers(wrapped.base):
                answer = batch.call(wrapped)
            teacher = float_tensors(answer)
            if not teacher:
                raise FitError("the model returns no floating-point tensor, so there is nothing to compare")
            if first is None:
                first, which = batch.copy(), telling_of(wrapped, split, batch, teacher)
            for rate in rates:
                restored = rate.add(symbols, sides)
                output = student_output(wrapped.base, gate, batch, restored)
                place, given = wrapped.sites[split], float_tensors(output)
                rate.comparison.add(*answers(wrapped.base, gate, place, batch, restored, given, teacher, which))
                if agreement is not None:
                    rate.shares.append(shares_of(agreement, output, answer, batch.size))
            samples += len(symbols[0])
    if first is None:
        raise FitError("the batches are used up, so there is nothing to measure on; give some that last")
    report.curve = [rate.point() for rate in rates]
    wanted = aim or Aim()
    report.quality = wanted.choose(split, report.curve)
    chosen = report.curve[report.quality]
    report.aim_met = wanted.met(split, chosen) if wanted.asked(split) else None
    report.bytes, report.agreement, report.output_error, report.encoder_macs = (
        chosen[key] for key in ("bytes", "agreement", "output_error", "encoder_macs")
    )
    report.ceiling_bytes = chosen["ceiling_bytes"]
    report.raw_bytes = wrapped.sites[split].raw_bytes
    _guarantee(wrapped, split, first, report)
    return samples


class _Rate:
    """Bytes and answers at one quality, over many batches."""

    def __init__(self, bottlenecks: list[Bottleneck], index: int, coder: PayloadFormat) -> None:
        self.bottlenecks = bottlenecks
        self.index = index
        self.qualities = [bottleneck.qualities()[index] for bottleneck in bottlenecks]
        self.coder = coder
        self.lengths: list[int] = []
        self.static_lengths: list[int] = []  # without context models; none where there are none
        self.comparison = Comparison()
        self.shares: list[Tensor] = []  # of each batch what a user's function says is kept

    def add(self, symbols: list[Tensor], sides: list[NDArray[Any]]) -> list[Tensor]:
        """Code the symbols of a batch, and decode what the edge would have of them."""
        sent = [code.sent(part.cpu().numpy(), self.index) for code, part in zip(self.coder.codes, symbols, strict=True)]
        for place in range(len(sent[0])):
            here = slice(place, place + 1)
            one, beside = [part[here] for part in sent], sides_at(place, sides, self.coder.sides)
            self.lengths.append(len(self.coder.encode(one, beside, quality=self.index)))
            if any(code.contexts for code in self.coder.codes):
                static = self.coder.encode(one, beside, quality=self.index, coding="static")
                self.static_lengths.append(len(static))
        return [
            bottleneck.decode(bottleneck.received(part, quality))
            for bottleneck, quality, part in zip(self.bottlenecks, self.qualities, symbols, strict=True)
        ]

    def point(self) -> dict[str, Any]:
        """What was measured."""
        return {
            "channels": [quality.channels for quality in self.qualities],
            "step": self.qualities[0].step,
            "bytes": sum(self.lengths) / len(self.lengths),
            **({"static_bytes": sum(self.static_lengths) / len(self.lengths)} if self.static_lengths else {}),
            "ceiling_bytes": self.coder.max_bytes(1, self.index),
            "agreement": float(torch.cat(self.shares).mean()) if self.shares else self.comparison.agreement,
            "output_error": self.comparison.error,
            "encoder_macs": self._encoder_macs(),
        }

    def _encoder_macs(self) -> int | None:
        """Multiply-accumulates of the channels that are sent; None where an encoder is not ours."""
        macs = [
            one.encoder.macs_of(quality.channels)
            for one, quality in zip(self.bottlenecks, self.qualities, strict=True)
            if isinstance(one.encoder, Encoder)
        ]
        return sum(macs) if len(macs) == len(self.bottlenecks) else None


def _guarantee(wrapped: Wrapped, split: str, batch: Batch, report: SplitReport) -> None:
    """The terms of the paper's recovery guarantee."""
    bottlenecks, symbols = wrapped.bottlenecks_at(split), symbols_of(wrapped, split, batch)
    bounds = [one.decoder.lipschitz_bound for one in bottlenecks if isinstance(one.decoder, Decoder)]
    report.semi_orthogonality_error = max(float(one.semi_orthogonality_error(precise=True)) for one in bottlenecks)
    report.lipschitz_bound = max(bounds) if len(bounds) == len(bottlenecks) else None
    adapter = bottlenecks[0].adapter
    report.adapter_bytes = adapter.bytes if adapter is not None else 0
    report.local_gain = max(local_gain(one, _few(one, part)) for one, part in zip(bottlenecks, symbols, strict=True))


def _few(bottleneck: Bottleneck, symbols: Tensor) -> Tensor:
    """The symbols of up to four samples, fewer where features are large: each costs about a hundred decodings."""
    numbers = math.prod(bottleneck.geometry.shape)
    return symbols[: max(1, min(4, _GAIN_NUMBERS // numbers))]


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
    generator = torch.Generator("cpu").manual_seed(0)
    direction = torch.randn(z_hat.shape, generator=generator, dtype=torch.float32, device="cpu").to(z_hat)
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
