"""Symbols under a context model to bytes and back: group by group of channels, each in two halves.

Within half a group the symbols are sorted by their tables, which a decoder knows before it reads them, so that a run of
them is coded at a time. Knows what a context model expects, not from what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.coding.context_model import Sums, groups, later
from compoff.coding.range_coder import encode_runs, read_runs

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
    expected = model.expected(checked - zero)
    coded = (checked - expected.values) % tables.num_symbols
    # Groups in order, the halves of each in order, tables in order.
    starts = np.repeat(np.arange(len(parts := groups(len(checked)))), [end - start for start, end in parts])
    halves = 2 * starts.reshape(-1, *(1,) * (checked.ndim - 1)) + later(checked.shape[2:])
    keys = (halves * tables.num_channels + expected.tables).reshape(-1)
    # The smallest type there is for them: small ones are sorted in one pass a byte.
    order = np.argsort(keys.astype(np.min_scalar_type(2 * len(parts) * tables.num_channels)), kind="stable")
    counts = np.bincount(keys)
    used = np.flatnonzero(counts)
    runs = list(zip((used % tables.num_channels).tolist(), counts[used].tolist(), strict=True))
    return encode_runs(coded.reshape(-1)[order], runs, tables, python=python)


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
    num_symbols, odd = model.tables.num_symbols, np.broadcast_to(later(shape[2:]), shape[1:])
    values = np.zeros(shape, np.int32)
    sums = Sums(shape)
    for start, end in groups(shape[0]):
        group, channels = values[start:end], slice(start, end)
        magnitudes = model.from_before(sums.features(start), channels)
        symbols = _read(reader, model.tables_of(magnitudes[:, ~odd]))
        if symbols is None:
            return (values[:start] + zero).astype(np.uint8)
        group[:, ~odd] = symbols - zero
        more, expected = model.from_beside(group, channels)
        symbols = _read(reader, model.tables_of(magnitudes[:, odd] + more[:, odd]))
        if symbols is None:
            return (values[:start] + zero).astype(np.uint8)
        group[:, odd] = (symbols + expected[:, odd]) % num_symbols - zero
        sums.add(start, group)
    return (values + zero).astype(np.uint8)


def _read(reader: RunReader, tables: NDArray[np.uint8]) -> NDArray[np.int32] | None:
    """The symbols of half a group, in the order of its positions; None where they are not certain."""
    wanted, result = tables.reshape(-1), np.empty(tables.size, np.int32)
    order, counts = np.argsort(wanted, kind="stable"), np.bincount(wanted)
    begin = 0
    for table, count in enumerate(counts.tolist()):
        if count:
            symbols = reader.read(table, count)
            if symbols is None:
                return None
            result[order[begin : begin + count]] = symbols
            begin += count
    return result.reshape(tables.shape)
