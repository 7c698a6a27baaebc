"""Bytes that a latent cannot take are told of, with the reason: its sizes, or what started it before."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import compoff
from compoff.fitting.reach import most_bytes, tell_of_what_is_left_out


def pictures() -> torch.Tensor:
    return torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def wrapped(channels: int, stride: int, width: int = 16) -> compoff.Wrapped:
    torch.manual_seed(0)
    ends = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 3, padding=1), nn.ReLU(), *ends
    )
    return compoff.wrap(net.eval(), "1", example_input=pictures()[:2], channels=channels, stride=stride)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "compoff.fit")
    return caplog


@pytest.mark.parametrize("calibrated", [False, True])
def test_more_bytes_than_the_latent_has_room_for(told: pytest.LogCaptureFixture, calibrated: bool) -> None:
    model = wrapped(channels=2, stride=16, width=4)
    if calibrated:
        compoff.calibrate(model, [pictures()], target_bytes=2000)
        assert "a payload at '1' takes at most 9 bytes" in told.text
        told.clear()
    report = compoff.fit(model, [pictures()], steps=1, target_bytes=2000)
    assert (
        "target_bytes is 2000, but a payload at '1' takes at most 9 bytes with channels=2 and stride=16; "
        "wrap with more channels or a smaller stride" in told.text
    )
    assert "earlier" not in told.text
    assert "the best quality" not in told.text
    assert report.splits["1"].curve[-1]["bytes"] <= most_bytes(model, "1") == 9


def test_bytes_within_reach_are_not_spoken_of(told: pytest.LogCaptureFixture) -> None:
    model = wrapped(channels=16, stride=4)
    compoff.calibrate(model, [pictures()], target_bytes=150)
    compoff.fit(model, [pictures()], steps=1, target_bytes=150)
    assert "target_bytes is" not in told.text


@pytest.mark.parametrize(
    ("first", "reason"), [(231, "say no more with channels=16"), (30, "an earlier fit or calibrate")]
)
def test_a_best_quality_below_the_aim_has_one_reason(told: pytest.LogCaptureFixture, first: int, reason: str) -> None:
    model = wrapped(channels=16, stride=4)
    assert most_bytes(model, "1") == 231
    compoff.calibrate(model, [pictures()], target_bytes=first)
    compoff.fit(model, [pictures()], steps=1, target_bytes=231)
    said = [record.getMessage() for record in told.records if "target_bytes is 231" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]


def test_nothing_is_advised_that_there_is_not(told: pytest.LogCaptureFixture) -> None:
    model = compoff.wrap(nn.Linear(6, 2), "input", example_input=torch.zeros(2, 6), channels=6)
    compoff.fit(model, [torch.randn(64, 6)], steps=1, target_bytes=100)
    assert "with channels=6, which is all there is" in told.text


def flat(width: int, channels: int) -> compoff.Wrapped:
    """A map of independent numbers, every one of which the answer needs."""
    return compoff.wrap(nn.Linear(width, width), "input", example_input=torch.zeros(2, width), channels=channels)


@pytest.mark.parametrize(("channels", "warned"), [(24, True), (64, False)])
def test_channels_that_leave_out_what_the_answer_needs(
    told: pytest.LogCaptureFixture, channels: int, warned: bool
) -> None:
    torch.manual_seed(0)
    model, batches = flat(64, channels), [torch.randn(256, 64)]
    compoff.calibrate(model, batches, target_bytes=30)
    compoff.finish(model, batches)
    assert ("more bytes bring little at 'input': the error of the output is " in told.text) == warned
    assert ("lost at any rate with channels=24; wrap with more channels to use them" in told.text) == warned


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"bytes": size, "output_error": error} for size, error in points]


# The error has to fall with the bytes to the power of 0.4: by 1.32 where they double.
@pytest.mark.parametrize(
    ("points", "warned"),
    [
        (curve((50, 0.9), (100, 0.25), (200, 0.2)), True),
        (curve((50, 0.9), (100, 0.27), (200, 0.2)), False),
        (curve((50, 0.9), (100, 0.1), (200, 0.3)), True),  # it may rise
        (curve((50, 0.9), (100, 0.0), (200, 0.3)), True),
        (curve((50, 0.9), (100, 0.049), (200, 0.049)), False),  # little is left to lose
        (curve((50, 0.9), (100, 0.25), (119, 0.25)), False),  # hardly more bytes were tried
        (curve((100, 0.25)), False),
        (curve((50, 0.9), (100, 0.25), (200, float("nan"))), False),
    ],
)
def test_the_error_has_to_fall_with_the_bytes(
    told: pytest.LogCaptureFixture, points: list[dict[str, float]], warned: bool
) -> None:
    tell_of_what_is_left_out(flat(8, 4), "input", points)
    assert ("more bytes bring little" in told.text) == warned
