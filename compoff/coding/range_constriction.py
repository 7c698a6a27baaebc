"""The range coder in constriction: compiled, without type stubs; what is untyped of it stays in this file.

The same bytes as pure Python's (`range_coder`), on every platform.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np

from compoff.coding.range_interval import shortest_tail, undecodable, words_of
from compoff.coding.tables import PRECISION

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from compoff.coding.tables import SymbolTables

__all__ = ["Library", "PrefixRuns", "Runs", "decode", "decode_prefix", "encode", "encode_runs", "find"]

# One call for all symbols needs a row of floats for each; up to this many floats a channel it beats a call a channel.
_MOST_FAMILY_FLOATS, _MOST_FAMILY_POSITIONS = 256, 32
# An encoder needs no more of a table than what lies below, at and above the symbol: three floats.
_MOST_SHARED_POSITIONS = 24
# Symbols of a prefix that are decoded and compared at a time.
_PREFIX_STEP = 1024


class _Encoder(Protocol):
    def encode(self, symbols: NDArray[np.int32], model: object, rows: NDArray[np.float64] = ...) -> None: ...
    def pos(self) -> tuple[int, tuple[int, int]]: ...
    def get_compressed(self) -> NDArray[np.uint32]: ...


class _Decoder(Protocol):
    def decode(self, model: object, what: int | NDArray[np.float64]) -> NDArray[np.int32]: ...
    def clone(self) -> _Decoder: ...


class Library(NamedTuple):
    """What is used of constriction, with types."""

    encoder: Callable[[], _Encoder]
    decoder: Callable[[NDArray[np.uint32]], _Decoder]
    model: Callable[[NDArray[np.float64]], object]
    family: object


class _Models(NamedTuple):
    # weight - 1 as a float makes constriction's own rounding the identity, on every platform
    rows: NDArray[np.float64]
    channels: list[object]


@functools.cache
def find() -> Library | None:
    """Import it, once.

    Returns:
        What is used of it; None where it cannot be had.
    """
    try:
        module = importlib.import_module("constriction")
    except ImportError:
        return None
    categorical = module.stream.model.Categorical
    return Library(
        encoder=cast("Callable[[], _Encoder]", module.stream.queue.RangeEncoder),
        decoder=cast("Callable[[NDArray[np.uint32]], _Decoder]", module.stream.queue.RangeDecoder),
        model=cast("Callable[[NDArray[np.float64]], object]", functools.partial(categorical, perfect=False)),
        family=cast("object", categorical(perfect=False)),
    )


def _models(tables: SymbolTables, library: Library) -> _Models:
    def build(tables: SymbolTables) -> _Models:
        rows = tables.weights.astype(np.float64) - 1
        return _Models(rows, [library.model(row) for row in rows])

    return tables.derived("range_constriction", build)


class _Shares(NamedTuple):
    # of each symbol of each channel, end to end: weight - 1 of what is below, at and above it, and which one it is
    rows: NDArray[np.float64]
    places: NDArray[np.int32]


def _shares(tables: SymbolTables) -> _Shares:
    def build(tables: SymbolTables) -> _Shares:
        weights = tables.weights.astype(np.int64)
        ends = np.cumsum(weights, axis=1)
        rows = np.stack([ends - weights, weights, (1 << PRECISION) - ends], axis=2).astype(np.float64)
        places = np.ones(weights.shape, np.int32)
        # No share may be empty: beside the first and the last symbol the rest is parted in two.
        rows[:, 0] = np.stack([weights[:, 0], np.ones_like(ends[:, 0]), rows[:, 0, 2] - 1], axis=1)
        rows[:, -1] = np.stack([np.ones_like(ends[:, 0]), rows[:, -1, 0] - 1, weights[:, -1]], axis=1)
        places[:, 0], places[:, -1] = 0, 2
        return _Shares((rows - 1).reshape(-1, 3), places.reshape(-1))

    return tables.derived("range_shares", build)


def _one_call(tables: SymbolTables, num_positions: int) -> bool:
    return num_positions <= _MOST_FAMILY_POSITIONS and num_positions * tables.num_symbols <= _MOST_FAMILY_FLOATS


def encode(symbols: NDArray[np.int32], tables: SymbolTables, library: Library) -> bytes:
    """Code symbols into the shortest message; see `range_coder.encode`.

    Args:
        symbols: Symbols that fit the tables.
        tables: How probable each is.
        library: constriction.

    Returns:
        The message.

    Shapes:
        symbols: ``(channels, positions)``.
    """
    encoder, (channels, positions) = library.encoder(), symbols.shape
    if positions <= _MOST_SHARED_POSITIONS and tables.num_symbols > 2:
        shares = _shares(tables)
        starts = np.arange(channels, dtype=np.int32)[:, None] * tables.num_symbols
        chosen: NDArray[np.int32] = (symbols + starts).reshape(-1)
        encoder.encode(shares.places[chosen], library.family, shares.rows[chosen])
    else:
        for row, model in zip(symbols, _models(tables, library).channels, strict=False):
            encoder.encode(row, model)
    return _ended(encoder)


def encode_runs(
    symbols: NDArray[np.int32], runs: Sequence[tuple[int, int]], tables: SymbolTables, library: Library
) -> bytes:
    """Code symbols whose tables change from run to run; see `range_coder.encode_runs`.

    Args:
        symbols: The symbols of all runs.
        runs: Table and length of each run.
        tables: How probable each symbol is.
        library: constriction.

    Returns:
        The message.

    Shapes:
        symbols: ``(positions,)``.
    """
    encoder = library.encoder()
    if tables.num_symbols > 2 and len(symbols) <= _MOST_SHARED_POSITIONS * len(runs):
        shares, spans = _shares(tables), np.array(runs, np.int32).reshape(-1, 2)
        chosen: NDArray[np.int32] = symbols + np.repeat(spans[:, 0], spans[:, 1]) * np.int32(tables.num_symbols)
        encoder.encode(shares.places[chosen], library.family, shares.rows[chosen])
    else:
        models, start = _models(tables, library).channels, 0
        for table, count in runs:
            encoder.encode(symbols[start : start + count], models[table])
            start += count
    return _ended(encoder)


def _ended(encoder: _Encoder) -> bytes:
    """The shortest message that says what was coded."""
    settled, (low, span) = encoder.pos()
    sealed: bytes = encoder.get_compressed().astype(">u4").tobytes()
    carry, tail = shortest_tail(low, span)
    head = sealed[: 4 * settled]
    if carry and int.from_bytes(sealed[4 * settled :].ljust(8, b"\0")[:8], "big") >= low:
        # constriction ended below the carry that our shorter end takes: add it to the words it settled
        head = (int.from_bytes(head, "big") + 1).to_bytes(len(head), "big")
    return (head + tail).rstrip(b"\0")


def decode(data: bytes, tables: SymbolTables, shape: tuple[int, int], library: Library) -> NDArray[np.int32]:
    """Decode a message; see `range_coder.decode`.

    Args:
        data: The message.
        tables: The tables it was coded with.
        shape: Channels and positions.
        library: constriction.

    Returns:
        The symbols, of that shape.

    Raises:
        PayloadError: No message of this length decodes from these bytes.
    """
    decoder, models = library.decoder(words_of(data)), _models(tables, library)
    channels, positions = shape
    try:
        if _one_call(tables, positions):
            return decoder.decode(library.family, np.repeat(models.rows[:channels], positions, axis=0)).reshape(shape)
        result = np.empty(shape, dtype=np.int32)
        for row, model in zip(result, models.channels, strict=False):
            row[:] = decoder.decode(model, positions)
    except (AssertionError, ValueError, KeyError) as error:
        raise undecodable(channels * positions) from error
    return result


class _Reader:
    """One reading of a prefix: its symbols, and for ever the last symbol once it has left all shares."""

    def __init__(self, data: bytes, last: int, library: Library) -> None:
        self._decoder: _Decoder | None = library.decoder(words_of(data))
        self._last = last

    def read(self, model: object, count: int) -> NDArray[np.int32]:
        if self._decoder is not None:
            before = self._decoder.clone()
            try:
                return self._decoder.decode(model, count)
            except (AssertionError, ValueError, KeyError):
                self._decoder = None
            result = np.full(count, self._last, np.int32)
            for index in range(count):  # up to where it left them, one by one
                try:
                    result[index] = before.decode(model, 1)[0]
                except (AssertionError, ValueError, KeyError):
                    break
            return result
        return np.full(count, self._last, np.int32)


def decode_prefix(data: bytes, tables: SymbolTables, shape: tuple[int, int], library: Library) -> NDArray[np.int32]:
    """Decode what the first bytes of a message settle; see `range_coder.decode_prefix`.

    That is what the least and the most that may come after them have in common.

    Args:
        data: The first bytes.
        tables: The tables the message was coded with.
        shape: Its channels and positions.
        library: constriction.

    Returns:
        The symbols of the channels that are certain as a whole.
    """
    channels, positions = shape
    reader = PrefixRuns(data, tables, library)
    result: list[NDArray[np.int32]] = []
    for channel in range(channels):
        row = reader.read(channel, positions)
        if row is None:
            break
        result.append(row)
    return np.array(result, dtype=np.int32).reshape(len(result), positions)


class Runs:
    """Reads a message run by run; see `range_coder.read_runs`.

    Args:
        data: The message.
        tables: The tables it was coded with.
        library: constriction.
    """

    def __init__(self, data: bytes, tables: SymbolTables, library: Library) -> None:
        self._decoder = library.decoder(words_of(data))
        self._models = _models(tables, library).channels

    def read(self, table: int, count: int) -> NDArray[np.int32]:
        """The next symbols.

        Args:
            table: Index of their table.
            count: How many.

        Returns:
            The symbols.

        Raises:
            PayloadError: No message decodes from these bytes.
        """
        try:
            return self._decoder.decode(self._models[table], count)
        except (AssertionError, ValueError, KeyError) as error:
            raise undecodable(count) from error


class PrefixRuns:
    """Reads what the first bytes of a message settle, run by run: what the least and the most may have in common.

    Args:
        data: The first bytes.
        tables: The tables the message was coded with.
        library: constriction.
    """

    def __init__(self, data: bytes, tables: SymbolTables, library: Library) -> None:
        last = tables.num_symbols - 1
        # Two whole words of which nothing is known decide nothing any more.
        self._least, self._most = _Reader(data, last, library), _Reader(data + b"\xff" * 16, last, library)
        self._models = _models(tables, library).channels

    def read(self, table: int, count: int) -> NDArray[np.int32] | None:
        """The next symbols.

        Args:
            table: Index of their table.
            count: How many.

        Returns:
            The symbols; None where one of them is not certain, after which nothing is.
        """
        model, row = self._models[table], np.empty(count, np.int32)
        for start in range(0, count, _PREFIX_STEP):
            step = row[start : start + _PREFIX_STEP]
            step[:] = self._least.read(model, step.size)
            if not np.array_equal(step, self._most.read(model, step.size)):
                return None
        return row
