"""The digits task: repeatable, and honest about which scans are tested."""

from __future__ import annotations

import numpy as np
import torch

from compoff.demo.tasks import Batches, Schedule, load_task

SHORT = Schedule(splits=(), epochs=1)


def test_same_seed_same_task_other_seed_another() -> None:
    one, same, other = (load_task(None, SHORT, seed) for seed in (0, 0, 1))
    assert torch.equal(one.test, same.test)
    assert all(torch.equal(a, b) for a, b in zip(one.net.parameters(), same.net.parameters(), strict=True))
    assert not torch.equal(one.test, other.test)


def test_no_scan_is_both_trained_on_and_tested() -> None:
    task = load_task(None, SHORT, 0)
    assert (len(task.train), len(task.test)) == (1197, 600)
    trained = {image.numpy().tobytes() for image in task.train}
    assert not [image for image in task.test if image.numpy().tobytes() in trained]


def test_test_inputs_are_the_pixels_that_would_be_sent() -> None:
    task = load_task(None, SHORT, 0)
    assert np.array_equal(task.pictures.to_input(task.pixels), task.test.numpy())
    assert task.pixels.max() == 255


def test_training_learns_and_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    task = load_task(None, Schedule(splits=(), epochs=4), 0)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        assert (task.net(task.test).argmax(1) == task.labels).float().mean() > 0.9
    assert not task.net.training


def test_mirrored_batches_hold_the_images_or_their_mirrors() -> None:
    images = torch.rand(6, 1, 4, 4)
    known = {image.numpy().tobytes() for image in [*images, *images.flip(-1)]}
    rounds = [batch for _ in range(8) for batch in Batches(images, 3, mirror=True)]
    assert len(rounds) == 16
    assert all(image.contiguous().numpy().tobytes() in known for batch in rounds for image in batch)


def test_moved_batches_keep_what_lies_inside() -> None:
    images = torch.zeros(2, 1, 8, 8)
    images[:, :, 3:5, 3:5] = 1.0
    assert all(float(batch.sum()) == 8.0 for _ in range(5) for batch in Batches(images, 2, mirror=False))
