"""The learned codec at one split point: encoder, quantizer, decoder, and the prior of its symbols.

Knows tensors, not models and not bytes: `wrapping` puts a codec into a model, `coding` turns its symbols into bytes.
"""

from __future__ import annotations

from compoff.codec.adapter import Adapter
from compoff.codec.bottleneck import Bottleneck, BottleneckOutput, CodecFactory, CodecName, Quality
from compoff.codec.coded import code_of
from compoff.codec.decoder import Decoder
from compoff.codec.density import Density
from compoff.codec.directions import Directions, TileMoments
from compoff.codec.encoder import Encoder
from compoff.codec.geometry import Geometry
from compoff.codec.prior import Prior
from compoff.codec.quantizer import Quantizer
from compoff.codec.refiner import RefiningDecoder
from compoff.codec.transform import TransformBottleneck
from compoff.codec.trimming import trimmed
from compoff.codec.uniform import UniformQuantizer
from compoff.codec.wave_moments import WaveMoments

__all__ = [
    "Adapter",
    "Bottleneck",
    "BottleneckOutput",
    "CodecFactory",
    "CodecName",
    "Decoder",
    "Density",
    "Directions",
    "Encoder",
    "Geometry",
    "Prior",
    "Quality",
    "Quantizer",
    "RefiningDecoder",
    "TileMoments",
    "TransformBottleneck",
    "UniformQuantizer",
    "WaveMoments",
    "code_of",
    "trimmed",
]
