"""One coded feature: what it is made of, given as something else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compoff.coding import Code, SymbolTables
from compoff.errors import ArtifactError, FeatureError

TABLES = SymbolTables.from_counts([[1, 2, 1]] * 4)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((None, (4, 16)), "tables is a NoneType; expected SymbolTables"),
        ((TABLES, None), "latent_shape is None; expected whole numbers"),
        ((TABLES, 4), "latent_shape is 4; expected whole numbers"),
        ((TABLES, (4.0, 16)), r"latent_shape is \(4\.0, 16\); expected whole numbers"),
        ((TABLES, "4"), "latent_shape is '4'; expected whole numbers"),
        ((TABLES, (4, 16), (1.5, 4)), r"qualities is \(1\.5, 4\); expected whole numbers"),
        ((TABLES, (4, 16), (True, 4)), r"qualities is \(True, 4\); expected whole numbers"),
        ((TABLES, (4, 16), 4), "qualities is 4; expected whole numbers"),
        ((TABLES, (4, 16), (1, 4), (1.0, 1)), r"steps is \(1\.0, 1\); expected whole numbers"),
        ((TABLES, (4, 16), None, ["a"]), r"steps is \['a'\]; expected whole numbers"),
    ],
)
def test_parts_of_another_kind_are_named(parts: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Code(*parts)


def test_numbers_of_numpy_are_kept_as_pythons() -> None:
    code = Code(TABLES, np.array([4, 16]), np.array([1, 4], np.uint8), [np.int32(1)] * 2)  # type: ignore[arg-type]
    assert code == Code(TABLES, (4, 16), (1, 4))
    assert {type(one) for one in (*code.latent_shape, *code.qualities, *code.steps)} == {int}
    assert code.packed_bytes(np.uint8(200)) == code.packed_bytes(200) == 200 * 16  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [-1, 1.0, True, "1", None])
def test_bytes_of_what_is_no_number_of_samples_are_not_counted(batch: Any) -> None:
    with pytest.raises(FeatureError, match=r"batch is .*; expected a whole number of at least 0"):
        Code(TABLES, (4, 16)).packed_bytes(batch)
