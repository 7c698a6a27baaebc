"""The bottleneck: encoder, quantizer, decoder and prior as one module at one split point.

Where the user's own encoder or decoder takes the place of ours. Knows no model and no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from compoff.codec.decoder import Decoder
from compoff.codec.encoder import Encoder, semi_orthogonality_error
from compoff.codec.geometry import Geometry
from compoff.codec.limits import check_latent, check_lr, check_quality
from compoff.codec.precision import full_precision
from compoff.codec.prior import Prior
from compoff.codec.quantizer import Quantizer
from compoff.codec.spectral import SpectralConv
from compoff.errors import FeatureError

if TYPE_CHECKING:
    from compoff.codec.adapter import Adapter
    from compoff.codec.uniform import UniformQuantizer

__all__ = ["Bottleneck", "BottleneckOutput", "CodecFactory", "CodecName", "Quality", "where_finite"]

CodecFactory: TypeAlias = Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]
"""Makes the user's own encoder or decoder from ``(input shape, output shape)``, both without the batch axis."""

CodecName: TypeAlias = Literal["deepcod", "transform"]
"""The codecs: the paper's, and the transform codec (`compoff.codec.transform`)."""


@dataclass(frozen=True)
class Quality:
    """What of a latent travels.

    Args:
        channels: Number of channels, the first ones.
        step: Step of the numbers, in units of the finest.

    Examples:
        >>> Quality(channels=8).step
        1
    """

    channels: int
    step: int = 1


@dataclass(frozen=True)
class BottleneckOutput:
    """What one pass through a bottleneck gives.

    Args:
        y: The feature that went in.
        y_hat: The feature that comes out.
        estimated_rate: What the symbols are expected to cost, in the bottleneck's own unit; its gradient reaches the
            encoder. A scalar.
        prior_rate: The same with the symbols held fixed; its gradient reaches the prior only. A scalar.
        importance: Weight of each sample in the distortion, or None where they count alike.
        bits: What a sample takes at the rate that a fit is held to, in bits, without a gradient; None where the
            bottleneck has one rate alone. A scalar.

    Shapes:
        y and y_hat ``(batch, *shape)``; importance ``(batch,)``.
    """

    y: Tensor
    y_hat: Tensor
    estimated_rate: Tensor
    prior_rate: Tensor
    importance: Tensor | None = None
    bits: Tensor | None = None


