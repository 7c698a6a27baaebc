"""The range coder: symbols to the shortest bytes that name them, at their cross-entropy plus a fraction of a byte.

The interval starts as ``[0, 2**64 - 1)``; each symbol narrows it to its share, and each time it falls under
``2**32`` one 32-bit word is settled. A message is the shortest byte string that, read with zeros after its end,
lies in the final interval. constriction does this where it imports, pure Python elsewhere, with the same bytes.
The file does not know what the symbols mean, nor who checks that the bytes arrived whole.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, cast

import numpy as np

from compoff.coding import range_constriction
from compoff.coding.range_interval import STATE, WORD, shortest_tail, undecodable, words_of
from compoff.coding.tables import PRECISION
from compoff.errors import FeatureError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = ["decode", "decode_prefix", "decode_prefix_python", "decode_python", "encode", "encode_python"]

_WORD_MASK = (1 << WORD) - 1


def encode(symbols: ArrayLike, tables: SymbolTables) -> bytes:
    """Code symbols into the shortest message, channel after channel.

    Args:
        symbols: whole numbers below ``tables.num_symbols``; fewer channels than tables are the first ones.
        tables: how probable each symbol is in each channel.

    Returns:
        The message; its length is not in it, nor is the number of symbols.

    Shapes:
        symbols: ``(channels, positions)``.

    Raises:
        FeatureError: the symbols do not fit the tables.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> tables = SymbolTables.from_probabilities([[0.97, 0.01, 0.01, 0.01]])
        >>> message = encode([[0] * 60 + [2] + [0] * 60], tables)
        >>> len(message), decode(message, tables, num_positions=121)[0, 58:63].tolist()
        (2, [0, 0, 2, 0, 0])

    Source: this project; arithmetic of constriction 0.5 (``stream.queue``), with a shorter end.
    """
    library = range_constriction.find()
    if library is None:
        return encode_python(symbols, tables)
    return range_constriction.encode(tables.checked(symbols), tables, library)


def decode(data: bytes, tables: SymbolTables, num_positions: int, num_channels: int | None = None) -> NDArray[np.int32]:
    """Decode a message made by `encode` with the same tables.

    Damaged bytes give other symbols far more often than an error: check a checksum before.

    Args:
        data: the message.
        tables: the tables it was coded with.
        num_positions: how many symbols each channel has.
        num_channels: how many channels were coded; all of the tables by default.

    Returns:
        The symbols, each below ``tables.num_symbols``.

    Shapes:
        result: ``(num_channels, num_positions)``.

    Raises:
        PayloadError: no message of this length decodes from these bytes.
        FeatureError: there are no tables for so many channels.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> tables = SymbolTables([[2**23, 2**23]])
        >>> decode(encode([[1, 0, 1]], tables), tables, num_positions=3).tolist()
        [[1, 0, 1]]

    Source: this project; arithmetic of constriction 0.5 (``stream.queue``).
    """
    channels = _checked_channels(tables, num_positions, num_channels)
    library = range_constriction.find()
    if library is None:
        return decode_python(data, tables, num_positions, channels)
    return range_constriction.decode(data, tables, (channels, num_positions), library)


def encode_python(symbols: ArrayLike, tables: SymbolTables) -> bytes:
    """Code symbols without constriction; the same bytes as `encode`, some twenty times slower.

    Args:
        symbols: whole numbers below ``tables.num_symbols``.
        tables: how probable each symbol is in each channel.

    Shapes:
        symbols: ``(channels, positions)``.

    Raises:
        FeatureError: the symbols do not fit the tables.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> encode_python([[1, 0, 1]], SymbolTables([[2**23, 2**23]])).hex()
        'a0'

    Source: this project.
    """
    rows = cast("list[list[int]]", tables.checked(symbols).tolist())
    words: list[int] = []
    low, span = 0, (1 << STATE) - 1
    for row, (starts, weights) in zip(rows, tables.derived("range_python", _python_tables), strict=False):
        for symbol in row:
            scale = span >> PRECISION
            low += scale * starts[symbol]
            span = scale * weights[symbol]
            if span <= _WORD_MASK:
                words.append(low >> WORD)  # 33 bits when a carry is due; it is passed on at the end
                low = (low & _WORD_MASK) << WORD
                span <<= WORD
    carry, tail = shortest_tail(low, span)
    return (_settled(words, carry) + tail).rstrip(b"\0")


def decode_python(
    data: bytes, tables: SymbolTables, num_positions: int, num_channels: int | None = None
) -> NDArray[np.int32]:
    """Decode without constriction; the same symbols as `decode`, and the same refusals.

    Args:
        data: the message.
        tables: the tables it was coded with.
        num_positions: how many symbols each channel has.
        num_channels: how many channels were coded; all of the tables by default.

    Shapes:
        result: ``(num_channels, num_positions)``.

    Raises:
        PayloadError: no message of this length decodes from these bytes.
        FeatureError: there are no tables for so many channels.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> decode_python(bytes.fromhex("a0"), SymbolTables([[2**23, 2**23]]), num_positions=3).tolist()
        [[1, 0, 1]]

    Source: this project.
    """
    channels = _checked_channels(tables, num_positions, num_channels)
    words = cast("list[int]", words_of(data).tolist())
    words += [0, 0]
    code, span, taken = words[0] << WORD | words[1], (1 << STATE) - 1, 2
    result: list[int] = []
    for starts, weights in tables.derived("range_python", _python_tables)[:channels]:
        for _ in range(num_positions):
            scale = span >> PRECISION
            quantile = code // scale
            symbol = bisect_right(starts, quantile) - 1
            code -= scale * starts[symbol]
            span = scale * weights[symbol]
            if code >= span:  # past the last symbol's share: no encoder leaves that corner
                raise undecodable(num_positions * channels)
            result.append(symbol)
            if span <= _WORD_MASK:
                code = code << WORD | (words[taken] if taken < len(words) else 0)
                taken += 1
                span <<= WORD
    return np.array(result, dtype=np.int32).reshape(channels, num_positions)


def decode_prefix(data: bytes, tables: SymbolTables, num_positions: int, num_channels: int) -> NDArray[np.int32]:
    """Decode the channels that the first bytes of a message settle, whatever bytes came after them.

    Args:
        data: the first bytes of a message of `encode`.
        tables: the tables it was coded with.
        num_positions: how many symbols each channel has.
        num_channels: how many channels were coded.

    Returns:
        The symbols of the channels that are certain as a whole, the first ones; there may be none.

    Shapes:
        result: ``(certain channels, num_positions)``.

    Raises:
        FeatureError: there are no tables for so many channels.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> tables = SymbolTables([[2**23, 2**23]] * 3)
        >>> message = encode([[1, 0] * 8, [0, 1] * 8, [1, 1] * 8], tables)
        >>> len(message), decode_prefix(message[:4], tables, num_positions=16, num_channels=3).tolist()
        (7, [[1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]])

    Source: this project.
    """
    channels = _checked_channels(tables, num_positions, num_channels)
    library = range_constriction.find()
    if library is None:
        return decode_prefix_python(data, tables, num_positions, channels)
    return range_constriction.decode_prefix(data, tables, (channels, num_positions), library)


def decode_prefix_python(data: bytes, tables: SymbolTables, num_positions: int, num_channels: int) -> NDArray[np.int32]:
    """Decode the first bytes of a message without constriction; the same symbols as `decode_prefix`.

    Args:
        data: the first bytes of a message of `encode`.
        tables: the tables it was coded with.
        num_positions: how many symbols each channel has.
        num_channels: how many channels were coded.

    Shapes:
        result: ``(certain channels, num_positions)``.

    Raises:
        FeatureError: there are no tables for so many channels.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> tables = SymbolTables([[2**23, 2**23]] * 2)
        >>> decode_prefix_python(bytes.fromhex("a0"), tables, num_positions=3, num_channels=2).tolist()
        [[1, 0, 1], [0, 0, 0]]

    Source: this project.
    """
    channels = _checked_channels(tables, num_positions, num_channels)
    least, most = (
        iter(cast("list[int]", words_of(data + fill * (-len(data) % 4)).tolist())) for fill in (b"\0", b"\xff")
    )
    span = (1 << STATE) - 1
    low, high = 0, 0
    for _ in range(2):
        low, high = low << WORD | next(least, 0), high << WORD | next(most, _WORD_MASK)
    result: list[list[int]] = []
    for starts, weights in tables.derived("range_python", _python_tables)[:channels]:
        row: list[int] = []
        for _ in range(num_positions):
            scale = span >> PRECISION
            symbol = bisect_right(starts, low // scale) - 1
            if bisect_right(starts, min(high, span - 1) // scale) - 1 != symbol:
                return np.array(result, dtype=np.int32).reshape(len(result), num_positions)
            low, high = low - scale * starts[symbol], high - scale * starts[symbol]
            span = scale * weights[symbol]
            row.append(symbol)
            if span <= _WORD_MASK:
                low, high = low << WORD | next(least, 0), high << WORD | next(most, _WORD_MASK)
                span <<= WORD
        result.append(row)
    return np.array(result, dtype=np.int32).reshape(len(result), num_positions)


def _checked_channels(tables: SymbolTables, num_positions: int, num_channels: int | None) -> int:
    channels = tables.num_channels if num_channels is None else num_channels
    if not 1 <= channels <= tables.num_channels or num_positions < 0:
        raise FeatureError(
            f"cannot decode {channels} channels of {num_positions} symbols with tables for {tables.num_channels}"
        )
    return channels


def _python_tables(tables: SymbolTables) -> list[tuple[list[int], list[int]]]:
    rows = cast("list[list[int]]", tables.weights.tolist())
    return [([0, *accumulate(row[:-1])], row) for row in rows]


def _settled(words: list[int], carry: int) -> bytes:
    """Pass each word's carry on to the word before it."""
    for index in range(len(words) - 1, -1, -1):
        total = words[index] + carry
        words[index], carry = total & _WORD_MASK, total >> WORD
    return np.array(words, dtype=">u4").tobytes()
