"""What tails are compared on: inputs that show a difference where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.edge.backends.samples import check_agreement, sample_parts
from compoff.errors import BackendError
from compoff.manifest import TensorSpec
from tests.small_artifacts import MANIFEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = list["NDArray[Any]"]
MASKED = replace(MANIFEST, codes=MANIFEST.codes[:1], sides=(TensorSpec((16,), "int64"),))


def mean(parts: Arrays) -> Arrays:
    """The mean of what a mask of whole numbers leaves, NaN where it leaves nothing."""
    symbols, mask = parts[0].reshape(len(parts[0]), -1)[:, :16].astype(np.float32), parts[1]
    with np.errstate(invalid="ignore"):
        return [(symbols * mask).sum(1) / mask.sum(1)]


def test_a_wrong_program_is_not_hidden_by_a_mask_that_hides_everything() -> None:
    assert check_agreement(MASKED, "onnx", mean, mean, 1e-3) == 0
    with pytest.raises(BackendError, match="does not agree with PyTorch"):
        check_agreement(MASKED, "onnx", mean, lambda parts: [2 * mean(parts)[0]], 1e-3)


def test_a_vocabulary_of_one_is_compared_on_its_only_entry() -> None:
    def entries(parts: Arrays) -> Arrays:
        return [np.array([3.0], np.float32)[parts[1]]]

    assert check_agreement(MASKED, "onnx", entries, entries, 1e-3) == 0
    with pytest.raises(BackendError, match="does not agree with PyTorch"):
        check_agreement(MASKED, "onnx", entries, lambda parts: [1 + entries(parts)[0]], 1e-3)


def test_whole_numbers_are_zeros_where_a_program_is_traced_and_half_of_them_ones_where_it_is_compared() -> None:
    assert not sample_parts(MASKED, 2)[1].any()
    ones = sample_parts(MASKED, 2, ones=True)[1]
    assert ones.dtype == np.int64
    assert ones.mean() == 0.5


def test_a_program_that_gives_its_first_answer_again_is_noticed() -> None:
    first: dict[int, Arrays] = {}

    with pytest.raises(BackendError, match="does not agree with PyTorch"):
        check_agreement(MASKED, "inductor", mean, lambda parts: first.setdefault(len(parts[0]), mean(parts)), 1e-3)
