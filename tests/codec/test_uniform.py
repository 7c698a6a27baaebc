"""The uniform quantizer: whole steps, their multiples, and the agreement of both sides on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compoff.codec import UniformQuantizer
from compoff.codec.uniform import coarsen
from compoff.coding import levels
from compoff.errors import FeatureError


@given(step=st.integers(1, 63), value=st.integers(-127, 127))
def test_coarsen_gives_the_nearest_multiple(step: int, value: int) -> None:
    found = float(coarsen(torch.tensor(float(value)), step))
    assert found % step == 0
    assert abs(found - value) <= step / 2
    assert float(coarsen(torch.tensor(float(value)), torch.tensor(float(step)))) == found


@given(half=st.integers(1, 127), data=st.data())
def test_torch_and_the_integers_of_the_wire_agree(half: int, data: st.DataObject) -> None:
    num_levels = 2 * half + 1
    step = data.draw(st.integers(1, half))
    symbols = np.arange(num_levels, dtype=np.uint8)
    sent = levels.coarsen(symbols, num_levels, step)
    received = levels.refine(sent, num_levels, step)
    in_torch = coarsen(torch.arange(num_levels).float() - half, step).clamp(-half, half) + half
    assert received.tolist() == in_torch.tolist()
    assert int(sent.max()) + 1 == levels.num_coarse(num_levels, step)


def test_a_symbol_is_the_nearest_step_and_the_outermost_beyond() -> None:
    quantizer = UniformQuantizer(channels=2, num_levels=5)
    with torch.no_grad():
        quantizer.log_gain.copy_(torch.tensor([1.0, 2.0]).log())
        quantizer.offset.copy_(torch.tensor([10.0, 0.0]))
    latent = torch.tensor([[[10.4, 10.6, 99.0], [0.2, 0.3, -99.0]]])
    symbols = quantizer.symbols(latent)
    assert symbols.dtype == torch.uint8
    assert symbols.tolist() == [[[2, 3, 4], [2, 3, 0]]]
    # Around the offset: what is not sent counts as zero.
    torch.testing.assert_close(quantizer.dequantize(symbols), torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.5, -1.0]]]))


@pytest.mark.parametrize("num_levels", [3, 255])
def test_the_fewest_and_the_most_levels_are_taken(num_levels: int) -> None:
    assert UniformQuantizer(1, num_levels).num_centers == num_levels


@pytest.mark.parametrize("num_levels", [1, 2, 8, 257])
def test_levels_that_cannot_be_used_are_refused(num_levels: int) -> None:
    with pytest.raises(FeatureError, match=f"num_centers is {num_levels}"):
        UniformQuantizer(1, num_levels)
