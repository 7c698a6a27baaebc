"""Directions: principal components where everything counts alike, and the ones that count where it does not."""

from __future__ import annotations

import pytest
import torch

from compoff.codec import Geometry, TileMoments
from compoff.errors import FeatureError


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 7, 9), (4, 16), (10,)])
def test_tiles_are_laid_out_as_the_kernel_is(shape: tuple[int, ...]) -> None:
    from compoff.codec import Encoder

    geometry, y = Geometry(shape), torch.randn(2, *shape)
    encoder = Encoder(geometry, 3)
    by_hand = (geometry.tiles(y) @ encoder.weight.flatten(1).T).view(2, -1, 3).transpose(1, 2)
    torch.testing.assert_close(by_hand.reshape(encoder(y).shape), encoder(y), atol=1e-5, rtol=1e-5)


def test_with_equal_sensitivity_they_are_the_principal_components() -> None:
    torch.manual_seed(0)
    y = torch.randn(4000, 6) * torch.tensor([5.0, 1.0, 3.0, 0.1, 0.5, 2.0]) + 7
    moments = TileMoments(Geometry((6,)))
    moments.add(y, torch.randn(4000, 6))
    found = moments.directions(3)
    assert [int(row.abs().argmax()) for row in found.analysis] == [0, 2, 5]
    torch.testing.assert_close(found.mean, y.mean(0))
    ratio = found.deviation / y.std(0)[[0, 2, 5]]
    torch.testing.assert_close(ratio / ratio[0], torch.ones(3), atol=0.1, rtol=0.1)


def test_what_the_output_depends_on_comes_first() -> None:
    torch.manual_seed(0)
    y = torch.randn(4000, 4) * torch.tensor([5.0, 1.0, 1.0, 1.0])
    slopes = torch.randn(4000, 4) * torch.tensor([0.01, 0.01, 3.0, 0.01])
    moments = TileMoments(Geometry((4,)))
    moments.add(y, slopes)
    assert int(moments.directions(1).analysis[0].abs().argmax()) == 2


def test_all_directions_together_lose_nothing() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(8, 8)
    y = torch.randn(500, 8) @ mixing
    moments = TileMoments(Geometry((2, 8), stride=4))
    moments.add(y.view(-1, 2, 4).repeat(1, 1, 2), torch.randn(500, 2, 8))
    found = moments.directions(8)
    torch.testing.assert_close((y - found.mean) @ found.analysis.T @ found.synthesis + found.mean, y, atol=1e-3, rtol=0)


def test_batches_add_up() -> None:
    y, slopes = torch.randn(60, 3, 8), torch.randn(60, 3, 8).sign()  # of one size, so that batches weigh alike
    whole, parts = (TileMoments(Geometry((3, 8), stride=4)) for _ in range(2))
    whole.add(y, slopes)
    for index in range(0, 60, 20):
        parts.add(y[index : index + 20], slopes[index : index + 20])
    torch.testing.assert_close(whole.directions(4).deviation, parts.directions(4).deviation)


def test_a_tile_that_is_too_large_is_refused() -> None:
    with pytest.raises(FeatureError, match="has 5000 elements"):
        TileMoments(Geometry((5000,)))
