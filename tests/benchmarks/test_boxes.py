"""What boxes are worth: numbers worked out by hand, and the published way of COCO written out once more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.boxes import Boxes, detected, found_again, matched, mean_precision


def boxes(*rows: tuple[int, float, float, float, float, float]) -> Boxes:
    """Class, score, left, top, right, bottom."""
    numbers = np.array(rows, np.float64).reshape(-1, 6)
    return Boxes(numbers[:, 0].astype(np.int64), numbers[:, 1], numbers[:, 2:])


LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)


def raw(*places: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(places)


def test_a_place_gives_a_box_for_each_class_that_is_likely_enough() -> None:
    found = detected(raw((0.5, 0.4, 0.2, 0.4, 0.5, 0.8, 0.001, 0.02)))
    assert found.classes.tolist() == [0, 2]
    np.testing.assert_allclose(found.scores, [0.4, 0.01])
    np.testing.assert_allclose(found.corners, [[0.4, 0.2, 0.6, 0.6]] * 2, atol=1e-7)


# Squares of 0.4 that are moved by this much overlap by 0.25 / 0.55 = 0.455, and by 0.24 / 0.56 = 0.429.
@pytest.mark.parametrize(("shift", "kept"), [(0.15, 1), (0.16, 2)])
def test_weaker_boxes_of_the_same_class_are_dropped_where_they_overlap(shift: float, kept: int) -> None:
    same = raw((0.3, 0.3, 0.4, 0.4, 1, 0.5, 0), (0.3 + shift, 0.3, 0.4, 0.4, 1, 0.9, 0))
    found = detected(same)
    assert len(found.scores) == kept
    assert found.scores[0] == pytest.approx(0.9)
    other = raw((0.3, 0.3, 0.4, 0.4, 1, 0.5, 0), (0.3, 0.3, 0.4, 0.4, 1, 0, 0.9))
    assert len(detected(other).scores) == 2


def test_a_chain_of_boxes_keeps_every_second_one() -> None:
    chain = raw(*((0.3 + 0.1 * place, 0.5, 0.4, 0.4, 1, 0.9 - 0.1 * place) for place in range(4)))
    np.testing.assert_allclose(detected(chain).scores, [0.9, 0.7])


def test_no_box_is_no_error() -> None:
    nothing = detected(raw((0.5, 0.5, 0.1, 0.1, 0.0, 1.0)))
    assert len(nothing.scores) == 0
    assert mean_precision(matched([nothing], [boxes((0, 1, *LEFT))], 1)) == 0
    assert found_again([nothing], [nothing]) == 0


def test_the_precision_of_one_class_by_hand() -> None:
    # Right, wrong, right: recalls up to a half at precision 1, the rest at 2/3.
    found = boxes((0, 0.9, *LEFT), (0, 0.8, 0.1, 0.6, 0.3, 0.9), (0, 0.7, *RIGHT))
    labelled = boxes((0, 1, *LEFT), (0, 1, *RIGHT))
    assert mean_precision(matched([found], [labelled], 1)) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_labelled_box_is_found_once() -> None:
    found = boxes((0, 0.9, *LEFT), (0, 0.8, 0.0, 0.0, 0.4, 0.38))
    matches = matched([found], [boxes((0, 1, *LEFT))], 1)
    assert matches.right.tolist() == [True, False]
    assert mean_precision(matches) == 1  # what is wrong beyond the last recall costs nothing


def test_a_box_of_another_class_or_too_far_away_is_wrong() -> None:
    found = boxes((1, 0.9, *LEFT), (0, 0.8, 0.0, 0.0, 0.4, 0.19))
    matches = matched([found], [boxes((0, 1, *LEFT))], 2)
    assert matches.right.tolist() == [False, False]
    assert mean_precision(matches) == 0


def test_classes_count_alike_and_those_without_labels_not_at_all() -> None:
    found = boxes((0, 0.9, *LEFT), (1, 0.8, *LEFT), (2, 0.7, *RIGHT))
    labelled = boxes((0, 1, *LEFT), (1, 1, *RIGHT), (1, 1, *RIGHT))
    assert mean_precision(matched([found], [labelled], 3)) == 0.5


def test_images_that_count_twice_are_there_twice() -> None:
    generator = np.random.default_rng(0)
    sides = [[some(generator) for _ in range(5)] for _ in range(2)]
    times = np.array([2, 0, 1, 3, 0])
    repeated = [[one for one, count in zip(side, times, strict=True) for _ in range(count)] for side in sides]
    expected = mean_precision(matched(repeated[0], repeated[1], 3))
    assert 0 < expected < 1
    assert mean_precision(matched(sides[0], sides[1], 3), times) == pytest.approx(expected)


def some(generator: np.random.Generator) -> Boxes:
    """Boxes near a few places, the best first."""
    corners = generator.integers(0, 3, (6, 1)) / 3 + generator.uniform(0, 0.06, (6, 2))
    numbers = np.sort(generator.uniform(0, 1, 6))[::-1]
    return Boxes(generator.integers(0, 3, 6), numbers, np.concatenate([corners, corners + 0.3], 1))


def test_what_is_found_again_counts_misses_and_additions() -> None:
    teacher = [boxes((0, 0.9, *LEFT), (0, 0.5, *RIGHT), (0, 0.1, 0.0, 0.6, 0.2, 0.8))]
    student = [boxes((0, 0.9, *LEFT))]
    assert found_again(teacher, teacher) == 1
    assert found_again(teacher, student) == pytest.approx(2 / 3)
    assert found_again(student, teacher) == pytest.approx(2 / 3)
    assert found_again(teacher, [boxes((1, 0.9, *LEFT), (0, 0.29, *RIGHT))]) == 0
