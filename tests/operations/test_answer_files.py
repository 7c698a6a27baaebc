"""Answers in numpy's files, read back by numpy itself."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.errors import FeatureError
from compoff.operations.answer_files import check_output, named_arrays, save_answer
from compoff.record import Record
from compoff.structure import flatten

if TYPE_CHECKING:
    from pathlib import Path

A, B = np.arange(3.0), np.zeros((2, 2), np.int64)
Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Found:
    boxes: Any
    scores: Any


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (A, {"arr_0": A}),
        ({"a": A, "b": B}, {"a": A, "b": B}),
        ({"file": A, "allow_pickle": B, 3: A}, {"file": A, "allow_pickle": B, "3": A}),
        ((A, [B, A]), {"arr_0": A, "arr_1.arr_0": B, "arr_1.arr_1": A}),
        (Pair(A, B), {"left": A, "right": B}),
        (Found(A, None), {"boxes": A}),
        (OrderedDict(x=Found(A, B)), {"x.boxes": A, "x.scores": B}),
        (Record("no.such:Class", {"values": A, "items": B}), {"values": A, "items": B}),
        ({"a": A, "kept": True, "name": "cat"}, {"a": A, "kept": np.asarray(True), "name": np.asarray("cat")}),
        ({"a.b": A, "a": {"b": B}}, {"arr_0": A, "arr_1": B}),
        ({"../a": A, "b": B}, {"arr_0": A, "arr_1": B}),
    ],
)
def test_arrays_by_their_names(tmp_path: Path, answer: Any, expected: dict[str, Any]) -> None:
    assert list(named_arrays(answer)) == list(expected)
    check_output(tmp_path / "y.npz", {})
    save_answer(tmp_path / "y.npz", answer)
    with np.load(tmp_path / "y.npz") as saved:
        assert sorted(saved) == sorted(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(saved[name], array)


def test_one_array_is_a_file_of_its_own(tmp_path: Path) -> None:
    check_output(tmp_path / "y.npy", {"leaf": 0})
    save_answer(tmp_path / "y.npy", A)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), A)


def test_what_a_file_cannot_hold_is_refused_before_and_after(tmp_path: Path) -> None:
    for answer, name in (({"a": A}, "dict"), ((A, B), "tuple"), (Found(A, B), "Found")):
        _, structure = flatten(answer, lambda value: isinstance(value, np.ndarray))
        with pytest.raises(FeatureError, match=rf"answers with a .*{name}, which .*y\.npy' .*; give '.*y\.npz'"):
            check_output(tmp_path / "y.npy", structure)
        check_output(tmp_path / "y.npz", structure)
        with pytest.raises(FeatureError, match=rf"answered with a {name}; give '.*y\.npz'"):
            save_answer(tmp_path / "y.npy", answer)
    assert not [*tmp_path.iterdir()]
    for path in (tmp_path, tmp_path / "nowhere" / "y.npy"):
        with pytest.raises(FeatureError, match="give a file in a folder that is there"):
            check_output(path, {"leaf": 0})
