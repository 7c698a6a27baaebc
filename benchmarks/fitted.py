"""A fitted codec in its network: what it makes of images, what the network answers then, and what both cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import compoff
from benchmarks.plain_codecs import in_batches
from compoff.codec import Encoder, code_of
from compoff.coding import PayloadFormat
from compoff.cutting.capture import folded

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.scoring import Scorer, WholeScorer
    from benchmarks.tasks import Task
    from compoff.codec import Quality
    from compoff.coding import Coding

__all__ = ["Fitted"]

_CHECKED = 20  # images that also go through the exported head and tail


class Fitted:
    """One fitted codec in its network.

    Args:
        task: The task.
        model: The wrapped network.
        split: The split point.
        scorer: The network's two parts; None to run the network itself, as a tail that adapts needs it.
    """

    def __init__(
        self, task: Task, model: compoff.Wrapped, split: str, scorer: Scorer | WholeScorer | None = None
    ) -> None:
        self.task = task
        self.model = model.eval()
        self.split = split
        self.scorer = scorer
        self.bottleneck = model.bottleneck(split)
        self.code = code_of(self.bottleneck)
        self.coder = PayloadFormat(bytes(32), [self.code])

    @torch.inference_mode()
    def symbols(self, images: Tensor) -> Tensor:
        """What the encoder makes of images, all of it."""
        if self.scorer is not None:
            where = self.bottleneck.quantizer.centers.device
            pieces = self.scorer.features(images).split(100)
            return torch.cat([self.bottleneck.encode(y.to(where)).cpu() for y in pieces])
        return self._symbols_in_network(images)

    @torch.inference_mode()
    def _symbols_in_network(self, images: Tensor) -> Tensor:
        gate, found = self.model.gate(self.split), list[Any]()
        gate.replace = lambda ys: (found.append(self.bottleneck.encode(ys[0]).cpu()), ys)[1]
        try:
            in_batches(self.model.base, images)
        finally:
            gate.replace = None
        return torch.cat(found)

    @torch.inference_mode()
    def answers(self, images: Tensor, symbols: Tensor, quality: Quality) -> Tensor:
        """The network's scores of what the edge receives at a quality."""
        gate, where = self.model.gate(self.split), self.bottleneck.quantizer.centers.device
        scores: list[Tensor] = []
        for batch, piece in zip(images.split(50), symbols.split(50), strict=True):
            restored = self.bottleneck.decode(self.bottleneck.received(piece.to(where), quality))
            if self.scorer is not None:
                scores.append(self.scorer.scores(restored))
                continue
            with gate.replacing([restored]):
                scores.append(in_batches(self.model.base, batch))
        return torch.cat(scores)

    def lengths(self, symbols: Tensor, index: int, coding: Coding = "range") -> list[int]:
        """Length of each image's payload at a quality."""
        sent = self.code.sent(symbols.numpy(), index)
        return [len(self.coder.encode([sample[None]], quality=index, coding=coding)) for sample in sent]

    def check(self) -> None:
        """Send the first images through the exported head and tail; the answers must be the ones measured here."""
        images = self.task.test[:_CHECKED]
        self.model.to("cpu")
        # One by one, as the head gets them: a batch, or another runtime, may round one symbol of 100,000 otherwise.
        symbols = torch.cat([self._symbols_in_network(image[None]) for image in images])
        head, tail = compoff.export(self.model, self.split)
        for index, quality in enumerate(self.bottleneck.qualities()):
            payloads = [head(image[None], quality=index) for image in images]
            if [len(payload) for payload in payloads] != self.lengths(symbols, index):
                raise AssertionError(f"the head's payloads at quality {index} have other lengths than were measured")
            torch.testing.assert_close(
                torch.cat(tail(payloads)), self.answers(images, symbols, quality), atol=1e-3, rtol=1e-3
            )

    def encode_ms(self, index: int) -> float:
        """Time of encoder and coder on one image's feature, in milliseconds: what the codec adds on the device.

        As exported, and of the channels that are sent at this quality, as a head computes them. The processor's time,
        which other processes on the machine take nothing of.
        """
        self.model.to("cpu")
        exported, channels = folded(self.bottleneck), self.bottleneck.qualities()[index].channels
        if isinstance(exported.encoder, Encoder) and channels < exported.latent_shape[0]:
            layer = exported.encoder.layer
            layer.weight, layer.bias = (
                torch.nn.Parameter(part[:channels], requires_grad=False) for part in (layer.weight, layer.bias)
            )
        y = torch.randn(1, *self.bottleneck.geometry.shape)
        times: list[float] = []
        with torch.inference_mode():
            for _ in range(50):
                start = time.process_time()
                sent = self.code.sent(exported.encode(y).numpy(), index)
                self.coder.encode([sent], quality=index)
                times.append(time.process_time() - start)
        return 1000 * float(np.median(times))

    def encoder_macs(self, quality: Quality) -> int:
        """Multiply-accumulates of the encoder for one image: of the channels that a quality sends."""
        encoder = self.bottleneck.encoder
        return encoder.macs_of(quality.channels) if isinstance(encoder, Encoder) else self.macs()["encoder_macs"]

    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of encoder and decoder for one image."""
        counts: dict[str, int] = {}
        where = self.bottleneck.quantizer.centers.device
        symbols = torch.zeros(1, *self.bottleneck.latent_shape, dtype=torch.uint8, device=where)
        feature = torch.zeros(1, *self.bottleneck.geometry.shape, device=where)
        for name, run in (
            ("encoder", lambda: self.bottleneck.encode(feature)),
            ("decoder", lambda: self.bottleneck.decode(symbols)),
        ):
            with FlopCounterMode(display=False) as flops, torch.no_grad():
                run()
            counts[f"{name}_macs"] = flops.get_total_flops() // 2
        return counts
