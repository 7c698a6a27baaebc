"""The adapter: nothing until it is trained, then a scale and a shift a channel."""

from __future__ import annotations

import pytest
import torch

from compoff.codec import Adapter


@pytest.mark.parametrize(("shape", "axis"), [((2, 8, 3, 3), 1), ((2, 5, 8), -1), ((2, 8), 1)])
def test_adapter_is_a_scale_and_a_shift_for_each_channel(shape: tuple[int, ...], axis: int) -> None:
    adapter, y = Adapter([(4, 1), (8, axis)]), torch.randn(shape)
    assert torch.equal(adapter(1, y), y)
    torch.nn.init.normal_(adapter.deltas[1])
    scale, shift = adapter.deltas[1]
    expected = torch.stack([one * (1 + a) + b for one, a, b in zip(y.unbind(axis), scale, shift, strict=True)], axis)
    torch.testing.assert_close(adapter(1, y), expected)


def test_adapter_keeps_the_dtype_and_says_its_size() -> None:
    adapter = Adapter([(4, 1), (8, -1)])
    assert adapter(0, torch.zeros(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert adapter.bytes == 4 * 2 * (4 + 8)


def test_nothing_reaches_every_number() -> None:
    adapter = Adapter([(4, 1), (8, -1)])
    adapter.nothing().backward()
    assert all(delta.grad is not None and not delta.grad.any() for delta in adapter.parameters())
