"""A model's answer in a file of numpy: one array as .npy, several by their names as .npz.

Knows no heads and no servers; what cannot be written is refused before there is an answer, where that can be known.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from compoff.drafts import write_whole
from compoff.errors import FeatureError
from compoff.record import Record
from compoff.structure import entry_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["check_output", "named_arrays", "save_answer"]


def check_output(path: Path, structure: dict[str, Any]) -> None:
    """Refuse a file that a model's answer cannot be written to.

    Args:
        path: The file.
        structure: How the answer is nested, as the manifest has it; empty where that is not known.

    Raises:
        FeatureError: It is for one array and the answer has several, or its folder is not there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise FeatureError(f"the answer cannot be written to '{path}'; give a file in a folder that is there")
    kind, content = entry_of(structure)
    if structure and path.suffix != ".npz" and kind != "leaf":
        told = cast("dict[str, Any]", content)["class"] if isinstance(content, dict) else kind
        raise FeatureError(f"the model answers with a {told}, which '{path}' cannot hold; {_advice(path)}")


def save_answer(path: Path, answer: Any) -> None:
    """Write an answer.

    Args:
        path: The file: as .npz, whose arrays have the names of `named_arrays`, or, for a single array, as .npy.
        answer: What the model returned, in numpy.

    Raises:
        FeatureError: It is no single array, and the file no .npz.
        OSError: It cannot be written.
    """
    file = io.BytesIO()
    if path.suffix == ".npz":
        # By hand: numpy's own function takes names for its arguments, and "file" is one of them.
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in named_arrays(answer).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    elif isinstance(answer, np.ndarray):
        np.save(file, cast("NDArray[Any]", answer))  # to a path it would add .npy
    else:
        raise FeatureError(f"the model answered with a {type(answer).__name__}; {_advice(path)}")
    write_whole(path, file.getvalue())


def _advice(path: Path) -> str:
    return f"give '{path.with_suffix('.npz')}', which holds each array by its name"


def named_arrays(answer: Any) -> dict[str, NDArray[Any]]:
    """The arrays of an answer, and numbers and words as such, by where they stand; None is left out.

    Args:
        answer: Arrays, nested in what a model may return.

    Returns:
        Them by name: keys and fields joined by dots; what has no name is ``arr_0``, ``arr_1`` and so on.

    Examples:
        >>> list(named_arrays({"boxes": np.zeros(4), "masks": (np.zeros(1), np.zeros(1)), "extra": None}))
        ['boxes', 'masks.arr_0', 'masks.arr_1']
        >>> list(named_arrays(np.zeros(3)))
        ['arr_0']

    Source: the names are those of ``numpy.savez``.
    """
    found = [(".".join(way) or "arr_0", np.asarray(value)) for way, value in _leaves(answer, ())]
    names = {name for name, _ in found}
    if len(names) < len(found) or any(name.startswith("/") or ".." in name or "\\" in name for name in names):
        found = [(f"arr_{index}", array) for index, (_, array) in enumerate(found)]
    return dict(found)


def _leaves(value: Any, way: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    plain: Any = value
    if isinstance(value, (Mapping, Record)):
        # Past its fields: a record may have one of that name.
        items = cast("Iterable[tuple[Any, Any]]", type(plain).items(plain))
        parts = [(str(key), part) for key, part in items]
    elif isinstance(value, (tuple, list)):
        names: Any = getattr(plain, "_fields", None) or [f"arr_{index}" for index in range(len(plain))]
        parts = [*zip(names, plain, strict=True)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value)]
    else:
        parts = []
        if value is not None:
            yield way, value
    for name, part in parts:
        yield from _leaves(part, (*way, name))
