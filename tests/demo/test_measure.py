"""Rows against figures worked out by hand, from calls whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.demo.measure import Call, Way, measure

LABELS = torch.tensor([0, 1, 1, 0])
REFERENCE = [0, 1, 1, 1]  # right three times


def scores(chosen: int) -> np.ndarray:
    return np.eye(2, dtype=np.float32)[chosen]


def test_row_of_a_way_that_sends() -> None:
    chosen, edge, up = [0, 1, 0, 1], [0.002, 0.002, 0.002, 9.0], [100, 100, 100, 200]
    row = measure(
        Way("png", "PNG", lambda i: Call(scores(chosen[i]), 0.001, edge[i], 0.003, up[i], 61)), LABELS, REFERENCE
    )
    assert (row.accuracy, row.drop, row.agreement) == (50.0, 25.0, 75.0)
    assert row.drop_stderr == pytest.approx(25.0)  # differences 0, 0, 100, 0: deviation 50, over the root of 4
    assert (row.bytes_up, row.bytes_down, row.images) == (125.0, 61.0, 4)
    assert (row.device_ms, row.edge_ms, row.loopback_ms) == pytest.approx((1.0, 2.0, 3.0))
    assert row.link_ms["1 Mbit/s"] == pytest.approx(1 + 2 + 20 + 8 * 186 / 1000)


def test_row_of_staying_on_the_device_needs_no_link() -> None:
    row = measure(Way("local", "here", lambda i: Call(scores(REFERENCE[i]), 0.004, 0.0, 0.004)), LABELS, REFERENCE)
    assert (row.drop, row.drop_stderr, row.agreement) == (0.0, 0.0, 100.0)
    assert set(row.link_ms.values()) == {row.device_ms}
    assert row.device_ms == pytest.approx(4.0)


def test_every_image_is_answered_after_the_warm_up() -> None:
    seen: list[int] = []

    def call(index: int) -> Call:
        seen.append(index)
        return Call(scores(0), 0.0, 0.0, 0.0)

    measure(Way("local", "here", call), LABELS, REFERENCE)
    assert seen[-4:] == [0, 1, 2, 3]
