"""An input of a model from a file that numpy wrote."""

from __future__ import annotations

import tokenize
import zipfile
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["read_input"]

# What numpy raises for a damaged file, whose header it reads as Python's own literals.
_NO_ARRAY = (
    *(ValueError, EOFError, MemoryError, zipfile.BadZipFile, ArithmeticError, SyntaxError, tokenize.TokenError),
    *(RecursionError, TypeError, LookupError, AttributeError),
)


def read_input(path: Path, axes: int) -> NDArray[Any]:
    """Read one input.

    Args:
        path: A .npy file, or a pipe that brings one.
        axes: How many axes one sample has.

    Returns:
        The array, with a batch axis.

    Raises:
        FeatureError: It is no .npy file of numbers.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            # numpy's own function goes back in a file after a look at it, which a pipe does not let it.
            array = np.load(file, allow_pickle=False) if file.seekable() else _read_piped(file)
    except _NO_ARRAY as error:
        if "allow_pickle" in str(error):  # numpy's advice, which would run what is in the file
            raise FeatureError(
                f"'{path}' holds Python objects, or is no .npy file; a pickle is never read: write an array of numbers "
                "with numpy.save"
            ) from error
        raise FeatureError(f"'{path}' is not a .npy file of numbers ({error}); write it with numpy.save") from error
    if isinstance(array, np.lib.npyio.NpzFile):
        raise FeatureError(f"'{path}' holds several arrays (.npz); write each with numpy.save and give it by itself")
    return array[None] if array.ndim == axes else array


def _read_piped(file: BinaryIO) -> NDArray[Any]:
    """Read as many bytes as its header says, and no more, one after another."""
    stream: Any = SimpleNamespace(read=file.read)  # of a real file numpy asks where it stands
    return np.lib.format.read_array(stream, allow_pickle=False)