class Bottleneck(nn.Module):
    """Compress a feature to symbols and restore it.

    Args:
        geometry: Layout of the feature.
        channels: Number of channels of the latent.
        num_centers: Number of quantization levels, 2 to 256.
        encoder: Factory of the user's own encoder; None for ours.
        decoder: Factory of the user's own decoder; None for ours.

    Shapes:
        y and result ``(batch, *geometry.shape)``; symbols ``(batch, channels, *geometry.latent_space)``, uint8.

    Raises:
        FeatureError: A size is out of range, or a factory raises, or its module gives another shape than was asked of
            it.

    Examples:
        >>> import torch
        >>> from compoff.codec import Geometry
        >>> bottleneck = Bottleneck(Geometry((16, 8, 8)), channels=4).eval()
        >>> symbols = bottleneck.encode(torch.randn(2, 16, 8, 8))
        >>> symbols.shape, symbols.dtype, bottleneck.decode(symbols).shape
        (torch.Size([2, 4, 2, 2]), torch.uint8, torch.Size([2, 16, 8, 8]))

    Source: DeepCOD (SenSys 2020), Sec. 3.2, 3.4.1, Fig. 2-3.
    """

    calibrated: Tensor

    def __init__(
        self,
        geometry: Geometry,
        channels: int = 8,
        num_centers: int = 8,
        *,
        encoder: CodecFactory | None = None,
        decoder: CodecFactory | None = None,
    ) -> None:
        super().__init__()
        check_latent(channels, num_centers)
        if not isinstance(geometry, Geometry):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise FeatureError(f"geometry is {geometry!r:.80}; expected a compoff.Geometry of the feature's shape")
        self.geometry = geometry
        self.latent_shape = (channels, *geometry.latent_space)
        between = (geometry.shape, self.latent_shape)
        self.encoder = _made("encoder", encoder, *between) if encoder else self._make_encoder(channels)
        self.quantizer = self._make_quantizer(channels, num_centers)
        self.decoder = _made("decoder", decoder, *between[::-1]) if decoder else self._make_decoder(channels)
        self.prior = Prior(channels, num_centers)
        self.adapter: Adapter | None = None  # of the layers behind; put in by whoever knows them
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        if encoder:
            _check_shape("encoder", self.encoder, geometry.shape, self.latent_shape)
        if decoder:
            _check_shape("decoder", self.decoder, self.latent_shape, geometry.shape)

    def _make_encoder(self, channels: int) -> nn.Module:
        """The encoder of this codec."""
        return Encoder(self.geometry, channels)

    def _make_quantizer(self, channels: int, num_centers: int) -> Quantizer | UniformQuantizer:
        """The quantizer of this codec."""
        del channels  # all share their centers
        return Quantizer(num_centers)

    def _make_decoder(self, channels: int) -> nn.Module:
        """The decoder of this codec."""
        return Decoder(self.geometry, channels)

    @property
    def num_centers(self) -> int:
        """Number of quantization levels."""
        return self.quantizer.num_centers

    @property
    def latent_values(self) -> int:
        """Number of latent values per sample."""
        return math.prod(self.latent_shape)

    def qualities(self) -> tuple[Quality, ...]:
        """The rates that this codec serves, from the fewest bytes to the most.

        Returns:
            The qualities; the last one sends everything.
        """
        return (Quality(self.latent_shape[0]),)

    @property
    def chosen(self) -> int:
        """Which of its qualities is sent where none is asked for."""
        return 0

    def choose(self, quality: int) -> None:
        """Settle which quality is sent where none is asked for.

        Args:
            quality: Its index in `qualities`.

        Raises:
            FeatureError: There is no such quality.
        """
        check_quality(quality, 1)  # this codec has only one

    def received(self, symbols: Tensor, quality: Quality) -> Tensor:
        """The symbols that the edge decodes where a quality was sent.

        Args:
            symbols: All symbols, as `encode` gives them.
            quality: What is sent of them.

        Returns:
            Symbols of the same shape, for `decode`.
        """
        del quality  # this codec has only one
        return symbols

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The parameters with the learning rate of each, as an optimizer takes them.

        Args:
            lr: Learning rate of the fit.

        Returns:
            Groups with ``params`` and ``lr``.

        Raises:
            FitError: `lr` is negative or not finite.
        """
        check_lr(lr)
        return [{"params": list(self.parameters()), "lr": lr}]

    @full_precision
    @torch.no_grad()
    def calibrate(self, y: Tensor) -> None:
        """Set the units of quantizer and decoder from one batch of real features; done once, before the first step.

        Args:
            y: Features of one batch.
        """
        self.geometry.check(y)
        latent = self.encoder(y)
        if isinstance(self.quantizer, Quantizer):
            self.quantizer.calibrate(latent)
        if isinstance(self.decoder, Decoder):
            self.decoder.calibrate(self.quantizer.dequantize(self.quantizer.symbols(latent)), y)
        self.calibrated.fill_(True)

    @full_precision
    def encode(self, y: Tensor) -> Tensor:
        """What the device does: feature to symbols.

        Args:
            y: The feature.

        Returns:
            The symbols.
        """
        return self.quantizer.nearest(self._scaled(y))

    @full_precision
    def encode_checked(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What the device does, and whether symbols can stand for it: NaN has a nearest center, too, but means none.

        Args:
            y: The feature.

        Returns:
            The symbols, and for each sample whether all values that became symbols are finite.

        Shapes:
            Results ``(batch, *latent_shape)`` and ``(batch,)``.
        """
        scaled = self._scaled(y)
        # NaN and infinity survive a sum; what is behind it costs one number a sample.
        finite = scaled.sum(tuple(range(1, scaled.dim()))).abs() < math.inf
        return self.quantizer.nearest(scaled), finite

    def _scaled(self, y: Tensor) -> Tensor:
        """What is only rounded to symbols."""
        return self.quantizer.scaled(self.encoder(y))

    @full_precision
    def decode(self, symbols: Tensor) -> Tensor:
        """What the edge does: symbols to feature.

        Args:
            symbols: The symbols.

        Returns:
            The restored feature.
        """
        return self.decoder(self.quantizer.dequantize(symbols))

    @full_precision
    def run(self, y: Tensor) -> BottleneckOutput:
        """Compress and restore, keeping what the losses need.

        Args:
            y: The feature.

        Returns:
            Feature, restored feature and rates (in bits per latent value), differentiable in training mode.
        """
        z_hat, weights = self.quantizer(self.encoder(y))
        rate, prior_rate = (
            self.prior.estimated_rate(given) / self.latent_values for given in (weights, weights.detach())
        )
        return BottleneckOutput(y, self.decoder(z_hat), rate, prior_rate)

    @full_precision
    def forward(self, y: Tensor, quality: int | None = None) -> Tensor:
        """Compress and restore.

        Args:
            y: The feature.
            quality: Which of `qualities` restores it in eval mode; None for the chosen one.

        Returns:
            The restored feature, in the dtype of `y`; in eval mode NaN for a sample that no symbols stand for.

        Raises:
            FeatureError: `y` has another shape than this bottleneck was made for.
        """
        self.geometry.check(y)
        weight = self.quantizer.centers
        if not self.training:
            symbols, finite = self.encode_checked(y.to(weight.dtype))
            return where_finite(finite, self._restored(symbols, quality)).to(y.dtype)
        return self.run(y.to(weight.dtype)).y_hat.to(y.dtype)

    def _restored(self, symbols: Tensor, quality: int | None) -> Tensor:
        """The feature as the edge has it at a quality; at the chosen one if None."""
        del quality  # this codec has only one
        return self.decode(symbols)

    def semi_orthogonality_error(self, *, precise: bool = False) -> Tensor:
        """Distance of the encoder from an isometry, Eq. 7; zero for an own encoder, which Eq. 7 does not fit.

        Args:
            precise: Whether to compute in double precision, without a gradient: the kernel of a feature of tiny units
                has squares beyond single precision.

        Returns:
            A scalar.
        """
        if isinstance(self.encoder, Encoder):
            kernel = self.encoder.kernel
            return semi_orthogonality_error(kernel.detach().cpu().double() if precise else kernel)
        return self.quantizer.centers.new_zeros(())

    def fold(self) -> None:
        """Settle for inference, in place: what is computed from weights alone is computed here, once."""
        for layer in self.spectral_layers():
            layer.fold()

    def spectral_layers(self) -> list[SpectralConv]:
        """The layers under Eq. 9.

        Returns:
            The layers, in order.
        """
        return [module for module in self.modules() if isinstance(module, SpectralConv)]


