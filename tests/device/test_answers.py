"""What a connection is asked to bring back, judged before it is opened."""

from __future__ import annotations

from dataclasses import replace

import pytest

import compoff
from compoff.device.answers import Heads
from compoff.errors import FeatureError
from compoff.manifest import TensorSpec
from tests.device.stand_in import StandIn


def returning(*shape: int, dtype: str = "float32") -> StandIn:
    head = StandIn()
    head.manifest = replace(head.manifest, outputs=(TensorSpec(shape, dtype),))
    return head


def test_argmax_does_not_guess_where_the_classes_of_a_sequence_are() -> None:
    with pytest.raises(FeatureError, match=r"\(batch, 12, 9\); give compoff.ArgMax\(dim=1\) for the 12, .*dim=2\) for"):
        Heads(returning(12, 9), "argmax")  # type: ignore[arg-type]
    for dim in (1, 2, -1):
        assert Heads(returning(12, 9), compoff.ArgMax(dim)).form.dim == dim  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [returning(12), returning(12, 8, 8), returning(12, 9, dtype="int64")])
def test_argmax_is_along_the_classes_where_there_is_no_doubt(head: StandIn) -> None:
    assert Heads(head, "argmax").form.dim == 1  # type: ignore[arg-type]
