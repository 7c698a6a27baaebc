"""Symbols under a context model to bytes and back: group by group of channels, each in two halves.

Before them come the channels that lead, one by one, each in five passes. Within half a group, or a pass, the symbols
are sorted by their tables, which a decoder knows before it reads them, so that a run of them is coded at a time. Knows
what a context model expects, not from what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.coding.grid import Grid
from compoff.coding.leading import Values
from compoff.coding.passes import NUM_PASSES
from compoff.coding.range_coder import encode_runs, read_runs
from compoff.coding.sums import Sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.coding.context_model import ContextModel
    from compoff.coding.range_coder import RunReader

__all__ = ["decode", "encode"]


def encode(symbols: NDArray[np.generic], model: ContextModel, zero: int, *, python: bool = False) -> bytes:
    """Code symbols into the shortest message.

    Args:
        symbols: whole numbers below the number of symbols of the model's tables.
        model: what to expect.
        zero: the symbol that stands for zero.
        python: whether to do without constriction; the bytes are the same.

    Returns:
        The message.

    Shapes:
        symbols: ``(channels, batch, *space)``, at most ``model.num_channels`` channels.

    Raises:
        FeatureError: a symbol is none of the tables'.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> from compoff.coding.context_model import BOUND, CONTEXTS, ONE, ContextModel
        >>> tables = SymbolTables.from_counts([[1, 99, 1], [1, 1, 1]])
        >>> model = ContextModel([[0] * CONTEXTS, [0, ONE] + [0] * (CONTEXTS - 2)], [BOUND // 2], tables)
        >>> symbols = np.array([[[1] * 30 + [2]]] * 2)
        >>> message = encode(symbols, model, zero=1)
        >>> len(message), np.array_equal(decode(message, model, (2, 1, 31), zero=1), symbols)
        (2, True)

    Source: this project.
    """
    tables = model.tables
    checked = tables.checked(symbols.reshape(1, -1)).reshape(symbols.shape)
    found, (first, parts) = model.expected(checked, zero), model.parted(len(checked))
    # Leading channels pass by pass, then groups in order, the halves of each in order; within that, tables in order. Of
    # the smallest type there is for them, which is sorted in one pass a byte.
    num_steps = NUM_PASSES * first + 2 * len(parts)
    kind, step = np.min_scalar_type(num_steps * tables.num_channels), tables.num_channels
    starts = [NUM_PASSES * step * channel for channel in range(first)]
    starts += [step * (NUM_PASSES * first + 2 * place) for place, (a, b) in enumerate(parts) for _ in range(a, b)]
    keys = found.tables + np.array(starts, kind)[:, None]
    keys[first:, found.grid.split :] += kind.type(step)
    for number, at in enumerate(found.grid.spans if first else ()):
        keys[:first, at] += kind.type(number * step)
    order = np.argsort(keys, axis=None, kind="stable")
    ordered = keys.reshape(-1)[order]
    ends = np.flatnonzero(np.diff(ordered, append=ordered[-1:] + kind.type(1)))
    counts = np.diff(ends, prepend=-1)
    runs = list(zip((ordered[ends] % tables.num_channels).tolist(), counts.tolist(), strict=True))
    return encode_runs(found.coded.reshape(-1)[order].astype(np.int32), runs, tables, python=python)


def decode(
    data: bytes, model: ContextModel, shape: tuple[int, ...], zero: int, *, prefix: bool = False, python: bool = False
) -> NDArray[np.uint8]:
    """Decode what `encode` made.

    Args:
        data: the message.
        model: what to expect.
        shape: shape of the symbols.
        zero: the symbol that stands for zero.
        prefix: whether more bytes came after these, and only what these settle is to be decoded.
        python: whether to do without constriction; the symbols are the same.

    Returns:
        The symbols; of a prefix, the channels of the groups that are certain as a whole.

    Shapes:
        shape and result: ``(channels, batch, *space)``.

    Raises:
        PayloadError: no message of this length decodes from these bytes.
    """
    reader = read_runs(data, model.tables, prefix=prefix, python=python)
    num_symbols, grid = model.tables.num_symbols, Grid(shape[1:])
    rows, sums = np.zeros((shape[0], grid.size), np.int32), Sums(grid)
    first, parts = model.parted(shape[0])
    whole = _decode_leading(reader, model, rows[:first], zero, (grid, sums))
    if whole < first:
        return _symbols(grid, rows[:whole], zero)
    for start, end in parts:
        group, channels = rows[start:end], slice(start, end)
        magnitudes = model.from_before(sums.features(start), channels)
        symbols = _read(reader, model.tables_of(magnitudes.take(grid.earlier, axis=1)))
        if symbols is None:
            return _symbols(grid, rows[:start], zero)
        group[:, grid.earlier] = symbols - zero
        more, expected = model.from_beside(group, grid, channels)
        more += magnitudes.take(grid.later, axis=1)
        symbols = _read(reader, model.tables_of(more))
        if symbols is None:
            return _symbols(grid, rows[:start], zero)
        group[:, grid.later] = (symbols + expected) % num_symbols - zero
        sums.add(group)
    return _symbols(grid, rows, zero)


def _decode_leading(
    reader: RunReader, model: ContextModel, rows: NDArray[np.int32], zero: int, seen: tuple[Grid, Sums]
) -> int:
    """Decode the channels that lead into their rows; how many of them are certain as a whole."""
    grid, sums = seen
    if not len(rows):
        return 0
    values, neighbors, own = Values(model.leading, grid), grid.neighbors, model.own()
    for channel, row in enumerate(rows):
        here = slice(channel, channel + 1)
        [magnitudes], [others] = model.from_before(sums.features(channel), here), values.expected(here)
        for number, span in enumerate(grid.spans):
            at = grid.order[span]
            near = row.take(neighbors[:, span])
            led = model.from_values(magnitudes.take(at), others.take(at), near, own[:, channel, number, None])
            symbols = _read(reader, led.tables)
            if symbols is None:
                return channel
            row[at] = (led.values + led.signs * (symbols - zero) + zero) % model.tables.num_symbols - zero
        sums.add(row[None])
        values.add(channel, row)
    return len(rows)


def _symbols(grid: Grid, rows: NDArray[np.int32], zero: int) -> NDArray[np.uint8]:
    return (grid.gathered(rows) + zero).astype(np.uint8)


def _read(reader: RunReader, tables: NDArray[np.uint8]) -> NDArray[np.int32] | None:
    """The symbols of half a group or of a pass, in the order of its positions; None where they are not certain."""
    wanted = tables.reshape(-1)
    order, counts = np.argsort(wanted, kind="stable"), np.bincount(wanted)
    used = np.flatnonzero(counts)
    found: list[NDArray[np.int32]] = []
    for table, count in zip(used.tolist(), counts[used].tolist(), strict=True):
        symbols = reader.read(table, count)
        if symbols is None:
            return None
        found.append(symbols)
    result = np.empty(tables.size, np.int32)
    result[order] = np.concatenate([*found, result[:0]])  # there may be none
    return result.reshape(tables.shape)
