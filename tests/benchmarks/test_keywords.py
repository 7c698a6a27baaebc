"""The task of a keyword spotter: seconds to fit on, and the figure that its weights are known by."""

from __future__ import annotations

import pytest
import torch

from benchmarks import keywords
from benchmarks.networks import data_folder


def test_batches_are_spectrograms_of_a_second_each() -> None:
    sounds = [torch.full((16_000 + 100 * extra,), float(extra + 1)) for extra in range(5)]
    batches = list(keywords.Seconds(sounds, batch=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 40, 32)] * 2


@pytest.mark.data
def test_the_keyword_spotter_is_as_right_as_it_is_known_to_be() -> None:
    task = keywords.load_keywords(data_folder(), batch=64)
    with torch.inference_mode():
        found = task.net(task.test).argmax(1)
    assert float((found == task.labels).double().mean()) == pytest.approx(296 / 300)
    assert len(task.train.sounds) == 1000
