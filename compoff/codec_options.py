"""How the bottlenecks of one wrap are made: sizes, or the user's own factories.

Knows the codec, not the model that it goes into.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from compoff.checks import check_whole
from compoff.codec import Bottleneck, CodecFactory, CodecName, Geometry, TransformBottleneck
from compoff.codec.defaults import default_channels, widest_stride
from compoff.codec.limits import check_latent
from compoff.codec.precision import own_defaults
from compoff.codec.transform import check_levels
from compoff.errors import FeatureError, SplitError

__all__ = ["CodecOptions", "Sizes"]


class Sizes(NamedTuple):
    """What decides the shapes of a bottleneck's weights, beside the channels of the feature.

    Args:
        channels: Channels of the latent.
        num_centers: Number of quantization levels.
        stride: Side of the encoder's tile, in elements.

    Examples:
        >>> Sizes.of(CodecOptions().build((32, 16, 16)))
        Sizes(channels=1024, num_centers=255, stride=8)
    """

    channels: int
    num_centers: int
    stride: int

    @classmethod
    def of(cls, bottleneck: Bottleneck) -> Sizes:
        """Those of a bottleneck."""
        return cls(bottleneck.latent_shape[0], bottleneck.num_centers, bottleneck.geometry.stride)


@dataclass
class CodecOptions:
    """How the bottlenecks of one wrap are made.

    Args:
        channels: Channels of the latent; None for the codec's own choice.
        num_centers: Number of quantization levels; None for 8 ("deepcod") or 255 ("transform").
        stride: Side of the encoder's tile, in elements; None for 4 ("deepcod") or the codec's own choice ("transform").
        encoder: Factory of the user's own encoder.
        decoder: Factory of the user's own decoder.
        codec: Which codec.
        strict: Whether the layers behind the split point stay as they are; False gives them an adapter.

    Examples:
        >>> CodecOptions(channels=4, codec="deepcod").build((16, 8, 8)).latent_shape
        (4, 2, 2)
    """

    channels: int | None = None
    num_centers: int | None = None
    stride: int | None = None
    encoder: CodecFactory | None = None
    decoder: CodecFactory | None = None
    codec: CodecName = "transform"
    strict: bool = True

    def __post_init__(self) -> None:
        if self.codec not in get_args(CodecName):
            raise FeatureError(
                f"there is no codec {self.codec!r}; expected {' or '.join(map(repr, get_args(CodecName)))}"
            )
        for name in ("channels", "num_centers", "stride"):
            value = getattr(self, name)
            check_whole(name, value, or_none=True)
            if value is not None:
                setattr(self, name, int(value))  # numpy's numbers are no JSON
        for name in ("encoder", "decoder"):
            factory = getattr(self, name)
            if factory is not None and not _takes_two_shapes(factory):
                raise FeatureError(
                    f"{name} is {factory!r:.80}; expected a function from (input shape, output shape) to a module"
                )
        # What needs no shapes is said here, not in the first step of a fit.
        Geometry((1,), _given(self.stride, 1))
        check_latent(_given(self.channels, 1), _given(self.num_centers, 255))
        if self.codec == "transform":
            check_levels(_given(self.num_centers, 255))
            self._refuse_encoder()
        if not isinstance(self.strict, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
            raise FeatureError(f"strict is {self.strict!r:.80}; expected True or False")

    def _refuse_encoder(self) -> None:
        if self.encoder:
            raise FeatureError(
                'an encoder of your own goes with codec="deepcod": the transform codec starts from its own'
            )

    def describe(self) -> dict[str, Any]:
        """These options as JSON can hold them.

        Returns:
            The keyword arguments of this class.

        Raises:
            SplitError: An encoder or decoder of the user's own is in use.
        """
        if self.encoder or self.decoder:
            raise SplitError(
                "an encoder or decoder of your own cannot be described in a file; save model.bottlenecks.state_dict() "
                "instead, or export"
            )
        sizes = {"channels": self.channels, "num_centers": self.num_centers, "stride": self.stride}
        # Said only where it is not the default, so that older versions read all other files.
        return {**sizes, "codec": self.codec, **({} if self.strict else {"strict": False})}

    def build(self, shape: tuple[int, ...], device: str = "cpu") -> Bottleneck:
        """Make the bottleneck for a feature.

        Args:
            shape: Its shape without the batch axis.
            device: Where to make it; ``"meta"`` where only its sizes are of interest.

        Returns:
            The bottleneck, freshly initialized.

        Raises:
            FeatureError: A size is out of range, or a factory's module gives another shape than was asked of it.
        """
        # Parameters born in inference mode could never be trained.
        with torch.inference_mode(mode=False), own_defaults(device):
            if self.codec == "transform":
                return self._build_transform(shape)
            geometry = Geometry(shape, _given(self.stride, 4))
            channels = self.channels
            if channels is None:
                channels = 8 if geometry.space else max(1, shape[0] // 16)
            centers = _given(self.num_centers, 8)
            return Bottleneck(geometry, channels, centers, encoder=self.encoder, decoder=self.decoder)

    def _build_transform(self, shape: tuple[int, ...]) -> TransformBottleneck:
        """A transform codec, which brings its own encoder."""
        geometry = Geometry(shape, _given(self.stride, widest_stride(shape)))
        channels = _given(self.channels, default_channels(geometry))
        return TransformBottleneck(geometry, channels, _given(self.num_centers, 255), decoder=self.decoder)


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _takes_two_shapes(factory: Any) -> bool:
    """Whether something can be called to make a module; a module itself cannot."""
    if isinstance(factory, nn.Module) or not callable(factory):
        return False
    try:
        inspect.signature(factory).bind((), ())
    except TypeError:
        return False
    except ValueError:  # of some written in C, nothing is known
        return True
    return True
