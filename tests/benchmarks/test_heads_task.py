"""The figures of a runtime beside PyTorch's: views of one image are one image."""

from __future__ import annotations

import pytest
import torch

from benchmarks.heads_task import Found, views


def test_views_begin_with_the_middle() -> None:
    images = torch.randn(2, 3, 227, 227)
    first, second, third = views(images, 3)
    assert torch.equal(first, images[:, :, 1:225, 1:225])
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, images[:, :, :224, :224])


def test_the_error_is_that_of_the_images() -> None:
    plain = Found([[True, True, True, True]] * 2, [[True] * 4] * 2)
    other = Found(
        [[False, True, True, True], [True, True, False, True]], [[False, True, True, True]] * 2, [10], [False], [0.5]
    )
    row = other.row(plain, [True, True, False, True])
    assert row["extra_drop"] == pytest.approx(25.0)
    assert row["extra_drop_stderr"] == pytest.approx(100 * torch.tensor([0.5, 0, 0.5, 0]).std().item() / 2)
    assert row["drop"] == pytest.approx(0.0)
    assert (row["images"], row["views"], row["agreement"]) == (4, 2, 0.75)
