"""The task of a keyword spotter: seconds to fit on, packets of Opus, the figure that its weights are known by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import keywords
from benchmarks.networks import data_folder


def test_batches_are_spectrograms_of_a_second_each() -> None:
    sounds = [torch.full((16_000 + 100 * extra,), float(extra + 1)) for extra in range(5)]
    batches = list(keywords.Sentences(sounds, batch=2))
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 40, 32)] * 2


def test_packets_of_an_ogg_file_are_counted_without_its_headers() -> None:
    def page(*segments: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(segments), *segments]) + bytes(sum(segments))

    # Two headers; packets of 10, of 255 + 3 over two pages, and of 255 exactly, which takes an empty segment to end.
    assert keywords.packets(page(19) + page(40) + page(10, 255) + page(3, 255, 0)) == [10, 258, 255]


def test_opus_has_a_packet_for_every_twentieth_of_a_second() -> None:
    tone = torch.sin(torch.arange(16_000) * 0.2) / 2
    low, high = (keywords.packets(keywords.encoded(tone, level)) for level in (1.0, 0.8))
    assert len(low) == len(high) == 51  # and one for the delay
    assert sum(low) < sum(high)


def test_flac_loses_no_more_than_sixteen_bits_do() -> None:
    tone = torch.sin(torch.arange(16_000) * 0.2) / 2
    decoded = keywords.decoded(keywords.encoded(tone, None))
    np.testing.assert_allclose(decoded, tone, atol=2**-15)


@pytest.mark.data
def test_the_keyword_spotter_is_as_right_as_it_is_known_to_be() -> None:
    task = keywords.load_keywords(data_folder(), batch=64)
    with torch.inference_mode():
        found = task.net(task.test).argmax(1)
    assert float((found == task.labels).double().mean()) == pytest.approx(296 / 300)
    assert len(task.train.sounds) == 1000
