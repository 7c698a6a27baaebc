"""The tasks and the harness around them: crops, spoilt images, paired drops, budgets."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import rate_accuracy
from benchmarks.tasks import CONDITIONS, Photos, Shuffled, paired


def test_photos_are_cropped_mirrored_and_normalized() -> None:
    pixels = torch.randint(0, 256, (6, 3, 256, 256), dtype=torch.uint8)
    torch.manual_seed(0)
    first = list(Photos(pixels, batch=4, size=32))
    assert [tuple(batch.shape) for batch in first] == [(4, 3, 32, 32)]
    torch.manual_seed(0)
    assert torch.equal(first[0], next(iter(Photos(pixels, batch=4, size=32))))
    flat = next(iter(Photos(torch.full((4, 3, 256, 256), 255, dtype=torch.uint8), batch=4, size=32)))
    torch.testing.assert_close(
        flat[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


def test_shuffled_gives_every_image_once_a_round() -> None:
    images = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    seen = torch.cat(list(Shuffled(images, batch=5)))[:, 0, 0, 0]
    assert sorted(seen.tolist()) == list(range(10))


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_images_are_spoilt_the_same_way_every_time(condition: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    spoilt = [np.asarray(CONDITIONS[condition](Image.fromarray(pixels)).convert("RGB")) for _ in range(2)]
    assert spoilt[0].shape == (32, 32, 3)
    assert (spoilt[0] == spoilt[1]).all()
    assert (spoilt[0] != pixels).any()


def test_the_drop_is_paired() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    right = torch.nn.functional.one_hot(labels, 6).float()
    changed = right.clone()
    changed[0] = torch.tensor([0.0, 1, 0, 0, 0, 0])
    found = paired(right, changed, labels)
    assert found == {
        "drop": 25.0,
        "drop_stderr": 25.0,
        "drop_halves": [50.0, 0.0],
        "drop_top5": 0.0,
        "drop_top5_stderr": 0.0,
        "drop_top5_halves": [0.0, 0.0],
        "agreement": 0.75,
    }
    assert paired(changed, right, labels)["drop"] == -25.0


def test_a_budget_ends_the_batches() -> None:
    batches = [torch.zeros(1)] * 3
    assert len(list(rate_accuracy.Budgeted(batches, time.monotonic() + 60))) == 3
    with pytest.raises(rate_accuracy.OutOfTime):
        list(rate_accuracy.Budgeted(batches, time.monotonic() - 1))


def test_plain_codecs_that_do_better_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"system": "compoff", "bytes": 400.0, "drop": 0.5},
        {"system": "compoff", "bytes": 100.0, "drop": 3.0},
        {"system": "jpeg", "bytes": 300.0, "drop": 0.9},
    ]
    rate_accuracy.advise(rows, 1)
    assert "notice: plain jpeg needs fewer bytes here" in capsys.readouterr().out
    rate_accuracy.advise(rows, 5)
    assert "notice" not in capsys.readouterr().out
