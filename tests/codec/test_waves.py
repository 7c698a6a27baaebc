"""Waves over a tile: the transform by hand, and the factored map against the convolution that it stands for."""

from __future__ import annotations

import copy
import math
import pickle
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compoff.codec import Geometry
from compoff.codec.waves import WaveMix, cosines, lowest_waves, rides_waves

if TYPE_CHECKING:
    from collections.abc import Callable

CONVOLVE = {1: F.conv1d, 2: F.conv2d}
ENLARGE = {1: F.conv_transpose1d, 2: F.conv_transpose2d}


Y = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


class Analysis(nn.Module):
    """The analysis of a mix as a module's call."""

    def __init__(self, mix: WaveMix) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, y: Tensor) -> Tensor:
        return self.mix.analyze(y)


def mixed(geometry: Geometry, channels: int, seed: int = 0) -> WaveMix:
    """Random weights on random waves."""
    torch.manual_seed(seed)
    mix = WaveMix(geometry, channels)
    mix.start(torch.randn(channels, geometry.channels), torch.randint(math.prod(geometry.tile), (channels,)))
    return mix


def kernel_by_hand(mix: WaveMix) -> Tensor:
    """Weight times cosine, element by element, as the definition says it."""
    tile, kernel = mix.geometry.tile, np.zeros((len(mix.core), mix.geometry.channels, *mix.geometry.tile))
    for channel, wave in enumerate(mix.wave.tolist()):
        orders = np.unravel_index(wave, tile)
        for place in np.ndindex(*tile):
            value = 1.0
            for order, at, side in zip(orders, place, tile, strict=True):
                value *= math.sqrt((2 if order else 1) / side) * math.cos(math.pi * order * (at + 0.5) / side)
            kernel[(channel, slice(None), *place)] = mix.core[channel].detach().numpy() * value
    return torch.from_numpy(kernel).float()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 5), st.integers(2, 11)),
        st.tuples(st.integers(1, 5), st.integers(2, 11), st.integers(2, 11)),
    ),
    stride=st.integers(2, 7),
    channels=st.integers(1, 20),
    batch=st.integers(1, 3),
)
def test_it_is_the_convolution_with_its_kernel_and_back(
    shape: tuple[int, ...], stride: int, channels: int, batch: int
) -> None:
    geometry = Geometry(shape, stride)
    mix, kernel = mixed(geometry, channels), None
    kernel = kernel_by_hand(mix)
    y, axes = geometry.pad(torch.randn(batch, *shape)), len(geometry.tile)
    z = CONVOLVE[axes](y, kernel, stride=geometry.tile)
    torch.testing.assert_close(mix.analyze(y), z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mix.synthesize(z), ENLARGE[axes](z, kernel, stride=geometry.tile), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(mix.kernel, kernel, atol=1e-5, rtol=1e-5)


def test_what_is_multiplied_is_what_it_says() -> None:
    geometry = Geometry((6, 8, 8))
    mix = WaveMix(geometry, 9)
    mix.start(torch.randn(9, 6), torch.tensor([0, 0, 0, 0, 0, 3, 3, 7, 11]))
    # Four tiles of 6 channels and 4 rows. Along a row, two waves (0 and 3) of 4 positions; for each of those, three
    # waves (0, 1 and 2) of 4 rows; then 9 mixes.
    assert mix.macs == 4 * 6 * (4 * 2 * 4 + 2 * 3 * 4 + 9)


def test_weights_bring_their_waves() -> None:
    geometry = Geometry((3, 8, 12))
    mix, other = mixed(geometry, 10, seed=1), mixed(geometry, 10, seed=2)
    y = torch.randn(2, 3, 8, 12)
    expected = mix.analyze(y)
    other.load_state_dict(mix.state_dict())
    assert sorted(mix.state_dict()) == ["core", "wave"]
    for one in (other, copy.deepcopy(mix), pickle.loads(pickle.dumps(mix)), copy.deepcopy(mix).double().float()):
        assert torch.equal(one.analyze(y), expected)


def _copied(mix: WaveMix, other: WaveMix) -> Tensor:
    """As DistributedDataParallel hands weights on."""
    with torch.no_grad():
        for one, its in zip([*mix.parameters(), *mix.buffers()], [*other.parameters(), *other.buffers()], strict=True):
            one.detach().copy_(its)
    return mix.analyze(Y)


def _averaged(mix: WaveMix, other: WaveMix) -> Tensor:
    average = torch.optim.swa_utils.AveragedModel(mix)
    average.update_parameters(other)
    return cast("WaveMix", average.module).analyze(Y)


def _in_place_of(mix: WaveMix, other: WaveMix) -> Tensor:
    called = Analysis(mix)
    return torch.func.functional_call(called, Analysis(other).state_dict(), (Y,))


def _made_a_program(mix: WaveMix, other: WaveMix) -> Tensor:
    """Copied, and exported before it has run."""
    with torch.no_grad():
        mix.core.copy_(other.core)
        mix.wave.copy_(other.wave)
    mix.settle()
    return torch.export.export(Analysis(mix), (Y,)).module()(Y)


def _in_inference_mode(mix: WaveMix, other: WaveMix) -> Tensor:
    with torch.inference_mode():
        late = copy.deepcopy(mix)
        late.core.copy_(other.core)
        late.wave.copy_(other.wave)
        return late.analyze(Y)


@pytest.mark.parametrize("way", [_copied, _averaged, _in_place_of, _made_a_program, _in_inference_mode])
def test_weights_bring_their_waves_by_whatever_way_they_come(way: Callable[[WaveMix, WaveMix], Tensor]) -> None:
    geometry = Geometry((3, 8, 12))
    mix, other = mixed(geometry, 10, seed=1), mixed(geometry, 10, seed=2)
    mine, expected = mix.analyze(Y), other.analyze(Y)
    torch.testing.assert_close(way(mix, other), expected)
    if way is _in_place_of:
        assert torch.equal(mix.analyze(Y), mine)


def test_what_is_derived_from_waves_is_no_buffer() -> None:
    assert [name for name, _ in mixed(Geometry((3, 8, 12)), 10).named_buffers()] == ["wave"]


def test_every_weight_learns() -> None:
    mix = mixed(Geometry((3, 8, 8)), 12)
    mix.synthesize(mix.analyze(torch.randn(2, 3, 8, 8))).square().sum().backward()
    assert mix.core.grad is not None
    assert bool((mix.core.grad != 0).all())


def test_the_slowest_waves_are_kept_where_not_all_can_be() -> None:
    assert lowest_waves(Geometry((64, 8, 8), 8)) == list(range(64))
    kept = lowest_waves(Geometry((2048, 14, 14), 7))
    assert len(kept) == 16
    assert {0, 1, 7, 8} <= set(kept)
    assert not {6, 42, 48} & set(kept)


@pytest.mark.parametrize("tile", [(), (4,), (3, 5)])
def test_cosines_are_orthonormal_and_begin_with_the_mean(tile: tuple[int, ...]) -> None:
    waves = cosines(tile)
    positions = math.prod(tile)
    torch.testing.assert_close(waves @ waves.T, torch.eye(positions, dtype=torch.float64))
    torch.testing.assert_close(waves[0], torch.full((positions,), positions**-0.5, dtype=torch.float64))


def test_narrow_tiles_ride_none() -> None:
    assert not rides_waves(Geometry((4096,)))
    assert not rides_waves(Geometry((256, 8, 8)))
    assert rides_waves(Geometry((257, 8, 8)))


def test_a_move_that_changes_nothing_arranges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mix = mixed(Geometry((3, 8, 12)), 10)
    monkeypatch.setattr(WaveMix, "_arrange", lambda _: pytest.fail("arranged anew"))
    mix.to(Y).analyze(Y)


def test_room_is_made_before_the_waves_come() -> None:
    geometry = Geometry((3, 8, 12))
    with torch.device("meta"):
        mix = WaveMix(geometry, 10)
    mix.to_empty(device="cpu")
    other = mixed(geometry, 10, seed=2)
    mix.load_state_dict(other.state_dict())
    assert torch.equal(mix.analyze(Y), other.analyze(Y))