def where_finite(finite: Tensor, y_hat: Tensor) -> Tensor:
    """A restored feature with NaN in the samples that no symbols stand for, as the model itself would go on.

    Args:
        finite: For each sample, whether symbols stand for it.
        y_hat: The restored feature.

    Returns:
        The feature; not a bit of the other samples is changed.

    Shapes:
        finite ``(batch,)``; y_hat and result ``(batch, *shape)``.

    Examples:
        >>> where_finite(torch.tensor([True, False]), torch.ones(2, 1)).tolist()
        [[1.0], [nan]]
    """
    return torch.where(finite.view(-1, *(1,) * (y_hat.dim() - 1)), y_hat, math.nan)


def _made(role: str, factory: CodecFactory, given: tuple[int, ...], expected: tuple[int, ...]) -> nn.Module:
    """Call the user's factory."""
    try:
        return factory(given, expected)
    except Exception as error:
        raise FeatureError(
            f"your {role} factory raised {type(error).__name__} ({error}); it is called with (input shape, output "
            f"shape), here ({given}, {expected}), and must return a module that turns the one into the other"
        ) from error


def _check_shape(role: str, module: nn.Module, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Run the user's module once and compare its output's shape with the one it was asked for."""
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance] - what a factory returns is anything
        raise FeatureError(f"your {role} factory returned {type(module).__name__}; expected a torch.nn.Module")
    sample = torch.zeros(2, *given, device=next((parameter.device for parameter in module.parameters()), None))
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(sample)
    except Exception as error:
        raise FeatureError(
            f"your {role} cannot take {given} per sample ({error}); the factory is called with (input shape, output "
            f"shape), here ({given}, {expected}), and must return a module that keeps to them"
        ) from error
    finally:
        module.train(training)
    shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else None
    if shape != expected:
        raise FeatureError(
            f"your {role} turns {given} into {shape or type(output).__name__} per sample; expected {expected}: the "
            "factory is called with (input shape, output shape) and must return a module that keeps to them"
        )
