"""Tasks that listen: what sound codecs cost in front of the unmodified network, where the server makes spectrograms."""

from __future__ import annotations

import io
import time
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_codecs import plain_row
from benchmarks.tasks import Task

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.scoring import WholeScorer

__all__ = ["RATE", "SoundTask", "decoded", "encoded", "packets", "read_sound", "sound_rows"]

RATE = 16_000  # samples a second
_OPUS = (1.0, 0.98, 0.96, 0.93, 0.9, 0.8)  # compression levels of libsndfile: 6 to 54 kbit/s


@dataclass
class SoundTask(Task):
    """A network that takes spectrograms, and sounds to measure on.

    Args:
        sounds: The sounds, ``(count, samples)``.
    """

    sounds: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    @abstractmethod
    def spectrograms(sounds: Tensor) -> Tensor:
        """What the network takes of sounds, ``(count, samples)``."""


def read_sound(path: Path) -> Tensor:
    """A sound of 16,000 samples a second.

    Args:
        path: The file, of any form that libsndfile knows.

    Returns:
        Its samples.

    Raises:
        ValueError: It has another rate.
    """
    import soundfile  # here, so that the other tasks do without it

    sound, rate = soundfile.read(path, dtype="float32")
    if rate != RATE:
        raise ValueError(f"'{path.name}' has {rate} samples a second; expected {RATE}")
    return torch.from_numpy(sound)


def sound_rows(task: SoundTask, scorer: WholeScorer, teacher: Tensor) -> list[dict[str, Any]]:
    """Opus at several rates and FLAC in front of the unmodified network.

    Of Opus its packets are counted, each with a byte for its length, without the file around them.

    Args:
        task: The task.
        scorer: What answers spectrograms.
        teacher: The network's scores of the sounds themselves.

    Returns:
        One row a codec and rate; `quality` of Opus are kilobits a second as they came out.
    """
    rows: list[dict[str, Any]] = []
    seconds = task.sounds.shape[1] / RATE
    for level in (*_OPUS, None):
        lengths, heard, times = list[int](), list[Tensor](), list[float]()
        for sound in task.sounds:
            start = time.process_time()
            data = encoded(sound, level)
            times.append(time.process_time() - start)
            lengths.append(len(data) if level is None else sum(1 + length for length in packets(data)))
            heard.append(decoded(data, len(sound)))
        scores = scorer.scores(scorer.features(task.spectrograms(torch.stack(heard))))
        cost = {"encoder_macs": None, "decoder_macs": None, "encode_ms": 1000 * float(np.median(times))}
        kilobits = round(float(np.mean(lengths)) * 8 / 1000 / seconds)
        system, rate = ("flac", 0) if level is None else ("opus", kilobits)
        rows.append(plain_row(task, "input", system, rate, lengths, **task.compared(teacher, scores), **cost))
    return rows


def encoded(sound: Tensor, level: float | None) -> bytes:
    """A sound as a file of Opus, or of FLAC.

    Args:
        sound: The sound, 16,000 samples a second.
        level: Compression level of Opus, from 0 to 1; None for FLAC.

    Returns:
        The file.
    """
    import soundfile

    buffer = io.BytesIO()
    if level is None:
        soundfile.write(buffer, sound.numpy(), RATE, format="FLAC", subtype="PCM_16")
    else:
        soundfile.write(buffer, sound.numpy(), RATE, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def decoded(data: bytes, samples: int) -> Tensor:
    """The sound in a file of Opus or FLAC.

    Args:
        data: The file.
        samples: How many there are to be; what lacks is silence.

    Returns:
        The sound.
    """
    import soundfile

    sound = torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0])[:samples]
    return torch.nn.functional.pad(sound, (0, samples - len(sound)))


def packets(data: bytes) -> list[int]:
    """Lengths of the packets of sound in an Ogg file.

    Args:
        data: The file.

    Returns:
        Their lengths in bytes, those of its two headers left out.
    """
    lengths, length, place = list[int](), 0, 0
    while place < len(data):
        segments = data[place + 27 : place + 27 + data[place + 26]]
        for segment in segments:
            length += segment
            if segment < 255:  # a packet ends
                lengths.append(length)
                length = 0
        place += 27 + len(segments) + sum(segments)
    return lengths[2:]
