"""The range coder: symbols to the shortest bytes that name them, at their cross-entropy plus a fraction of a byte.

The interval starts as ``[0, 2**64 - 1)``; each symbol narrows it to its share, and each time it falls under
``2**32`` one 32-bit word is settled. A message is the shortest byte string that, read with zeros after its end,
lies in the final interval. constriction does this where it imports, pure Python elsewhere, with the same bytes.
The file does not know what the symbols mean, nor who checks that the bytes arrived whole.
"""

from __future__ import annotations

import functools
import importlib
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np

from compoff.coding.tables import PRECISION
from compoff.errors import FeatureError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = ["decode", "decode_prefix", "decode_prefix_python", "decode_python", "encode", "encode_python"]

_WORD = 32
_WORD_MASK = (1 << _WORD) - 1
_STATE = 64
# One call for all symbols needs a row of floats for each; up to this many floats a channel it beats a call a channel.
_MOST_FAMILY_FLOATS, _MOST_FAMILY_POSITIONS = 256, 32
# An encoder needs no more of a table than what lies below, at and above the symbol: three floats.
_MOST_SHARED_POSITIONS = 24
# Symbols of a prefix that are decoded and compared at a time.
_PREFIX_STEP = 1024


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
    library = _constriction()
    if library is None:
        return encode_python(symbols, tables)
    return _encode_constriction(tables.checked(symbols), tables, library)


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
    library = _constriction()
    if library is None:
        return decode_python(data, tables, num_positions, channels)
    return _decode_constriction(data, tables, (channels, num_positions), library)


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
    low, span = 0, (1 << _STATE) - 1
    for row, (starts, weights) in zip(rows, tables.derived("range_python", _python_tables), strict=False):
        for symbol in row:
            scale = span >> PRECISION
            low += scale * starts[symbol]
            span = scale * weights[symbol]
            if span <= _WORD_MASK:
                words.append(low >> _WORD)  # 33 bits when a carry is due; it is passed on at the end
                low = (low & _WORD_MASK) << _WORD
                span <<= _WORD
    carry, tail = _shortest_tail(low, span)
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
    words = cast("list[int]", _words(data).tolist())
    words += [0, 0]
    code, span, taken = words[0] << _WORD | words[1], (1 << _STATE) - 1, 2
    result: list[int] = []
    for starts, weights in tables.derived("range_python", _python_tables)[:channels]:
        for _ in range(num_positions):
            scale = span >> PRECISION
            quantile = code // scale
            symbol = bisect_right(starts, quantile) - 1
            code -= scale * starts[symbol]
            span = scale * weights[symbol]
            if code >= span:  # past the last symbol's share: no encoder leaves that corner
                raise _undecodable(num_positions * channels)
            result.append(symbol)
            if span <= _WORD_MASK:
                code = code << _WORD | (words[taken] if taken < len(words) else 0)
                taken += 1
                span <<= _WORD
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
    library = _constriction()
    if library is None:
        return decode_prefix_python(data, tables, num_positions, channels)
    return _decode_prefix_constriction(data, tables, (channels, num_positions), library)


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
        iter(cast("list[int]", _words(data + fill * (-len(data) % 4)).tolist())) for fill in (b"\0", b"\xff")
    )
    span = (1 << _STATE) - 1
    low, high = 0, 0
    for _ in range(2):
        low, high = low << _WORD | next(least, 0), high << _WORD | next(most, _WORD_MASK)
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
                low, high = low << _WORD | next(least, 0), high << _WORD | next(most, _WORD_MASK)
                span <<= _WORD
        result.append(row)
    return np.array(result, dtype=np.int32).reshape(len(result), num_positions)


def _checked_channels(tables: SymbolTables, num_positions: int, num_channels: int | None) -> int:
    channels = tables.num_channels if num_channels is None else num_channels
    if not 1 <= channels <= tables.num_channels or num_positions < 0:
        raise FeatureError(
            f"cannot decode {channels} channels of {num_positions} symbols with tables for {tables.num_channels}"
        )
    return channels


def _undecodable(count: int) -> PayloadError:
    return PayloadError(f"the coded bytes hold no message of {count} symbols under these tables; they are damaged")


def _python_tables(tables: SymbolTables) -> list[tuple[list[int], list[int]]]:
    rows = cast("list[list[int]]", tables.weights.tolist())
    return [([0, *accumulate(row[:-1])], row) for row in rows]


def _words(data: bytes) -> NDArray[np.uint32]:
    return np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4").astype(np.uint32)


def _shortest_tail(low: int, span: int) -> tuple[int, bytes]:
    """Find the fewest bytes that, with zeros after them, lie in ``[low, low + span)``; the carry goes before them."""
    shift = _STATE
    while -(-low >> shift) << shift >= low + span:
        shift -= 8
    value, length = -(-low >> shift), (_STATE - shift) // 8
    carry, tail = value >> 8 * length, value & ((1 << 8 * length) - 1)
    return carry, tail.to_bytes(length, "big")


