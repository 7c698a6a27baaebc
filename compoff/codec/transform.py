"""The transform codec: the directions that count, uniform steps, and a decoder that starts as the linear inverse.

One fit serves every rate: each sample of a batch is rounded to a step of its own, drawn from a ladder. Knows no model:
`fitting` brings the directions and the step.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compoff.checks import check_whole
from compoff.codec.bottleneck import Bottleneck, BottleneckOutput, CodecFactory, Quality
from compoff.codec.density import Density
from compoff.codec.directions import check_tile
from compoff.codec.encoder import Encoder
from compoff.codec.limits import check_lr, check_quality
from compoff.codec.precision import full_precision
from compoff.codec.refiner import RefiningDecoder
from compoff.codec.uniform import UniformQuantizer, coarsen
from compoff.codec.waves import described_by, rides_waves
from compoff.errors import FeatureError, FitError

if TYPE_CHECKING:
    from compoff.codec.directions import Directions
    from compoff.codec.geometry import Geometry

__all__ = ["LADDER", "TransformBottleneck", "check_levels"]

LADDER = (3, 5, 7, 9, 11, 15, 21)
"""The steps that one fit is for, in units of the finest; odd, since halves of even ones would all go up. It is aimed
with the one in the middle."""
_WIDE = 1.25  # ratio of neighboring steps of the ladder above which the one between them is served, too
# Halves of even steps go up; at 4 those are a quarter of all values, which costs more than the finer step gains.
_LEAST_EVEN = 6
_FORMER_LADDER = (1, 2, 3, 4, 5, 7, 9)  # of what was saved before a ladder was saved with it
_SILENT = 0.05  # a channel that is zero but for this share of its values costs as many bits as it is worth
_DEVIATIONS = 4.0  # standard deviations of a channel that its levels hold at least
# Learning rates beside the networks', relative to the size of the weights where the start already is nearly right.
_LINEAR_LR, _GAIN_LR, _DENSITY_LR, _ADAPTER_LR = 2.0, 5.0, 10.0, 3.0
# Of what the latent is measured from, in steps. The mean is not where a channel is cheapest, and no weight moves it:
# the feature comes around its own means.
_OFFSET_LR = 150.0


class TransformBottleneck(Bottleneck):
    """Compress a feature as image coders do, in the directions that the network depends on.

    Args:
        geometry: Layout of the feature.
        channels: Number of channels of the latent, at most the elements of a tile; most important first.
        num_centers: Number of levels, odd, 43 to 255.
        decoder: Factory of the user's own decoder; None for ours.

    Shapes:
        y and result ``(batch, *geometry.shape)``; symbols ``(batch, channels, *geometry.latent_space)``, uint8.

    Raises:
        FeatureError: A size is out of range, or the own decoder gives another shape than was asked of it.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry, TileMoments, TransformBottleneck
        >>> bottleneck, y = TransformBottleneck(Geometry((3, 16), stride=4), channels=12).eval(), torch.randn(64, 3, 16)
        >>> moments = TileMoments(bottleneck.geometry)
        >>> moments.add(y, torch.randn(64, 3, 16))
        >>> bottleneck.start(moments.directions(12), 0.1, y)
        >>> float((bottleneck(y) - y).detach().square().mean()) < 0.1**2
        True

    Source: this project; DeepCOD (SenSys 2020), Sec. 3.2.3, for the encoder of one layer.
    """

    ladder: Tensor
    """The steps that it is fitted for."""
    served: Tensor
    """The steps of its qualities: the ladder, and what lies between where that would leave rates far apart."""
    quality: Tensor
    """Index of the quality that a fit has chosen, kept with the weights; -1 for the last."""
    reference_bits: Tensor
    """Bits per sample at the reference step, at the start."""
    encoder: Encoder
    quantizer: UniformQuantizer

    def __init__(
        self,
        geometry: Geometry,
        channels: int,
        num_centers: int = 255,
        *,
        decoder: CodecFactory | None = None,
    ) -> None:
        check_whole("channels", channels)
        check_levels(num_centers)
        check_tile(geometry)
        most = described_by(geometry)
        if channels > most:
            raise FeatureError(
                f"channels is {channels}, but a tile of {geometry.tile} elements of this feature is described by "
                f"{most} numbers; give at most that many"
            )
        super().__init__(geometry, channels, num_centers, decoder=decoder)
        self.prior.requires_grad_(False)  # counted after the fit; the density learns
        self.density = Density(channels)
        self.folded = False  # whether the encoder gives what the quantizer only rounds
        self.register_buffer("reference_bits", torch.ones(()))
        self.register_buffer("ladder", torch.tensor(LADDER))
        self.register_buffer("served", torch.tensor(_served(LADDER)))
        self.register_buffer("quality", torch.tensor(-1))
        self.register_load_state_dict_pre_hook(_take_former)

    def _make_encoder(self, channels: int) -> Encoder:
        described = described_by(self.geometry) if rides_waves(self.geometry) else None
        return Encoder(self.geometry, channels, described, standardized=True)

    def _make_quantizer(self, channels: int, num_centers: int) -> UniformQuantizer:
        return UniformQuantizer(channels, num_centers)

    def _make_decoder(self, channels: int) -> nn.Module:
        return RefiningDecoder(self.geometry, channels)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters with the learning rate of each, as an optimizer takes them.

        Args:
            lr: Learning rate of the decoder's networks.

        Returns:
            Groups with ``params`` and ``lr``: what starts from the directions moves in proportion to its size.

        Raises:
            FitError: `lr` is negative or not finite.
        """
        check_lr(lr)
        quantizer = self.quantizer
        decoder = self.decoder if isinstance(self.decoder, RefiningDecoder) else None
        started = self.encoder.factors + ([] if decoder is None else decoder.factors)
        groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": _LINEAR_LR * lr * max(float(parameter.detach().square().mean().sqrt()), 1e-8)}
            for parameter in started
        ]
        groups.append({"params": [quantizer.offset], "lr": _OFFSET_LR * lr})
        if decoder is not None:
            groups.append({"params": [decoder.mean], "lr": _LINEAR_LR * lr})  # of the size of one already
        groups.append({"params": [quantizer.log_gain], "lr": _GAIN_LR * lr})
        groups.append({"params": list(self.density.parameters()), "lr": _DENSITY_LR * lr})
        if self.adapter is not None:
            groups.append({"params": list(self.adapter.parameters()), "lr": _ADAPTER_LR * lr})
        held = {id(parameter) for group in groups for parameter in group["params"]}
        rest = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in held]
        groups.append({"params": rest, "lr": lr})
        return groups

    def calibrate(self, y: Tensor) -> None:
        """Refuse to start from one batch: the directions take more than a batch shows.

        Args:
            y: Features of one batch.

        Raises:
            FitError: Always.
        """
        del y
        told = "this bottleneck has no directions yet; compoff.fit finds them by itself, a loop of your own calls "
        raise FitError(f"{told}compoff.calibrate(model, batches) first")

    @full_precision
    @torch.no_grad()
    def start(self, directions: Directions, step: float, y: Tensor) -> None:
        """Become a linear codec at a step.

        Args:
            directions: What the encoder shall measure.
            step: The finest step, in the unit of the directions.
            y: Features of one batch.
        """
        self.encoder.start(directions, step)
        self.quantizer.offset.copy_(directions.offset / step)
        # A channel whose values would leave the levels gets coarser steps.
        deviation = directions.deviation.to(self.encoder.weight) / step
        gain = (self.num_centers // 2 / (_DEVIATIONS * deviation.clamp_min(1e-12))).clamp_max(1.0)
        self.quantizer.log_gain.copy_(gain.log())
        if isinstance(self.decoder, RefiningDecoder):
            self.decoder.start(directions, step, y)
        self.density.start(deviation * gain)
        reference = self.reference_step
        rounded = self._at_step(self.quantizer.scaled(self.encoder(y)), reference)
        self.reference_bits.copy_(self.density.bits(rounded, float(reference)).mean().clamp_min(1.0))
        self.calibrated.fill_(True)

    @torch.no_grad()
    def qualities(self) -> tuple[Quality, ...]:
        """The rates that this codec serves, from the fewest bytes to the most.

        Returns:
            One quality a step that is served, each with the channels that are not all but silent at it.
        """
        steps = [int(step) for step in self.served.flip(0).cpu()]
        return tuple(Quality(int(self._sent(step).sum()), step) for step in steps)

    @property
    def chosen(self) -> int:
        """Which of its qualities is sent where none is asked for."""
        chosen, last = int(self.quality), len(self.served) - 1
        return chosen if 0 <= chosen < last else last

    def choose(self, quality: int) -> None:
        """Settle which quality is sent where none is asked for.

        Args:
            quality: Its index in `qualities`.

        Raises:
            FeatureError: There is no such quality.
        """
        self.quality.fill_(check_quality(quality, len(self.served)))

    @property
    def reference_step(self) -> int:
        """The step that a fit is aimed with."""
        return int(self.ladder[len(self.ladder) // 2])

    def _sent(self, step: Tensor | int) -> Tensor:
        """Which channels are sent at a step: all up to the last that is not all but silent; at least the first."""
        step = step.cpu() if isinstance(step, Tensor) else step
        values = self.quantizer.centers.cpu().double()  # where float64 is
        spoken = (self.prior.probabilities().cpu().double() * (coarsen(values, step) != 0)).sum(1) > _SILENT
        return (spoken.flip(0).cumsum(0).flip(0) > 0) | (torch.arange(len(spoken), device="cpu") == 0)

    def _restored(self, symbols: Tensor, quality: int | None) -> Tensor:
        # What is chosen stays a tensor: a compiled model need not stop to look.
        index = self.quality.clamp(-1, len(self.served) - 1) if quality is None else quality
        step = self.served.flip(0)[index]
        sent = self._sent(step).to(symbols.device).view(-1, *(1,) * (len(self.latent_shape) - 1))
        return self.decoder(self.quantizer.restored(self._coarse(symbols, step) * sent))

    def _scaled(self, y: Tensor) -> Tensor:
        """What is only rounded to symbols: the encoder's layer scales, too."""
        if self.folded:
            return self.encoder(y)
        return self.encoder.scaled(y, self.quantizer.gain, self.quantizer.bias)

    def fold(self) -> None:
        """Settle for inference, in place: gain and offset of the quantizer become the encoder's."""
        super().fold()
        if isinstance(self.decoder, RefiningDecoder):
            self.decoder.fold()
        if not self.folded:
            self.encoder.fold(self.quantizer.gain, self.quantizer.bias)
            self.folded = True

    def received(self, symbols: Tensor, quality: Quality) -> Tensor:
        """The symbols that the edge decodes where a quality was sent: multiples of its step, zero in other channels.

        Args:
            symbols: All symbols, as `encode` gives them.
            quality: What is sent of them.

        Returns:
            Symbols of the same shape, for `decode`.
        """
        values = self._coarse(symbols, quality.step)
        values[:, quality.channels :] = 0
        return (values + self.num_centers // 2).to(torch.uint8)

    def _coarse(self, symbols: Tensor, step: Tensor | int) -> Tensor:
        half = self.num_centers // 2
        return coarsen(symbols.to(self.quantizer.centers.dtype) - half, step).clamp(-half, half)

    @full_precision
    def decode_at(self, y: Tensor, step: int) -> Tensor:
        """Compress and restore at one step.

        Args:
            y: The feature.
            step: The step, in units of the finest.

        Returns:
            The restored feature.
        """
        return self.decoder(self.quantizer.restored(self.values_at(y, step)))

    @full_precision
    def values_at(self, y: Tensor, step: int) -> Tensor:
        """What travels at one step.

        Args:
            y: The feature.
            step: The step, in units of the finest.

        Returns:
            Whole numbers of finest steps, multiples of `step`.

        Shapes:
            Result ``(batch, *latent_shape)``.
        """
        return self._at_step(self.quantizer.scaled(self.encoder(y)), step)

    def _at_step(self, scaled: Tensor, step: Tensor | int) -> Tensor:
        half = self.num_centers // 2
        return coarsen(self.quantizer.rounded(scaled), step).clamp(-half, half)

    @full_precision
    def run(self, y: Tensor) -> BottleneckOutput:
        """Compress and restore, each sample at a step of its own; at the finest step in eval mode.

        Args:
            y: The feature.

        Returns:
            Feature, restored feature and rates (as a share of the start's bits), differentiable in training mode. A
            sample at a coarser step harms more and costs less; its bits are weighed as the square of its step, which is
            what a bit is worth there, and both by the inverse of the step.
        """
        choices = (self.ladder if self.training else self.ladder[:1]).to(y.dtype)
        steps = choices[torch.randint(len(choices), (len(y),), device=y.device)]
        wide = steps.view(-1, *(1,) * (len(self.latent_shape)))
        scaled = self.quantizer.scaled(self.encoder(y))
        values = self._at_step(scaled.detach(), wide)
        if not self.training:
            return self._output(y, values, values, steps)
        with torch.no_grad():
            reference = self.ladder[len(self.ladder) // 2]  # not read: a GPU would be waited for
            bits = self.density.bits(self._at_step(scaled, reference), reference.to(y.dtype)).mean()
        # A value that the levels clip carries no gradient of its own: that would say that a larger gain mends what a
        # larger gain clips, and the loss would rise.
        half = self.num_centers // 2
        within = scaled.clamp(-half, half)
        noisy = within + (torch.rand_like(scaled) - 0.5) * wide
        # The value is the rounded one to the last bit: x - x.detach() is zero and carries the gradient (STE).
        return self._output(y, values + (within - within.detach()), noisy, steps, bits)

    def _output(
        self, y: Tensor, values: Tensor, noisy: Tensor, steps: Tensor, bits: Tensor | None = None
    ) -> BottleneckOutput:
        share = steps / self.ladder[len(self.ladder) // 2]
        importance = 1 / share
        worth = importance * share.square() / self.reference_bits
        rate, prior_rate = ((worth * self.density.bits(given, steps)).mean() for given in (noisy, noisy.detach()))
        return BottleneckOutput(y, self.decoder(self.quantizer.restored(values)), rate, prior_rate, importance, bits)


def check_levels(num_centers: Any) -> None:
    """Refuse numbers of levels that this codec does not take, whatever the feature.

    Args:
        num_centers: What was given.

    Raises:
        FeatureError: It is no odd number in the range.

    Examples:
        >>> check_levels(8)
        Traceback (most recent call last):
        compoff.errors.FeatureError: num_centers is 8; the transform codec takes an odd number from 43 to 255, ...
    """
    check_whole("num_centers", num_centers)
    least = 2 * LADDER[-1] + 1
    if not (least <= num_centers <= 255 and num_centers % 2):
        raise FeatureError(
            f"num_centers is {num_centers}; the transform codec takes an odd number from {least} to 255, learned "
            'centers in any number go with codec="deepcod"'
        )


def _served(ladder: tuple[int, ...]) -> list[int]:
    """The steps of a ladder, and those between neighbors that are far apart."""
    between = [round(math.sqrt(a * b)) for a, b in itertools.pairwise(ladder) if b > _WIDE * a]
    return sorted({*ladder, *(step for step in between if step % 2 or step >= _LEAST_EVEN)})


def _take_former(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Before weights are loaded: the steps are those that they were saved with, and older ones have no choice."""
    del rest
    if f"{prefix}calibrated" not in state:  # nothing of this bottleneck
        return
    state.setdefault(f"{prefix}quality", torch.tensor(-1, device="cpu"))
    assert isinstance(module, TransformBottleneck)
    ladder: Tensor = state.setdefault(f"{prefix}ladder", torch.tensor(_FORMER_LADDER, device="cpu"))
    served: Tensor = state.setdefault(f"{prefix}served", ladder)  # what was chosen counts these
    module.ladder = torch.empty_like(ladder, device=module.ladder.device)
    module.served = torch.empty_like(served, device=module.served.device)
