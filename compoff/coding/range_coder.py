"""The range coder: symbols to the shortest bytes that name them, at their cross-entropy plus a fraction of a byte.

The interval starts as ``[0, 2**64 - 1)``; each symbol narrows it to its share, and each time it falls under
``2**32`` one 32-bit word is settled. A message is the shortest byte string that, read with zeros after its end,
lies in the final interval. constriction does this where it imports, pure Python elsewhere, with the same bytes.
The file does not know what the symbols mean, nor who checks that the bytes arrived whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from compoff.coding import range_constriction, range_python
from compoff.coding.range_interval import undecodable
from compoff.errors import FeatureError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = [
    "RunReader",
    "decode",
    "decode_prefix",
    "decode_prefix_python",
    "decode_python",
    "encode",
    "encode_python",
    "encode_runs",
    "read_runs",
]


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
    return range_python.encode(zip(rows, range_python.shares_of(tables), strict=False))


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
    reader = range_python.Reader(data)
    try:
        rows = [reader.read(shares, num_positions) for shares in range_python.shares_of(tables)[:channels]]
    except PayloadError:
        raise undecodable(num_positions * channels) from None
    return np.array(rows, dtype=np.int32).reshape(channels, num_positions)


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
    reader = range_python.PrefixReader(data)
    result: list[list[int]] = []
    for shares in range_python.shares_of(tables)[:channels]:
        row = reader.read(shares, num_positions)
        if row is None:
            break
        result.append(row)
    return np.array(result, dtype=np.int32).reshape(len(result), num_positions)


class RunReader(Protocol):
    """Reads a message run by run; a run is some symbols of one table, one after the other."""

    def read(self, table: int, count: int) -> NDArray[np.int32] | None:
        """The next symbols.

        Args:
            table: Index of their table.
            count: How many.

        Returns:
            The symbols; None where only the first bytes of a message are read and do not settle them.

        Raises:
            PayloadError: no message decodes from these bytes.
        """
        ...


def encode_runs(
    symbols: NDArray[np.int32], runs: Sequence[tuple[int, int]], tables: SymbolTables, *, python: bool = False
) -> bytes:
    """Code symbols whose tables change from run to run into the shortest message.

    Args:
        symbols: the symbols of all runs, one after the other, each below ``tables.num_symbols``.
        runs: index of the table of each run, and how many symbols it has.
        tables: how probable each symbol is.
        python: whether to do without constriction; the bytes are the same.

    Returns:
        The message; neither its length nor the runs are in it.

    Shapes:
        symbols: ``(positions,)``.

    Examples:
        >>> import numpy as np
        >>> from compoff.coding import SymbolTables
        >>> tables = SymbolTables.from_counts([[9, 1], [1, 9]])
        >>> message = encode_runs(np.array([0, 0, 1, 1, 0], np.int32), [(0, 2), (1, 2), (0, 1)], tables)
        >>> reader = read_runs(message, tables)
        >>> reader.read(0, 2).tolist(), reader.read(1, 2).tolist(), reader.read(0, 1).tolist()
        ([0, 0], [1, 1], [0])

    Source: this project; arithmetic of constriction 0.5 (``stream.queue``), with a shorter end.
    """
    library = None if python else range_constriction.find()
    if library is not None:
        return range_constriction.encode_runs(symbols, runs, tables, library)
    shares, pieces = range_python.shares_of(tables), np.split(symbols, np.cumsum([count for _, count in runs])[:-1])
    return range_python.encode(
        (cast("list[int]", piece.tolist()), shares[table]) for piece, (table, _) in zip(pieces, runs, strict=True)
    )


def read_runs(data: bytes, tables: SymbolTables, *, prefix: bool = False, python: bool = False) -> RunReader:
    """Read a message of `encode_runs`, whose next run may depend on what was read.

    Args:
        data: the message, or its first bytes.
        tables: the tables it was coded with.
        prefix: whether more bytes came after these, and only what these settle is to be read.
        python: whether to do without constriction; the symbols are the same.

    Returns:
        What gives the symbols, run by run.

    Source: this project.
    """
    library = None if python else range_constriction.find()
    if library is None:
        return _PythonRuns(range_python.PrefixReader(data) if prefix else range_python.Reader(data), tables)
    reader = range_constriction.PrefixRuns if prefix else range_constriction.Runs
    return reader(data, tables, library)


class _PythonRuns:
    def __init__(self, reader: range_python.Reader | range_python.PrefixReader, tables: SymbolTables) -> None:
        self._reader = reader
        self._shares = range_python.shares_of(tables)

    def read(self, table: int, count: int) -> NDArray[np.int32] | None:
        found = self._reader.read(self._shares[table], count)
        return None if found is None else np.array(found, dtype=np.int32)


def _checked_channels(tables: SymbolTables, num_positions: int, num_channels: int | None) -> int:
    channels = tables.num_channels if num_channels is None else num_channels
    if not 1 <= channels <= tables.num_channels or num_positions < 0:
        raise FeatureError(
            f"cannot decode {channels} channels of {num_positions} symbols with tables for {tables.num_channels}"
        )
    return channels
