"""The task of a speech recognizer: its words, its errors, and that it can be taught."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import sentences
from benchmarks.networks import data_folder
from benchmarks.sentences import LETTERS, Recognizer, SentenceTask, Shifted, spoken, word_errors


@pytest.mark.parametrize(
    ("heard", "said", "errors"),
    [
        ("bin blue at f two now", "bin blue at f two now", 0),
        ("", "bin blue", 2),
        ("bin", "bin blue", 1),
        ("bin bin blue", "bin blue", 1),
        ("blue bin", "bin blue", 2),
        ("bin flew at", "bin blue", 2),
    ],
)
def test_word_errors_are_the_fewest_edits(heard: str, said: str, errors: int) -> None:
    assert word_errors(heard, said) == errors


def scores_of(*texts: str) -> torch.Tensor:
    """Scores in which each letter is highest twice, with a blank behind it."""
    symbols = [[symbol for letter in text for symbol in (1 + LETTERS.index(letter),) * 2 + (0,)] for text in texts]
    longest = max(map(len, symbols))
    return torch.eye(28)[torch.tensor([one + [0] * (longest - len(one)) for one in symbols])]


def test_letters_are_read_off_the_scores() -> None:
    assert spoken(scores_of("see all", "be")) == ["see all", "be"]


def test_a_drop_is_that_of_paired_word_errors() -> None:
    said = ["bin blue at", "set red by", "lay green in", "place white with"]
    blank = torch.empty(4, 1, 40, 8)
    none = torch.zeros(4, 8)
    task = SentenceTask("deepspeech", Recognizer(), None, blank, none, (0, 0, 0), (1, 1, 1), none, said)
    found = task.compared(
        scores_of("bin blue at", "set red my", *said[2:]), scores_of("bin blue", "set red by", *said[2:])
    )
    # One error before, one after, in other sentences; three words each.
    assert found["word_error_rate"] == pytest.approx(100 / 12)
    assert found["drop"] == pytest.approx(0)
    assert found["drop_stderr"] == pytest.approx(100 * np.std([1 / 3, -1 / 3, 0, 0], ddof=1) / 2)
    assert found["agreement"] == 0.5


def test_batches_are_spectrograms_of_whole_sentences() -> None:
    batches = list(Shifted(torch.randn(5, 47_648), batch=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 40, 296)] * 2
    assert tuple(Recognizer().eval()(batches[0]).shape) == (2, 148, 28)


def test_teaching_is_the_same_each_time() -> None:
    sounds = torch.randn(2, 47_648)
    networks = [Recognizer(), Recognizer()]
    for network in networks:
        sentences.train(network, sounds, ["bin", "set"], rounds=2, batch=2)
        assert not network.training
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.data
def test_the_recognizer_is_as_right_as_it_is_known_to_be() -> None:
    if not sentences._STATE.exists():
        pytest.skip("teaching takes ten minutes; run benchmarks.rate_accuracy --model deepspeech once")
    task = sentences.load_sentences(data_folder(), batch=32)
    with torch.inference_mode():
        scores = torch.cat([task.net(batch) for batch in task.test.split(50)])
    assert task.compared(scores, scores)["word_error_rate"] < 10
    assert (len(task.words), len(task.train.sounds)) == (200, 800)