def _settled(words: list[int], carry: int) -> bytes:
    """Pass each word's carry on to the word before it."""
    for index in range(len(words) - 1, -1, -1):
        total = words[index] + carry
        words[index], carry = total & _WORD_MASK, total >> _WORD
    return np.array(words, dtype=">u4").tobytes()


# ── constriction: compiled, without type stubs; everything untyped stays below this line ──


class _Encoder(Protocol):
    def encode(self, symbols: NDArray[np.int32], model: object, rows: NDArray[np.float64] = ...) -> None: ...
    def pos(self) -> tuple[int, tuple[int, int]]: ...
    def get_compressed(self) -> NDArray[np.uint32]: ...


class _Decoder(Protocol):
    def decode(self, model: object, what: int | NDArray[np.float64]) -> NDArray[np.int32]: ...
    def clone(self) -> _Decoder: ...


class _Constriction(NamedTuple):
    encoder: Callable[[], _Encoder]
    decoder: Callable[[NDArray[np.uint32]], _Decoder]
    model: Callable[[NDArray[np.float64]], object]
    family: object


class _Models(NamedTuple):
    # weight - 1 as a float makes constriction's own rounding the identity, on every platform
    rows: NDArray[np.float64]
    channels: list[object]


@functools.cache
def _constriction() -> _Constriction | None:
    try:
        library = importlib.import_module("constriction")
    except ImportError:
        return None
    categorical = library.stream.model.Categorical
    return _Constriction(
        encoder=cast("Callable[[], _Encoder]", library.stream.queue.RangeEncoder),
        decoder=cast("Callable[[NDArray[np.uint32]], _Decoder]", library.stream.queue.RangeDecoder),
        model=cast("Callable[[NDArray[np.float64]], object]", functools.partial(categorical, perfect=False)),
        family=cast("object", categorical(perfect=False)),
    )


def _models(tables: SymbolTables, library: _Constriction) -> _Models:
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


def _encode_constriction(symbols: NDArray[np.int32], tables: SymbolTables, library: _Constriction) -> bytes:
    encoder, (channels, positions) = library.encoder(), symbols.shape
    if positions <= _MOST_SHARED_POSITIONS and tables.num_symbols > 2:
        shares = _shares(tables)
        starts = np.arange(channels, dtype=np.int32)[:, None] * tables.num_symbols
        chosen: NDArray[np.int32] = (symbols + starts).reshape(-1)
        encoder.encode(shares.places[chosen], library.family, shares.rows[chosen])
    else:
        for row, model in zip(symbols, _models(tables, library).channels, strict=False):
            encoder.encode(row, model)
    settled, (low, span) = encoder.pos()
    sealed: bytes = encoder.get_compressed().astype(">u4").tobytes()
    carry, tail = _shortest_tail(low, span)
    head = sealed[: 4 * settled]
    if carry and int.from_bytes(sealed[4 * settled :].ljust(8, b"\0")[:8], "big") >= low:
        # constriction ended below the carry that our shorter end takes: add it to the words it settled
        head = (int.from_bytes(head, "big") + 1).to_bytes(len(head), "big")
    return (head + tail).rstrip(b"\0")


def _decode_constriction(
    data: bytes, tables: SymbolTables, shape: tuple[int, int], library: _Constriction
) -> NDArray[np.int32]:
    decoder, models = library.decoder(_words(data)), _models(tables, library)
    channels, positions = shape
    try:
        if _one_call(tables, positions):
            return decoder.decode(library.family, np.repeat(models.rows[:channels], positions, axis=0)).reshape(shape)
        result = np.empty(shape, dtype=np.int32)
        for row, model in zip(result, models.channels, strict=False):
            row[:] = decoder.decode(model, positions)
    except (AssertionError, ValueError, KeyError) as error:
        raise _undecodable(channels * positions) from error
    return result


class _Reader:
    """One reading of a prefix: its symbols, and for ever the last symbol once it has left all shares."""

    def __init__(self, data: bytes, last: int, library: _Constriction) -> None:
        self._decoder: _Decoder | None = library.decoder(_words(data))
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


def _decode_prefix_constriction(
    data: bytes, tables: SymbolTables, shape: tuple[int, int], library: _Constriction
) -> NDArray[np.int32]:
    """What is certain is what the least and the most that may come after the prefix have in common."""
    channels, positions = shape
    last, filled = tables.num_symbols - 1, data + b"\xff" * (-len(data) % 4)
    # Two whole words of which nothing is known decide nothing any more.
    least, most = _Reader(data, last, library), _Reader(filled + b"\xff" * 16, last, library)
    result: list[NDArray[np.int32]] = []
    for model in _models(tables, library).channels[:channels]:
        row = np.empty(positions, np.int32)
        for start in range(0, positions, _PREFIX_STEP):
            step = row[start : start + _PREFIX_STEP]
            step[:] = least.read(model, step.size)
            if not np.array_equal(step, most.read(model, step.size)):
                return np.array(result, dtype=np.int32).reshape(len(result), positions)
        result.append(row)
    return np.array(result, dtype=np.int32).reshape(len(result), positions)
