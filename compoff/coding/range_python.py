"""The range coder in pure Python, run by run; what is slow of it stays in this file.

A run is some symbols of one table, one after the other. The same bytes as constriction's (`range_constriction`).
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from compoff.coding.range_interval import STATE, WORD, shortest_tail, undecodable, words_of
from compoff.coding.tables import PRECISION

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compoff.coding.tables import SymbolTables

__all__ = ["PrefixReader", "Reader", "Shares", "encode", "shares_of"]

_WORD_MASK = (1 << WORD) - 1


class Shares(NamedTuple):
    """Where each symbol's share of a table starts, and how wide it is."""

    starts: list[int]
    weights: list[int]


def shares_of(tables: SymbolTables) -> list[Shares]:
    """The shares of every table.

    Args:
        tables: The tables.

    Returns:
        One entry a table, built once.
    """

    def build(tables: SymbolTables) -> list[Shares]:
        rows = cast("list[list[int]]", tables.weights.tolist())
        return [Shares([0, *accumulate(row[:-1])], row) for row in rows]

    return tables.derived("range_python", build)


def encode(runs: Iterable[tuple[list[int], Shares]]) -> bytes:
    """Code symbols into the shortest message.

    Args:
        runs: The symbols of each run, and their table.

    Returns:
        The message.
    """
    words: list[int] = []
    low, span = 0, (1 << STATE) - 1
    for symbols, (starts, weights) in runs:
        for symbol in symbols:
            scale = span >> PRECISION
            low += scale * starts[symbol]
            span = scale * weights[symbol]
            if span <= _WORD_MASK:
                words.append(low >> WORD)  # 33 bits when a carry is due; it is passed on at the end
                low = (low & _WORD_MASK) << WORD
                span <<= WORD
    carry, tail = shortest_tail(low, span)
    return (_settled(words, carry) + tail).rstrip(b"\0")


def _settled(words: list[int], carry: int) -> bytes:
    """Pass each word's carry on to the word before it."""
    for index in range(len(words) - 1, -1, -1):
        total = words[index] + carry
        words[index], carry = total & _WORD_MASK, total >> WORD
    return np.array(words, dtype=">u4").tobytes()


class Reader:
    """Reads a message, run by run.

    Args:
        data: The message.
    """

    def __init__(self, data: bytes) -> None:
        self._words = iter(cast("list[int]", words_of(data).tolist()))
        self._code, self._span = next(self._words, 0) << WORD | next(self._words, 0), (1 << STATE) - 1

    def read(self, shares: Shares, count: int) -> list[int]:
        """The next symbols.

        Args:
            shares: Their table.
            count: How many.

        Returns:
            The symbols.

        Raises:
            PayloadError: No message decodes from these bytes.
        """
        (starts, weights), code, span, words = shares, self._code, self._span, self._words
        result: list[int] = []
        for _ in range(count):
            scale = span >> PRECISION
            symbol = bisect_right(starts, code // scale) - 1
            code -= scale * starts[symbol]
            span = scale * weights[symbol]
            if code >= span:  # past the last symbol's share: no encoder leaves that corner
                raise undecodable(count)
            result.append(symbol)
            if span <= _WORD_MASK:
                code = code << WORD | next(words, 0)
                span <<= WORD
        self._code, self._span = code, span
        return result


class PrefixReader:
    """Reads what the first bytes of a message settle, run by run.

    Args:
        data: The first bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._least, self._most = (
            iter(cast("list[int]", words_of(data + fill * (-len(data) % 4)).tolist())) for fill in (b"\0", b"\xff")
        )
        self._span, self._low, self._high = (1 << STATE) - 1, 0, 0
        for _ in range(2):
            self._take()

    def _take(self) -> None:
        # Words that are not there may be the least, or the most, that a word can be.
        self._low = self._low << WORD | next(self._least, 0)
        self._high = self._high << WORD | next(self._most, _WORD_MASK)

    def read(self, shares: Shares, count: int) -> list[int] | None:
        """The next symbols.

        Args:
            shares: Their table.
            count: How many.

        Returns:
            The symbols; None where one of them is not certain, after which nothing is.
        """
        starts, weights = shares
        result: list[int] = []
        for _ in range(count):
            scale = self._span >> PRECISION
            symbol = bisect_right(starts, self._low // scale) - 1
            if bisect_right(starts, self._high // scale) - 1 != symbol:
                return None
            self._low, self._high = self._low - scale * starts[symbol], self._high - scale * starts[symbol]
            self._span = scale * weights[symbol]
            result.append(symbol)
            if self._span <= _WORD_MASK:
                self._take()
                self._span <<= WORD
        return result
