"""The learned codec at one split point: encoder, quantizer, decoder, and the prior of its symbols.

Knows tensors, not models and not bytes: `wrapping` puts a codec into a model, `coding` turns its symbols into bytes.
"""

from __future__ import annotations

from compoff.codec.bottleneck import Bottleneck, BottleneckOutput, CodecFactory
from compoff.codec.decoder import Decoder
from compoff.codec.encoder import Encoder
from compoff.codec.geometry import Geometry
from compoff.codec.prior import Prior
from compoff.codec.quantizer import Quantizer

__all__ = [
    "Bottleneck",
    "BottleneckOutput",
    "CodecFactory",
    "Decoder",
    "Encoder",
    "Geometry",
    "Prior",
    "Quantizer",
]
