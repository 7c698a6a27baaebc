"""Sounds of the benchmarks: packets of Opus, what FLAC keeps, how long a sound is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import sounds

if TYPE_CHECKING:
    from pathlib import Path


def test_packets_of_an_ogg_file_are_counted_without_its_headers() -> None:
    def page(*segments: int) -> bytes:
        return b"OggS" + bytes(22) + bytes([len(segments), *segments]) + bytes(sum(segments))

    # Two headers; packets of 10, of 255 + 3 over two pages, and of 255 exactly, which takes an empty segment to end.
    assert sounds.packets(page(19) + page(40) + page(10, 255) + page(3, 255, 0)) == [10, 258, 255]


def test_opus_has_a_packet_for_every_twentieth_of_a_second() -> None:
    tone = torch.sin(torch.arange(16_000) * 0.2) / 2
    low, high = (sounds.packets(sounds.encoded(tone, level)) for level in (1.0, 0.8))
    assert len(low) == len(high) == 51  # and one for the delay
    assert sum(low) < sum(high)


def test_flac_loses_no_more_than_sixteen_bits_do() -> None:
    tone = torch.sin(torch.arange(16_000) * 0.2) / 2
    decoded = sounds.decoded(sounds.encoded(tone, None), 16_000)
    np.testing.assert_allclose(decoded, tone, atol=2**-15)


def test_what_is_decoded_is_as_long_as_it_is_to_be() -> None:
    data = sounds.encoded(torch.ones(100), None)
    assert [float(sounds.decoded(data, samples).sum()) for samples in (60, 100, 160)] == pytest.approx(
        [60, 100, 100], rel=1e-3
    )


def test_a_sound_of_another_rate_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "tone.flac", np.zeros(80), 8000)
    with pytest.raises(ValueError, match=r"'tone\.flac' has 8000 samples a second; expected 16000"):
        sounds.read_sound(tmp_path / "tone.flac")
