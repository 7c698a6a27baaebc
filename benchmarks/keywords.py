"""The task of a keyword spotter: BC-ResNet-2 on Speech Commands, fitted on sentences, without words.

The network takes log mel spectrograms, which the device makes of the sound; sound codecs are measured beside it.
Name: ``bcresnet2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.sounds import RATE, SoundTask, read_sound
from benchmarks.zoo.bcresnet import BcResNet, log_mel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["KEYWORDS", "KeywordTask", "Seconds", "load_keywords"]

KEYWORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy"),
    *("house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop"),
    *("three", "tree", "two", "up", "visual", "wow", "yes", "zero"),
)


class Seconds:
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
        start = int(torch.randint(len(sound) - RATE + 1, ()))
        return sound[start : start + RATE] * 10 ** (-torch.rand(()))


@dataclass
class KeywordTask(SoundTask):
    """A keyword spotter, and one second each of words to measure on."""

    @staticmethod
    def spectrograms(sounds: Tensor) -> Tensor:
        """What the network takes of sounds."""
        return log_mel(sounds)


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
    sounds = torch.stack([_padded(read_sound(path)) for path in words])
    labels = torch.tensor([KEYWORDS.index(path.name.partition("__")[0]) for path in words])
    sentences = [read_sound(path) for path in sorted((folder / "speech" / "grid_s1" / "mp3_16k").glob("*.mp3"))[:limit]]
    train = Seconds([sound.to(device) for sound in sentences if len(sound) >= RATE], batch)
    return KeywordTask("bcresnet2", network.eval(), train, log_mel(sounds), labels, (0, 0, 0), (1, 1, 1), sounds)


def _padded(sound: Tensor) -> Tensor:
    """The first second, with silence where there is less."""
    return torch.nn.functional.pad(sound[:RATE], (0, max(0, RATE - len(sound))))
