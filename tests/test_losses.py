"""Eq. 10 and 11 as literal sums of squares, and the unit that makes features comparable."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.losses import distillation, reconstruction, relative_error

SHAPES = [(4,), (4, 6), (3, 2, 5), (2, 3, 4, 5)]


def pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(len(shape))
    return rng.normal(size=shape) * 3 + 1, rng.normal(size=shape)


def squares(first: np.ndarray, second: np.ndarray) -> float:
    """‖·‖² of Eq. 5, 10 and 11, one sample after the other."""
    return sum(float((a - b) ** 2) for a, b in zip(first.flat, second.flat, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_equation_10_first_term(shape: tuple[int, ...]) -> None:
    y, y_hat = pair(shape)
    expected = np.mean([squares(y[i], y_hat[i]) for i in range(shape[0])])
    assert reconstruction(torch.from_numpy(y), torch.from_numpy(y_hat)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_unit_is_the_teachers_variance_per_element(shape: tuple[int, ...]) -> None:
    teacher, student = pair(shape)
    expected = squares(teacher, student) / teacher.size / np.var(teacher)
    assert relative_error(torch.from_numpy(teacher), torch.from_numpy(student)).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_answering_the_mean_is_an_error_of_one_at_any_scale(shape: tuple[int, ...]) -> None:
    teacher = torch.from_numpy(pair(shape)[0]) * 1e4
    assert relative_error(teacher, teacher.mean().expand(shape)).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 5), (8, 3, 4, 4), (8, 1)])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_between_samples_the_means_of_places_are_no_part_of_the_unit(shape: tuple[int, ...], scale: float) -> None:
    teacher, student = (scale * one for one in pair(shape))
    means = scale * 50 * np.random.default_rng(1).normal(size=shape[1:]).astype(np.float32)
    expected = np.mean((teacher - student) ** 2) / np.mean(np.var(teacher, axis=0, ddof=1))
    found = [
        relative_error(torch.from_numpy(teacher + mean), torch.from_numpy(student + mean), between_samples=0.0).item()
        for mean in (0, means)
    ]
    assert found == pytest.approx([expected, expected], rel=1e-3)


def test_equal_samples_are_no_unit() -> None:
    teacher = torch.randn(5).expand(4, 5) + 1e-6 * torch.randn(4, 5)
    expected = relative_error(teacher, teacher + 0.1).item()
    assert relative_error(teacher, teacher + 0.1, between_samples=0.0).item() == pytest.approx(expected)


def test_the_last_features_of_equation_11_may_be_outputs() -> None:
    (block, other), (output, answer) = (map(torch.from_numpy, pair(shape)) for shape in ((6, 4), (6, 3)))
    for means, least in ((torch.tensor([0.0, 3, 6]), 0.0), (torch.tensor([0.0, 10, 1000]), 0.01)):
        answers = output + means, answer + means
        expected = relative_error(block, other) + relative_error(*answers, between_samples=least)
        assert torch.equal(distillation([block, answers[0]], [other, answers[1]], outputs=1), expected)


@pytest.mark.parametrize("teacher", [torch.full((3, 4), 5.0), torch.tensor([5.0])])
def test_where_nothing_varies_the_square_is_the_unit(teacher: torch.Tensor) -> None:
    assert relative_error(teacher, teacher * 1.1).item() == pytest.approx(0.01, rel=1e-4)
    assert relative_error(teacher, teacher).item() == 0.0


def test_zeros_give_a_finite_error() -> None:
    assert torch.isfinite(relative_error(torch.zeros(2, 3), torch.ones(2, 3)))


def test_equation_11_is_the_sum_over_blocks() -> None:
    pairs = [pair(shape) for shape in SHAPES]
    expected = sum(squares(teacher, student) / teacher.size / np.var(teacher) for teacher, student in pairs)
    found = distillation([torch.from_numpy(t) for t, _ in pairs], [torch.from_numpy(s) for _, s in pairs])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_equation_11_refuses_features_without_a_partner() -> None:
    with pytest.raises(ValueError, match="shorter"):
        distillation([torch.zeros(1, 1), torch.zeros(1, 1)], [torch.zeros(1, 1)])


def test_the_gradient_goes_to_the_student_alone() -> None:
    teacher = torch.randn(3, 4, dtype=torch.float64)
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    relative_error(teacher, student).backward()
    expected = 2 * (student.detach() - teacher) / teacher.numel() / teacher.var(unbiased=False)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected, rtol=1e-5, atol=1e-8)


def test_what_hardly_varies_beside_its_size_is_still_a_unit() -> None:
    teacher = 101325 + 0.5 * torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    constant = teacher.mean(0, keepdim=True).expand_as(teacher)
    found = relative_error(teacher.float(), constant.float(), between_samples=0.0)
    assert float(found) == pytest.approx(1.0, rel=0.05)
