"""The tensors of a batch that is to be coded: as many, and of the shapes and dtypes, that an export has.

Knows no bytes: what the tensors become is for `payload`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.checks import check_array
from compoff.errors import FeatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.body import Code
    from compoff.coding.side import Side

__all__ = ["checked_tensors"]


def checked_tensors(
    symbols: Sequence[ArrayLike],
    tensors: Sequence[ArrayLike],
    codes: Sequence[Code],
    sides: Sequence[Side],
    quality: int,
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Take tensors as arrays, once they fit an export.

    Args:
        symbols: for each code, indices of centers.
        tensors: for each side, what crosses the cut as it is.
        codes: the coded features of the export.
        sides: its side tensors.
        quality: index of the quality.

    Returns:
        The symbols and the side tensors, all of one batch.

    Shapes:
        symbols: each ``(batch, *code.shape(quality))``.
        tensors: each ``side.full_shape(batch)``.

    Raises:
        FeatureError: they do not fit.

    Examples:
        >>> import numpy as np
        >>> from compoff.coding import Code, SymbolTables
        >>> codes = [Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 3))]
        >>> [one.shape for one in checked_tensors([[[[0, 1, 0]]]], [], codes, [], quality=0)[0]]
        [(1, 1, 3)]

    Source: this project.
    """
    for given in (symbols, tensors):
        if not isinstance(given, (list, tuple, np.ndarray)):
            raise FeatureError(f"a {type(given).__name__} was given; expected a list of arrays")
    if isinstance(symbols, np.ndarray) or (len(symbols), len(tensors)) != (len(codes), len(sides)):
        raise FeatureError(
            f"expected a list of {len(codes)} arrays of symbols, one a code, and {len(sides)} side "
            f"tensors; got {type(symbols).__name__} of {len(symbols)} and {len(tensors)}"
        )
    latents = [check_array("symbols", one, FeatureError) for one in symbols]
    others = [check_array("a side tensor", one, FeatureError) for one in tensors]
    for latent, code in zip(latents, codes, strict=True):
        _check_batched(latent, code.shape(quality), f"symbols of quality {quality}")
    batch = len(latents[0])
    for other, side in zip(others, sides, strict=True):
        if other.dtype.name != side.dtype or other.shape != side.full_shape(batch):
            raise FeatureError(
                f"a side tensor is {other.dtype.name} of shape {other.shape}; expected {side.dtype} of shape "
                f"{side.full_shape(batch)}"
            )
    if {len(latent) for latent in latents} != {batch}:
        raise FeatureError(f"the symbols hold {[len(latent) for latent in latents]} samples; expected one number")
    return latents, others


def _check_batched(array: NDArray[Any], expected: tuple[int, ...], what: str) -> None:
    if array.ndim != len(expected) + 1 or array.shape[1:] != expected:
        raise FeatureError(
            f"{what} have shape {array.shape}, which does not fit this export: expected (batch, "
            f"{', '.join(map(str, expected))})"
        )
