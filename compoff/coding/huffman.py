"""Canonical Huffman coding, the entropy coder of the paper, kept for comparison.

A symbol costs a whole number of bits, at least one, so peaked tables cost three times and more what the range coder
needs; it is the fastest encoder where constriction is missing. Code words follow from the tables alone.
The file does not know who checks that the bytes arrived whole.
"""

from __future__ import annotations

import heapq
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from compoff.errors import FeatureError, PayloadError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = ["code_lengths", "decode", "encode"]

_BYTE = 8
# Code words are looked up in windows of 64 bits that start at any bit of a byte, so a word may have 57 bits.
# The longest that weights summing to 2**24 can make has 34.
_WINDOW = 64
# Bits looked at in one step: bounds the memory, whatever the length of the message.
_MOST_STEP_BITS = 1 << 16


class _Ranks(NamedTuple):
    """The code words of one channel in their canonical order, for the decoder."""

    starts: NDArray[np.uint64]
    symbols: NDArray[np.int32]
    lengths: NDArray[np.int64]
    mean_bits: float


class _Book(NamedTuple):
    """The code of every channel: words and lengths by symbol for the encoder, ranks for the decoder."""

    words: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    ranks: list[_Ranks]


def encode(symbols: ArrayLike, tables: SymbolTables) -> bytes:
    """Code symbols, channel after channel, each with the Huffman code of its channel.

    Args:
        symbols: whole numbers below ``tables.num_symbols``; fewer channels than tables are the first ones.
        tables: how probable each symbol is in each channel.

    Returns:
        The code words, highest bit first, with zero bits to the end of the last byte.

    Shapes:
        symbols: ``(channels, positions)``.

    Raises:
        FeatureError: the symbols do not fit the tables.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> encode([[0, 2, 1]], SymbolTables([[2**23, 2**22, 2**22]])).hex()
        '70'

    Source: paper §3.4.1 names Huffman coding; canonical order by this project.
    """
    checked = tables.checked(symbols)
    book = tables.derived("huffman", _book)
    indices = checked.astype(np.int64)
    words = np.take_along_axis(book.words[: len(checked)], indices, axis=1).reshape(-1)
    lengths = np.take_along_axis(book.lengths[: len(checked)], indices, axis=1).reshape(-1)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    counts = lengths.astype(np.intp)  # what numpy counts with; on a 32-bit system it refuses others
    places = (np.repeat(ends, counts) - 1 - np.arange(total)).astype(np.uint64)
    bits = np.repeat(words, counts) >> places & np.uint64(1)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def decode(data: bytes, tables: SymbolTables, num_positions: int, num_channels: int | None = None) -> NDArray[np.int32]:
    """Decode a message made by `encode` with the same tables.

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
        PayloadError: the code words end before or after the bytes do, or filling bits are not zero.
        FeatureError: there are no tables for so many channels.

    Examples:
        >>> from compoff.coding import SymbolTables
        >>> decode(bytes.fromhex("70"), SymbolTables([[2**23, 2**22, 2**22]]), num_positions=3).tolist()
        [[0, 2, 1]]

    Source: this project.
    """
    channels = tables.num_channels if num_channels is None else num_channels
    if not 1 <= channels <= tables.num_channels or num_positions < 0:
        raise FeatureError(
            f"cannot decode {channels} channels of {num_positions} symbols with tables for {tables.num_channels}"
        )
    padded = np.frombuffer(data + bytes(_WINDOW // _BYTE), dtype=np.uint8)
    symbols = np.empty((channels, num_positions), dtype=np.int32)
    place = 0
    for row, ranks in zip(symbols, tables.derived("huffman", _book).ranks, strict=False):
        place = _decode_row(padded, place, row, ranks)
    _check_end(data, place)
    return symbols


def code_lengths(weights: list[int]) -> list[int]:
    """Find the lengths of the code words of an optimal prefix code.

    Args:
        weights: how often each symbol comes, at least two of them.

    Returns:
        Bits of each symbol's word.

    Examples:
        >>> code_lengths([5, 1, 1, 2])
        [1, 3, 3, 2]

    Source: D. A. Huffman's construction; the tie rule (earlier made first) is this project's and part of the format.
    """
    heap = [(weight, index, [index]) for index, weight in enumerate(weights)]
    heapq.heapify(heap)
    lengths = [0] * len(weights)
    for made in range(len(weights), 2 * len(weights) - 1):
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        for index in members:
            lengths[index] += 1
        heapq.heappush(heap, (first[0] + second[0], made, members))
    return lengths


def _book(tables: SymbolTables) -> _Book:
    weights = cast("list[list[int]]", tables.weights.tolist())
    lengths = [code_lengths(row) for row in weights]
    ranks = [_ranked(*pair) for pair in zip(lengths, weights, strict=True)]
    words = np.zeros((tables.num_channels, tables.num_symbols), dtype=np.uint64)
    for row, channel in zip(words, ranks, strict=True):
        row[channel.symbols] = channel.starts >> (_WINDOW - channel.lengths).astype(np.uint64)
    return _Book(words, np.array(lengths, dtype=np.int64), ranks)


def _ranked(lengths: list[int], weights: list[int]) -> _Ranks:
    """Number the words: shorter before longer, then by symbol."""
    order = sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol))
    shares = [1 << (_WINDOW - lengths[symbol]) for symbol in order]
    return _Ranks(
        starts=np.array([0, *accumulate(shares[:-1])], dtype=np.uint64),
        symbols=np.array(order, dtype=np.int32),
        lengths=np.array([lengths[symbol] for symbol in order], dtype=np.int64),
        mean_bits=sum(map(mul, lengths, weights)) / sum(weights),
    )


