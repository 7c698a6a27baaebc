"""The task of a speech recognizer: a small DeepSpeech on sentences of one speaker, measured by the words it gets wrong.

Published weights that fit free sentences of this size could not be had, so the recognizer is trained here, from
scratch, on the first 800 sentences of a GRID speaker, which takes ten minutes once and is kept beside the states of
fits. The codecs are fitted on the same sentences, without their words. Name: ``deepspeech``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.sounds import SoundTask, read_sound
from benchmarks.zoo.bcresnet import mel_bands
from benchmarks.zoo.speech import DeepSpeech

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["LETTERS", "Recognizer", "SentenceTask", "Shifted", "load_sentences", "spoken", "train", "word_errors"]

LETTERS = " abcdefghijklmnopqrstuvwxyz"  # symbol 0 is the blank of CTC
_BANDS, _FRAMES, _WINDOW, _HOP = 40, 296, 512, 160  # of 10 ms each
_SENTENCES = 800  # to learn from; the rest is measured on
_STATE = Path(__file__).resolve().parent / "states" / "deepspeech.grid.safetensors"  # not committed


class Recognizer(DeepSpeech):
    """Two convolutions over a spectrogram, two recurrent layers over time, scores of letters for CTC.

    Shapes:
        Spectrograms ``(batch, 1, 40, time)`` to scores ``(batch, time / 2, 28)``.
    """

    def __init__(self) -> None:
        super().__init__(channels=16, hidden=160, bands=_BANDS, num_symbols=1 + len(LETTERS))

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Score the letters at every moment."""
        y = self.conv2(self.conv1(spectrograms)).flatten(1, 2).transpose(1, 2)
        y, _ = self.recurrent1(y)
        y, _ = self.recurrent2(y)
        return self.symbols(self.norm(y))


class Shifted:
    """Batches of spectrograms of whole sentences, a little earlier or later, as loud as they are or quieter.

    Args:
        sounds: The sentences, ``(count, samples)``.
        batch: Sentences in a batch.
    """

    def __init__(self, sounds: Tensor, batch: int) -> None:
        self.sounds = sounds
        self.batch = batch

    def __len__(self) -> int:
        return len(self.sounds) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        return (spectrograms for spectrograms, _ in self.numbered())

    def numbered(self) -> Iterator[tuple[Tensor, list[int]]]:
        """The batches, and which sentences are in them."""
        order = torch.randperm(len(self.sounds))[: len(self) * self.batch]
        for indices in order.view(-1, self.batch).tolist():
            shifts = torch.randint(-1600, 1601, (self.batch,)).tolist()
            shifted = [self.sounds[index].roll(shift) for index, shift in zip(indices, shifts, strict=True)]
            yield SentenceTask.spectrograms(torch.stack(shifted) * 10 ** (-torch.rand(self.batch, 1))), indices


