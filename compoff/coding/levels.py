"""Coarser steps of symbols that stand for whole numbers: one encoder serves every rate with integer arithmetic alone.

A symbol s of an odd number of levels stands for the number s − ⌊levels/2⌋. A quality may send multiples of a coarser
step instead; its tables are sums of the fine ones, so both sides have them exactly. Knows no payload and no network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.coding.tables import SymbolTables
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["coarse_tables", "coarsen", "num_coarse", "refine", "zero_symbol"]


def _bounds(num_levels: int, step: int) -> tuple[int, int]:
    """The lowest and the highest multiple of a step, counted in steps."""
    if num_levels % 2 == 0 or not 1 <= step <= num_levels // 2:
        raise ArtifactError(
            f"step {step} cannot be used with {num_levels} levels: expected an odd number of levels and a step "
            "from 1 to half of them"
        )
    half = num_levels // 2
    return (step // 2 - half) // step, (step // 2 + half) // step


def num_coarse(num_levels: int, step: int) -> int:
    """Number of symbols that a coarser step leaves.

    Args:
        num_levels: number of fine symbols, odd.
        step: the coarser step, in fine ones.

    Returns:
        Number of symbols.

    Raises:
        ArtifactError: the step does not go with the levels.

    Examples:
        >>> num_coarse(255, step=1), num_coarse(255, step=3), num_coarse(7, step=3)
        (255, 85, 3)

    Source: this project.
    """
    low, high = _bounds(num_levels, step)
    return high - low + 1


def zero_symbol(num_levels: int, step: int) -> int:
    """The symbol that stands for zero at a step.

    Args:
        num_levels: number of fine symbols, odd.
        step: the step, in fine ones.

    Returns:
        The symbol.

    Raises:
        ArtifactError: the step does not go with the levels.

    Examples:
        >>> zero_symbol(255, step=1), zero_symbol(255, step=4)
        (127, 32)

    Source: this project.
    """
    return -_bounds(num_levels, step)[0]


def coarsen(symbols: NDArray[np.uint8], num_levels: int, step: int) -> NDArray[np.uint8]:
    """Round symbols to multiples of a coarser step; halves go up.

    Args:
        symbols: fine symbols, of any shape.
        num_levels: number of fine symbols, odd.
        step: the coarser step, in fine ones.

    Returns:
        Coarse symbols.

    Shapes:
        result like symbols.

    Raises:
        ArtifactError: the step does not go with the levels.

    Examples:
        >>> coarsen(np.arange(7, dtype=np.uint8), num_levels=7, step=3).tolist()
        [0, 0, 1, 1, 1, 2, 2]

    Source: this project.
    """
    low, _ = _bounds(num_levels, step)
    # (value + step // 2) // step - low, with nothing below zero, which numpy divides many at a time.
    shift = step // 2 - num_levels // 2 - low * step
    return ((symbols + np.uint16(shift)) // np.uint16(step)).astype(np.uint8)


def refine(symbols: NDArray[np.uint8], num_levels: int, step: int) -> NDArray[np.uint8]:
    """Give coarse symbols the fine symbols that they stand for.

    Args:
        symbols: coarse symbols, of any shape.
        num_levels: number of fine symbols, odd.
        step: the coarser step, in fine ones.

    Returns:
        Fine symbols, those of multiples of the step.

    Shapes:
        result like symbols.

    Raises:
        ArtifactError: the step does not go with the levels.

    Examples:
        >>> refine(np.arange(3, dtype=np.uint8), num_levels=7, step=3).tolist()
        [0, 3, 6]

    Source: this project.
    """
    low, high = _bounds(num_levels, step)
    half = num_levels // 2
    values = np.clip(np.arange(low, high + 1) * step + half, 0, num_levels - 1).astype(np.uint8)
    return values[symbols]


def coarse_tables(tables: SymbolTables, step: int) -> SymbolTables:
    """The tables of the coarse symbols: sums of the fine weights, so they are exact on every platform.

    Args:
        tables: tables of the fine symbols.
        step: the coarser step, in fine ones.

    Returns:
        Tables of as many channels.

    Raises:
        ArtifactError: the step does not go with the number of symbols.

    Examples:
        >>> tables = SymbolTables.from_counts([[0, 1, 5, 1, 0]])
        >>> coarse_tables(tables, step=1) == tables, coarse_tables(tables, step=2).num_symbols
        (True, 3)

    Source: this project.
    """
    low, high = _bounds(tables.num_symbols, step)
    if step == 1:
        return tables
    starts = np.searchsorted(_nearest(tables.num_symbols, step, low), np.arange(high - low + 1))
    return SymbolTables(np.add.reduceat(tables.weights.astype(np.int64), starts, axis=1))


def _nearest(num_levels: int, step: int, low: int) -> NDArray[np.uint8]:
    """Coarse symbol of each fine one."""
    values = np.arange(num_levels) - num_levels // 2
    return ((values + step // 2) // step - low).astype(np.uint8)
