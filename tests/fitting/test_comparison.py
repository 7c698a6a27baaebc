"""The error of a report against a numpy reading of it, however the samples are cut into batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.fitting.comparison import Comparison

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(5,), (3, 4, 4), (7, 2)])
@pytest.mark.parametrize("sizes", [(12,), (5, 1, 6)])
def test_the_unit_is_what_samples_differ_by(shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    teacher = RANDOM.normal(size=(12, *shape)) + 100 * RANDOM.normal(size=shape)
    student = teacher + 0.1 * RANDOM.normal(size=teacher.shape)
    found = Comparison()
    for ours, theirs in zip(
        torch.from_numpy(teacher).split(list(sizes)), torch.from_numpy(student).split(list(sizes)), strict=True
    ):
        found.add("", ours, theirs)
    expected = np.mean((teacher - student) ** 2) / np.mean(np.var(teacher, axis=0))
    assert found.error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_a_constant_for_each_place_is_an_error_of_one_at_any_scale(scale: float) -> None:
    means = np.array([0, 0, 10, 0, -1000])
    teacher = torch.from_numpy(scale * (RANDOM.normal(size=(20, 5)) + means))
    found = Comparison()
    found.add("", teacher, teacher.mean(0).expand(20, 5))
    assert found.error == pytest.approx(1.0, rel=1e-6)


def test_samples_of_several_lengths_are_compared_with_the_variance_of_all_elements() -> None:
    found, parts = Comparison(), [RANDOM.normal(size=(3, length)) for length in (4, 7)]
    for part in parts:
        found.add("", torch.from_numpy(part), torch.from_numpy(part + 0.5))
    assert found.error == pytest.approx(0.25 / np.var(np.concatenate([part.ravel() for part in parts])), rel=1e-9)


def test_one_sample_again_and_again_is_compared_with_what_its_elements_differ_by() -> None:
    one = torch.from_numpy(RANDOM.normal(size=(1, 6)))
    found = Comparison()
    for _ in range(3):
        found.add("", one, one + 0.5)
    assert found.error == pytest.approx(0.25 / np.var(one.numpy()), rel=1e-9)


def test_an_output_that_is_not_always_a_table_of_scores_has_no_agreement() -> None:
    comparison = Comparison()
    for output in (torch.randn(4, 3), torch.randn(4, 3, 2)):
        comparison.add("", output, output)
    assert comparison.agreement is None