@dataclass
class SentenceTask(SoundTask):
    """A speech recognizer, and sentences to measure on.

    Args:
        words: What is said in each, in order.
    """

    words: Sequence[str] = field(default_factory=list)

    @staticmethod
    def spectrograms(sounds: Tensor) -> Tensor:
        """Logarithms of 40 mel bands, every 10 ms."""
        window = torch.hann_window(_WINDOW, device=sounds.device)
        spectrum = torch.stft(sounds, _WINDOW, _HOP, window=window, center=True, return_complex=True)
        power = mel_bands(_BANDS, _WINDOW // 2 + 1).to(sounds) @ spectrum.abs().square()
        return (power + 1e-4).log10().unsqueeze(1)[..., :_FRAMES]

    def compared(self, teacher: Tensor, student: Tensor) -> dict[str, Any]:
        """Points of word error rate that the student's scores add, and how many sentences are heard alike."""
        heard, heard_before = spoken(student), spoken(teacher)
        errors = torch.tensor([word_errors(one, said) for one, said in zip(heard, self.words, strict=False)]).double()
        before = torch.tensor(
            [word_errors(one, said) for one, said in zip(heard_before, self.words, strict=False)]
        ).double()
        words = sum(len(said.split()) for said in self.words[: len(heard)]) / len(heard)
        more = 100 * (errors - before) / words
        return {
            "word_error_rate": 100 * float(errors.mean()) / words,
            "drop": float(more.mean()),
            "drop_stderr": float(more.std()) / len(more) ** 0.5,
            "agreement": sum(map(str.__eq__, heard, heard_before)) / len(heard),
        }


def load_sentences(folder: Path, *, batch: int, device: str = "cpu", limit: int | None = None) -> SentenceTask:
    """The recognizer, what it is fitted on and what it is measured on.

    Args:
        folder: The data folder.
        batch: Sentences in a batch of those to fit on.
        device: Where those are kept.
        limit: Number of sentences of both kinds; None for all.

    Returns:
        The task.
    """
    place = folder / "speech" / "grid_s1"
    lines = (place / "transcripts.txt").read_text(encoding="utf-8").splitlines()
    said = dict(line.split("\t") for line in lines)
    paths = sorted((place / "mp3_16k").glob("*.mp3"))
    # Names are sorted by their words; every fifth is measured on, so that all words are in both.
    measured = paths[::5][:limit]
    learned = [path for path in paths if path not in set(paths[::5])]
    assert len(learned) == _SENTENCES
    sounds = torch.stack([read_sound(path) for path in learned])
    network = Recognizer()
    if not _STATE.exists():
        train(network, sounds, [said[path.stem] for path in learned])
        _STATE.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), _STATE)
    network.load_state_dict(load_file(_STATE))
    test = torch.stack([read_sound(path) for path in measured])
    words = [said[path.stem] for path in measured]
    fitted = Shifted(sounds[:limit].to(device), batch)
    spectrograms, numbers = SentenceTask.spectrograms(test), torch.arange(len(test))
    return SentenceTask("deepspeech", network.eval(), fitted, spectrograms, numbers, (0, 0, 0), (1, 1, 1), test, words)


def train(network: Recognizer, sounds: Tensor, said: Sequence[str], rounds: int = 40, batch: int = 32) -> None:
    """Teach a recognizer, with CTC.

    Args:
        network: The recognizer; changed.
        sounds: Sentences, ``(count, samples)``.
        said: What is said in each.
        rounds: How often each is heard.
        batch: Sentences in a batch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # whatever was drawn before
        batches = Shifted(sounds, batch)
        optimizer = torch.optim.AdamW(network.train().parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=rounds * len(batches))
        letters = [torch.tensor([1 + LETTERS.index(letter) for letter in one]) for one in said]
        for _ in range(rounds):
            for spectrograms, indices in batches.numbered():
                hidden = torch.rand(batch, 1, _BANDS, 1) < 0.05
                scores = network(spectrograms.masked_fill(hidden, -4.0)).log_softmax(-1).transpose(0, 1)
                targets = [letters[index] for index in indices]
                lengths = torch.tensor([len(target) for target in targets])
                frames = torch.full((batch,), len(scores))
                loss = torch.nn.functional.ctc_loss(scores, torch.cat(targets), frames, lengths)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimizer.step()
                schedule.step()
        network.eval()


def spoken(scores: Tensor) -> list[str]:
    """The letters with the highest scores, repetitions and blanks left out.

    Args:
        scores: Of letters at every moment, ``(batch, time, 28)``.

    Returns:
        One text a sentence.

    Examples:
        >>> spoken(torch.eye(28)[torch.tensor([[3, 3, 0, 3, 0, 1, 2, 2]])])
        ['bb a']
    """
    found: list[str] = []
    for symbols in scores.argmax(-1).tolist():
        changed = [symbol for symbol, _ in itertools.groupby(symbols)]
        found.append("".join(LETTERS[symbol - 1] for symbol in changed if symbol).strip())
    return found


def word_errors(heard: str, said: str) -> int:
    """How many words have to be put in, taken out or replaced to make what was said of what was heard.

    Args:
        heard: The words that were heard.
        said: The words that were said.

    Returns:
        The number.

    Examples:
        >>> word_errors("bin blue as now", "bin blue at f now")
        2
    """
    wanted = said.split()
    row = list(range(len(wanted) + 1))
    for count, word in enumerate(heard.split(), start=1):
        last, row[0] = row[0], count
        for place, other in enumerate(wanted, start=1):
            last, row[place] = row[place], min(last + (word != other), row[place] + 1, row[place - 1] + 1)
    return row[-1]
