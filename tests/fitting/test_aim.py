from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import compoff
from compoff.errors import FitError
from compoff.fitting.aim import Aim
from compoff.fitting.overhead import overhead_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.wrapping import Wrapped


def blocks(*split_points: str) -> Wrapped:
    """A small network with three split points of different sizes, or with some of them."""
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 4))
    return compoff.wrap(net, split_points or ["input", "2", "5"], example_input=torch.zeros(2, 3, 8, 8))


def images() -> list[torch.Tensor]:
    return [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def test_an_aim_that_nothing_keeps_to_takes_the_nearest() -> None:
    curve: list[dict[str, Any]] = [
        {"bytes": 50.0, "agreement": 0.9, "output_error": 0.2},
        {"bytes": 90.0, "agreement": 0.95, "output_error": 0.1},
    ]
    assert Aim(target_bytes=10).choose("input", curve) == 0
    assert Aim(target_bytes=60).choose("input", curve) == 0
    assert Aim(target_bytes=95).choose("input", curve) == 1
    assert Aim(max_drop=0.01).choose("input", curve) == 1
    assert not Aim(max_drop=0.1).met("input", {"bytes": 1.0, "agreement": None})
    assert not Aim(target_bytes=10).met("input", {"bytes": 11.0, "agreement": 1.0})


def test_more_bytes_are_not_better_where_they_were_measured_to_change_more() -> None:
    curve: list[dict[str, Any]] = [
        {"bytes": 50.0, "agreement": 0.94, "output_error": 0.02},
        {"bytes": 80.0, "agreement": 0.95, "output_error": 0.01},
        {"bytes": 90.0, "agreement": 0.95, "output_error": 0.011},
        {"bytes": 99.0, "agreement": 0.96, "output_error": 0.001},
    ]
    assert [Aim(target_bytes=target).choose("input", curve) for target in (60, 80, 95, 100)] == [0, 1, 1, 3]


def test_a_share_in_single_precision_that_is_met_exactly_is_met() -> None:
    kept = float(torch.tensor(0.95))
    assert kept < 0.95
    assert Aim(max_drop=0.05).met("input", {"agreement": kept})


@pytest.mark.parametrize("samples", [100, 2048, 10_000, 50_000])
def test_a_drop_that_is_exactly_what_may_be_is_within_the_aim(samples: int) -> None:
    for percent in range(1, 100):
        changed, allowed = percent * samples // 100, Aim(max_drop=percent / 100)
        assert allowed.met("input", {"agreement": (samples - changed) / samples})
        assert not allowed.met("input", {"agreement": (samples - changed - 1) / samples})


def test_each_split_point_is_fitted_for_bytes_of_its_own() -> None:
    model, asked = blocks(), {"input": 60.0, "2": 45}
    report = compoff.fit(model, images(), steps=20, target_bytes=asked)
    for split, target in asked.items():
        aimed = report.splits[split]
        assert aimed.aim_met is True
        # The ladder is around the target, with rates on both sides of it.
        assert aimed.curve[0]["bytes"] < target < aimed.curve[-1]["bytes"]
        assert aimed.bytes > 0.7 * target
    assert report.splits["5"].aim_met is None
    assert report.splits["5"].quality == len(report.splits["5"].curve) - 1


def test_calibrate_and_finish_take_bytes_of_each_split_point(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = blocks(), images()
    compoff.calibrate(model, batches, target_bytes={"input": 90, "2": 100})
    least = overhead_bytes(model, "2") + 1
    report = compoff.finish(model, batches, target_bytes={"input": 90, "2": least})
    assert report.splits["input"].aim_met is True
    assert report.splits["2"].aim_met is False
    assert f"no quality at '2' keeps to target_bytes={least}; the default is the nearest" in caplog.text
    assert report.splits["5"].aim_met is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            {"layer9": 100},
            "target_bytes names 'layer9', which is no split point of this .* it has 'input', '2', '5'",
        ),
        ({2: 100}, "target_bytes names 2, which is no split point"),
        ({"2": 0}, "target_bytes of '2' is 0; expected a number of bytes above 0"),
        ({"2": None}, "target_bytes of '2' is None; expected a number of bytes above 0"),
        ({"2": "100"}, "target_bytes of '2' is '100'; expected a number of bytes above 0"),
        ({"2": float("nan")}, "target_bytes of '2' is nan; expected"),
        ({}, "target_bytes is empty; name a split point with its bytes, or leave it out"),
        ([100, 200], r"target_bytes is \[100, 200\]; expected a number of bytes above 0"),
    ],
)
def test_bytes_that_cannot_be_meant_are_refused_before_anything_is_changed(asked: Any, told: str) -> None:
    model = blocks()
    for call in (
        lambda: compoff.fit(model, images(), steps=1, target_bytes=asked),
        lambda: compoff.calibrate(model, images(), target_bytes=asked),
    ):
        with pytest.raises(FitError, match=told):
            call()
        assert not any(model.bottleneck(split).calibrated for split in model.split_points)


def test_a_name_is_known_once_automatic_split_points_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    model = compoff.wrap(net, "auto")
    with pytest.raises(FitError, match="target_bytes names 'nothing', which is no split point of this model; it has"):
        compoff.fit(model, images(), steps=1, target_bytes={"nothing": 100})
    found = model.split_points[0]
    report = compoff.fit(model, images(), steps=1, target_bytes={found: 300})
    assert report.splits[found].aim_met is not None


def test_a_fit_goes_on_only_for_the_same_bytes(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    compoff.fit(blocks("2"), images(), steps=2, target_bytes={"2": 150}, resume=state)
    again = compoff.fit(blocks("2"), images(), steps=2, target_bytes={"2": 150}, resume=state)
    assert again.steps == 2
    with pytest.raises(FitError, match="was written by a fit with target_bytes="):
        compoff.fit(blocks("2"), images(), steps=2, target_bytes={"2": 160}, resume=state)


def test_numbers_of_numpy_are_kept_and_saved_as_others_are(tmp_path: Path) -> None:
    state, x = tmp_path / "state.safetensors", images()

    def fitted(whole: Any, real: Any, target: Any) -> tuple[Wrapped, compoff.FitReport]:
        model = blocks("2")
        recipe = compoff.Recipe("transform", betas=(real(0.5), real(0.75)), warmup=whole(1))
        return model, compoff.fit(
            model, x, steps=whole(2), lr=real(0.5), rate=real(0.25), target_bytes=target, seed=whole(3), recipe=recipe,
            resume=state,
        )  # fmt: skip

    model, report = fitted(np.int64, np.float32, {"2": np.float32(150)})
    assert report.splits["2"].aim_met in (True, False)
    model.save(tmp_path / "model.safetensors")
    again, _ = fitted(int, float, {"2": 150})  # goes on, since these are the same numbers
    torch.testing.assert_close(again.bottlenecks.state_dict(), model.bottlenecks.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("aim", [{"target_bytes": np.int64(150)}, {"max_drop": np.float64(0.1)}])
def test_what_is_finished_for_numbers_of_numpy_can_be_saved(aim: dict[str, Any], tmp_path: Path) -> None:
    model, x = blocks("2"), images()
    compoff.calibrate(model, x, target_bytes=aim.get("target_bytes"), seed=np.int64(3))  # type: ignore[arg-type]
    compoff.finish(model, x, **aim)
    model.save(tmp_path / "model.safetensors")
    assert model.reports["2"]["aim_met"] in (True, False)
