"""What one gets without a learned codec: image codecs before the untouched network, and plain features coded."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from compoff.coding import Code, PayloadFormat, SymbolTables
from compoff.wire.frames import OVERHEAD_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.scoring import Scorer, WholeScorer
    from benchmarks.tasks import Task

__all__ = ["feature_rows", "in_batches", "picture_rows", "plain_row"]

# Image codecs as small as Pillow makes them: a 32 x 32 JPEG with tables of its own is about a third shorter.
_AT_BEST: dict[str, dict[str, Any]] = {"jpeg": {"optimize": True}, "webp": {"method": 6}, "png": {"optimize": True}}
_QUALITIES = {"jpeg": (5, 10, 25, 50, 75, 90), "webp": (1, 10, 25, 50, 75, 90), "png": (0,)}


@torch.inference_mode()
def in_batches(net: Any, images: Tensor) -> Tensor:
    """The network's scores, on the CPU.

    Args:
        net: The network.
        images: Its inputs.

    Returns:
        Scores of all of them.
    """
    where = next(net.parameters()).device
    return torch.cat([net(batch.to(where)).cpu() for batch in images.split(100)])


def plain_row(task: Task, split: str, system: str, quality: int, lengths: list[int], **more: Any) -> dict[str, Any]:
    """One row of what is not learned.

    Args:
        task: The task.
        split: The split point.
        system: What was coded how.
        quality: At which quality.
        lengths: Bytes of each sample.
        **more: What else was measured.

    Returns:
        The row.
    """
    mean = float(np.mean(lengths))
    named = {"system": system, "model": task.name, "split": split, "quality": quality}
    return {**named, "bytes": mean, "wire_bytes": mean + OVERHEAD_BYTES, **more, "fit_seconds": 0.0}


def picture_rows(task: Task, scorer: Scorer | WholeScorer, teacher: Tensor) -> list[dict[str, Any]]:
    """JPEG and WebP at several qualities, and PNG, in front of the unmodified network.

    Args:
        task: The task.
        scorer: What answers images.
        teacher: The network's scores of the images themselves.

    Returns:
        One row a codec and quality.
    """
    rows: list[dict[str, Any]] = []
    pictures = task.pictures()
    for system, quality in [(system, quality) for system, several in _QUALITIES.items() for quality in several]:
        lengths, decoded, times = list[int](), list[Image.Image](), list[float]()
        for picture in pictures:
            buffer, start = io.BytesIO(), time.process_time()
            picture.save(buffer, system, **_AT_BEST[system], **({} if system == "png" else {"quality": quality}))
            times.append(time.process_time() - start)
            lengths.append(buffer.tell())
            decoded.append(Image.open(buffer).convert("RGB"))
        scores = scorer.scores(scorer.features(task.normalized(decoded)))
        cost = {"encoder_macs": None, "decoder_macs": None, "encode_ms": 1000 * float(np.median(times))}
        rows.append(plain_row(task, "input", system, quality, lengths, **task.compared(teacher, scores), **cost))
    return rows


@torch.no_grad()
def feature_rows(task: Task, split: str, scorer: Scorer | WholeScorer, teacher: Tensor) -> list[dict[str, Any]]:
    """The feature itself at 8, 4 and 2 bits with a range coder, tables from these very features.

    Args:
        task: The task.
        split: The split point.
        scorer: What answers features.
        teacher: The network's scores.

    Returns:
        One row a number of bits; `quality` is the bits.
    """
    y = scorer.features(task.test)
    return [_feature_row(task, split, scorer, teacher, y, bits) for bits in (8, 4, 2)]


def _feature_row(
    task: Task, split: str, scorer: Scorer | WholeScorer, teacher: Tensor, y: Tensor, bits: int
) -> dict[str, Any]:
    """One row; symbols are made batch by batch, since all of them may not fit into memory beside the features."""
    low, high, levels = float(y.amin()), float(y.amax()), 2**bits

    def symbols(piece: Tensor) -> Tensor:
        return ((piece - low) / (high - low) * (levels - 1)).round()

    counts, scores = np.zeros((y.shape[1], levels), np.int64), list[Any]()
    for piece in y.split(50):
        made = symbols(piece)
        scores.append(scorer.scores(made / (levels - 1) * (high - low) + low))
        for channel, flat in enumerate(made.to(torch.uint8).transpose(0, 1).flatten(1).numpy()):
            counts[channel] += np.bincount(flat, minlength=levels)
    coder = PayloadFormat(bytes(32), [Code(SymbolTables.from_counts(counts), (y.shape[1], y[0, 0].numel()))])
    lengths = [len(coder.encode([symbols(one[None]).flatten(2).to(torch.uint8).numpy()])) for one in y]
    cost = {"encoder_macs": 0, "decoder_macs": 0, "encode_ms": None}
    named = task.compared(teacher, torch.cat(scores))
    return plain_row(task, split, f"{bits}-bit features", bits, lengths, **named, **cost)
