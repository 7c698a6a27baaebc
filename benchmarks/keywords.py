"""The task of a keyword spotter: BC-ResNet-2 on Speech Commands, fitted on sentences, without words.

The network takes log mel spectrograms, which the device makes of the sound; sound codecs are measured beside it.
Name: ``bcresnet2``.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.plain_codecs import plain_row
from benchmarks.tasks import Task
from benchmarks.zoo.bcresnet import BcResNet, log_mel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.scoring import WholeScorer

__all__ = ["KEYWORDS", "KeywordTask", "Sentences", "decoded", "encoded", "load_keywords", "packets", "sound_rows"]

KEYWORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy"),
    *("house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop"),
    *("three", "tree", "two", "up", "visual", "wow", "yes", "zero"),
)
_RATE = 16_000  # samples a second
_OPUS = (1.0, 0.98, 0.96, 0.93, 0.9, 0.8)  # compression levels of libsndfile: 6 to 54 kbit/s


class Sentences:
    """Batches of spectrograms of one second each, from anywhere in a sentence, as loud as it is or quieter.

    Args:
        sounds: The sentences, each of at least one second.
        batch: Seconds in a batch.
    """

    def __init__(self, sounds: list[Tensor], batch: int) -> None:
        self.sounds = sounds
        self.batch = batch

    def __len__(self) -> int:
        return len(self.sounds) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.sounds))[: len(self) * self.batch]
        for indices in order.view(-1, self.batch).tolist():
            yield log_mel(torch.stack([self._second(self.sounds[index]) for index in indices]))

    def _second(self, sound: Tensor) -> Tensor:
        start = int(torch.randint(len(sound) - _RATE + 1, ()))
        return sound[start : start + _RATE] * 10 ** (-torch.rand(()))


@dataclass
class KeywordTask(Task):
    """A keyword spotter, and words to measure on.

    Args:
        sounds: One second of each word, ``(words, samples)``.
    """

    sounds: Tensor = field(default_factory=lambda: torch.empty(0))


def load_keywords(folder: Path, *, batch: int, device: str = "cpu", limit: int | None = None) -> KeywordTask:
    """The keyword spotter, what it is fitted on and what it is measured on.

    Args:
        folder: The data folder.
        batch: Samples in a batch of the sentences to fit on.
        device: Where those are kept.
        limit: Number of sentences and of words; None for all.

    Returns:
        The task.
    """
    network = BcResNet()
    network.load_state_dict(load_file(folder / "weights" / "speech_commands_bcresnet2.safetensors"))
    words = sorted((folder / "speech" / "speech_commands_300" / "flac").glob("*.flac"))[:limit]
    sounds = torch.stack([_padded(_read(path)) for path in words])
    labels = torch.tensor([KEYWORDS.index(path.name.partition("__")[0]) for path in words])
    sentences = [_read(path) for path in sorted((folder / "speech" / "grid_s1" / "mp3_16k").glob("*.mp3"))[:limit]]
    train = Sentences([sound.to(device) for sound in sentences if len(sound) >= _RATE], batch)
    return KeywordTask("bcresnet2", network.eval(), train, log_mel(sounds), labels, (0, 0, 0), (1, 1, 1), sounds)


def _read(path: Path) -> Tensor:
    import soundfile  # here, so that the other tasks do without it

    sound, rate = soundfile.read(path, dtype="float32")
    if rate != _RATE:
        raise ValueError(f"'{path.name}' has {rate} samples a second; expected {_RATE}")
    return torch.from_numpy(sound)


def _padded(sound: Tensor) -> Tensor:
    """The first second, with silence where there is less."""
    return torch.nn.functional.pad(sound[:_RATE], (0, max(0, _RATE - len(sound))))


def sound_rows(task: KeywordTask, scorer: WholeScorer, teacher: Tensor) -> list[dict[str, Any]]:
    """Opus at several rates and FLAC in front of the unmodified network, as where the server makes the spectrograms.

    Of Opus its packets are counted, each with a byte for its length, without the file around them.

    Args:
        task: The task.
        scorer: What answers spectrograms.
        teacher: The network's scores of the sounds themselves.

    Returns:
        One row a codec and rate; `quality` of Opus are kilobits a second as they came out.
    """
    rows: list[dict[str, Any]] = []
    for level in (*_OPUS, None):
        lengths, heard, times = list[int](), list[Tensor](), list[float]()
        for sound in task.sounds:
            start = time.process_time()
            data = encoded(sound, level)
            times.append(time.process_time() - start)
            lengths.append(len(data) if level is None else sum(1 + length for length in packets(data)))
            heard.append(decoded(data))
        scores = scorer.scores(scorer.features(log_mel(torch.stack(heard))))
        cost = {"encoder_macs": None, "decoder_macs": None, "encode_ms": 1000 * float(np.median(times))}
        system, rate = ("flac", 0) if level is None else ("opus", round(float(np.mean(lengths)) * 8 / 1000))
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
        soundfile.write(buffer, sound.numpy(), _RATE, format="FLAC", subtype="PCM_16")
    else:
        soundfile.write(buffer, sound.numpy(), _RATE, format="OGG", subtype="OPUS", compression_level=level)
    return buffer.getvalue()


def decoded(data: bytes) -> Tensor:
    """The first second of a file of Opus or FLAC.

    Args:
        data: The file.

    Returns:
        The sound, 16,000 samples.
    """
    import soundfile

    return _padded(torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0]))


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
