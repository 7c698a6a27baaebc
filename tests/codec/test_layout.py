"""Axes of a feature: to channels first and back, whatever the model's order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compoff.codec.layout import Layout

LAYOUTS = [
    (Layout((0, 1, 2, 3)), (2, 5, 3, 4), (5, 3, 4)),
    (Layout((0, 3, 1, 2)), (2, 3, 4, 5), (5, 3, 4)),
    (Layout((0, 2, 1)), (2, 7, 5), (5, 7)),
    (Layout((1, 2, 0)), (7, 2, 5), (5, 7)),
    (Layout((0, 1)), (2, 5), (5,)),
    (Layout((0, 1, 2, 3, 4)), (2, 5, 3, 4, 6), (5, 12, 6)),
    (Layout((0, 4, 1, 2, 3)), (2, 3, 4, 6, 5), (5, 12, 6)),
    (Layout((0, 2, 1), grid=(3, 4)), (2, 12, 5), (5, 3, 4)),
    (Layout((0, 2, 1), grid=(3, 4), leading=2), (2, 14, 5), (5, 4, 4)),
]


@pytest.mark.parametrize(("layout", "shape", "packed"), LAYOUTS)
def test_there_and_back(layout: Layout, shape: tuple[int, ...], packed: tuple[int, ...]) -> None:
    y = torch.randn(shape)
    batch = layout.batch_axis()
    like = shape[:batch] + shape[batch + 1 :]
    assert tuple(layout.pack(y).shape) == (2, *packed)
    assert layout.packed_shape(like) == packed
    assert torch.equal(layout.unpack(layout.pack(y), like), y)


def test_a_feature_that_needs_no_change_is_itself() -> None:
    y = torch.randn(2, 3, 4, 5)
    assert Layout.channels_first(4).pack(y) is y


def test_where_every_value_goes() -> None:
    y = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # batch, height, width, channels
    packed = Layout((0, 3, 1, 2)).pack(y)
    assert all(
        packed[b, c, h, w] == y[b, h, w, c] for b in range(2) for c in range(5) for h in range(3) for w in range(4)
    )


def test_the_class_token_stands_below_the_map_and_fills_its_row() -> None:
    tokens = torch.arange(7.0).reshape(1, 7, 1)
    packed = Layout((0, 2, 1), grid=(2, 3), leading=1).pack(tokens)
    assert packed[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]


@given(st.permutations(range(4)), st.integers(1, 3))
def test_any_order_comes_back(order: list[int], batch: int) -> None:
    layout = Layout(tuple(order))
    sizes = {0: batch, 1: 2, 2: 3, 3: 5}
    shape = tuple(sizes[order.index(axis)] for axis in range(4))
    y = torch.randn(shape)
    where = layout.batch_axis()
    assert torch.equal(layout.unpack(layout.pack(y), shape[:where] + shape[where + 1 :]), y)
