"""How the bottlenecks of one wrap are made: sizes, or the user's own factories.

Knows the codec, not the model that it goes into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from compoff.codec import Bottleneck, CodecFactory, Geometry
from compoff.errors import SplitError

__all__ = ["CodecOptions"]


@dataclass
class CodecOptions:
    """How the bottlenecks of one wrap are made.

    Args:
        channels: Channels of the latent; None for 8, or a sixteenth of a flat feature.
        num_centers: Number of quantization levels.
        stride: Side of the encoder's tile, in elements.
        encoder: Factory of the user's own encoder.
        decoder: Factory of the user's own decoder.

    Examples:
        >>> CodecOptions(channels=4).build((16, 8, 8)).latent_shape
        (4, 2, 2)
    """

    channels: int | None = None
    num_centers: int = 8
    stride: int = 4
    encoder: CodecFactory | None = None
    decoder: CodecFactory | None = None

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
        return {"channels": self.channels, "num_centers": self.num_centers, "stride": self.stride}

    def build(self, shape: tuple[int, ...]) -> Bottleneck:
        """Make the bottleneck for a feature.

        Args:
            shape: Its shape without the batch axis.

        Returns:
            The bottleneck, freshly initialized.

        Raises:
            FeatureError: A size is out of range, or a factory's module gives another shape than was asked of it.
        """
        with torch.inference_mode(mode=False):  # parameters born in inference mode could never be trained
            geometry = Geometry(shape, self.stride)
            channels = self.channels
            if channels is None:
                channels = 8 if geometry.space else max(1, shape[0] // 16)
            return Bottleneck(geometry, channels, self.num_centers, encoder=self.encoder, decoder=self.decoder)