def _decode_row(padded: NDArray[np.uint8], place: int, row: NDArray[np.int32], ranks: _Ranks) -> int:
    """Fill one channel with the words that begin at bit ``place``; return the bit after the last of them."""
    last_bit = _BYTE * (len(padded) - _WINDOW // _BYTE)
    filled = 0
    while filled < len(row):
        if place >= last_bit:
            raise PayloadError(f"the Huffman words end before the last symbol, {len(row) - filled} symbols short")
        likely = int((len(row) - filled) * ranks.mean_bits) + _WINDOW
        step = min(likely, _MOST_STEP_BITS, last_bit - place)
        found = np.searchsorted(ranks.starts, _windows(padded, place, step), side="right") - 1
        lengths = ranks.lengths[found]
        places = _walk(lengths.tolist(), len(row) - filled)
        row[filled : filled + len(places)] = ranks.symbols[found[places]]
        filled += len(places)
        place += places[-1] + int(lengths[places[-1]])
    return place


def _walk(lengths: list[int], most: int) -> list[int]:
    """Go from word to word; ``lengths`` holds the length of the word that begins at each bit."""
    places: list[int] = []
    place = 0
    while place < len(lengths) and len(places) < most:
        places.append(place)
        place += lengths[place]
    return places


def _windows(padded: NDArray[np.uint8], place: int, step: int) -> NDArray[np.uint64]:
    """Give the bits from each of ``step`` places on, left-justified in 64 bits (57 of them hold)."""
    first, end = place // _BYTE, (place + step - 1) // _BYTE + 1
    view = np.lib.stride_tricks.sliding_window_view(padded[first : end + _BYTE - 1], _BYTE)
    words = np.ascontiguousarray(view).view(">u8").astype(np.uint64)
    windows = (words << np.arange(_BYTE, dtype=np.uint64)).reshape(-1)
    return windows[place % _BYTE : place % _BYTE + step]


def _check_end(data: bytes, place: int) -> None:
    if not 0 <= _BYTE * len(data) - place < _BYTE:
        raise PayloadError(f"the Huffman words end at bit {place} of {_BYTE * len(data)}; bytes were lost or added")
    if place % _BYTE and data[-1] & (0xFF >> place % _BYTE):
        raise PayloadError("the bits after the last Huffman word are not zero; the bytes are damaged")
