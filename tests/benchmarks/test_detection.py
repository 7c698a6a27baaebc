"""The task of a detector: mosaics to fit on, paired precision, the figures that its weights are known by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.boxes import Boxes, detected, matched, mean_precision
from benchmarks.detection import DetectionTask, Mosaics, load_detection
from benchmarks.networks import data_folder


def test_a_mosaic_holds_four_photos_never_enlarged() -> None:
    pixels = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 224, 224)
    batches = list(Mosaics(pixels, batch=2, size=320))
    assert [tuple(batch.shape) for batch in batches] == [(2, 3, 320, 320)]
    corners = batches[0][:, 0, ::319, ::319].flatten() * 255
    assert sorted(corners.round().tolist()) == list(range(8))
    quarters = batches[0].unflatten(2, (2, 160)).unflatten(4, (2, 160))
    torch.testing.assert_close(quarters.std((3, 5)), torch.zeros(2, 3, 2, 2), atol=1e-6, rtol=0)


def test_photos_that_are_too_small_for_a_quarter_are_taken_whole() -> None:
    (batch,) = Mosaics(torch.full((4, 3, 100, 100), 255, dtype=torch.uint8), batch=1, size=320)
    torch.testing.assert_close(batch, torch.ones(1, 3, 320, 320))


def test_the_drop_is_paired_over_the_same_draws_of_images() -> None:
    # One class, one box an image: the student loses every second one.
    place = torch.tensor([0.5, 0.5, 0.4, 0.4, 1.0, 0.9])
    teacher = place.repeat(20, 1, 1)
    student = teacher.clone()
    student[::2, :, 4] = 0
    label = Boxes(np.zeros(1, np.int64), np.ones(1), np.array([[0.3, 0.3, 0.7, 0.7]]))
    blank = torch.zeros(20, 3, 8, 8)
    task = DetectionTask("", torch.nn.Identity(), [], blank, torch.zeros(20), (0, 0, 0), (1, 1, 1), [label] * 20)
    same, found = task.compared(teacher, teacher), task.compared(teacher, student)
    assert same == {"map50": 100.0, "drop": 0.0, "drop_stderr": 0.0, "agreement": 1.0}
    assert found["map50"] == pytest.approx(100 * 51 / 101)
    assert found["drop"] == pytest.approx(100 - found["map50"])
    assert found["drop_stderr"] == pytest.approx(100 * 0.5 / np.sqrt(20), rel=0.1)  # a share's, of twenty
    assert found["agreement"] == pytest.approx(2 / 3)


@pytest.mark.data
@pytest.mark.parametrize(("name", "expected"), [("yolo-fastest-1.1", 0.365), ("yolo-fastest-1.1-xl", 0.445)])
def test_the_detectors_are_as_precise_as_they_are_known_to_be(name: str, expected: float) -> None:
    task = load_detection(name, data_folder(), batch=1)
    with torch.inference_mode():
        raw = torch.cat([task.net(images) for images in task.test.split(16)])
    found = mean_precision(matched([detected(one) for one in raw], task.labelled, 80))
    assert found == pytest.approx(expected, abs=5e-4)
