"""Raw packing: every symbol in the same few bits, the ceiling that no other coder may exceed.

Symbols follow each other with their highest bit first; zero bits fill the last byte.
The file knows no probabilities and no channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.errors import FeatureError, PayloadError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["pack", "pack_width", "packed_length", "unpack", "unpack_prefix", "unpack_width"]

_BYTE = 8
_WORD = 64
# Wide values are taken apart so many at a time: bounds the memory, and each step but the last fills whole bytes.
_STEP = 1 << 15


def packed_length(count: int, num_symbols: int) -> int:
    """Count the bytes of so many packed symbols.

    Args:
        count: how many symbols there are.
        num_symbols: how many values a symbol can take, 2 to 256.

    Returns:
        Bytes.

    Raises:
        FeatureError: ``num_symbols`` is out of range.

    Examples:
        >>> packed_length(1000, 16), packed_length(3, 5)
        (500, 2)

    Source: this project.
    """
    return -(-count * _bits(num_symbols) // _BYTE)


def pack(symbols: ArrayLike, num_symbols: int) -> bytes:
    """Pack symbols at ``ceil(log2(num_symbols))`` bits each.

    Args:
        symbols: whole numbers below ``num_symbols``, of any shape; taken in C order.
        num_symbols: how many values a symbol can take, 2 to 256.

    Returns:
        ``packed_length(symbols.size, num_symbols)`` bytes.

    Raises:
        FeatureError: a symbol is not a whole number below ``num_symbols``.

    Examples:
        >>> pack([1, 2, 3], num_symbols=4).hex()
        '6c'

    Source: this project.
    """
    given = np.asarray(symbols)
    if given.dtype.kind not in "iu" or (given.size and not 0 <= int(given.min()) <= int(given.max()) < num_symbols):
        raise FeatureError(f"symbols to pack must be whole numbers from 0 to {num_symbols - 1}")
    width = _bits(num_symbols)
    if width == _BYTE:
        return given.astype(np.uint8).tobytes()
    if _BYTE % width:
        bits = np.unpackbits(given.astype(np.uint8).reshape(-1, 1), axis=1)[:, _BYTE - width :]
        return np.packbits(bits).tobytes()
    return _pack_whole(given.astype(np.uint8).reshape(-1), width)


def unpack(data: bytes, count: int, num_symbols: int) -> NDArray[np.uint8]:
    """Unpack what `pack` packed.

    Args:
        data: the packed bytes.
        count: how many symbols were packed.
        num_symbols: how many values a symbol can take, 2 to 256.

    Returns:
        The symbols in one row.

    Shapes:
        result: ``(count,)``.

    Raises:
        PayloadError: too few or too many bytes, a symbol out of range, or filling bits that are not zero.

    Examples:
        >>> unpack(bytes.fromhex("6c"), count=3, num_symbols=4).tolist()
        [1, 2, 3]

    Source: this project.
    """
    expected = packed_length(count, num_symbols)
    if len(data) != expected:
        raise PayloadError(f"{count} packed symbols take {expected} bytes, not {len(data)}; bytes were lost or added")
    width = _bits(num_symbols)
    packed = np.frombuffer(data, dtype=np.uint8)
    values, filling = _unpack_whole(packed, width, count) if _BYTE % width == 0 else _unpack_bits(packed, width, count)
    if filling.any():
        raise PayloadError("the bits after the last packed symbol are not zero; the bytes are damaged")
    if values.size and int(values.max()) >= num_symbols:
        raise PayloadError(f"a packed symbol is {values.max()}, expected at most {num_symbols - 1}")
    return values


def pack_width(values: NDArray[np.uint64], width: int) -> bytes:
    """Pack numbers in so many bits each, up to 64.

    Args:
        values: numbers below ``2**width``.
        width: bits a number, 0 to 64; with 0 all numbers are 0 and take nothing.

    Returns:
        ``ceil(values.size * width / 8)`` bytes, highest bit first.

    Shapes:
        values: ``(count,)``.

    Examples:
        >>> pack_width(np.array([1, 1023, 0], np.uint64), width=10).hex()
        '007ff000'

    Source: this project.
    """
    if width <= _BYTE:
        return pack(values.astype(np.uint8), 1 << width) if width else b""
    steps = (values[start : start + _STEP] for start in range(0, values.size, _STEP))
    return b"".join(_pack_wide(step, width) for step in steps)


def unpack_width(data: bytes, count: int, width: int) -> NDArray[np.uint8] | NDArray[np.uint64]:
    """Unpack what `pack_width` packed.

    Args:
        data: the packed bytes.
        count: how many numbers were packed.
        width: bits a number, 0 to 64.

    Returns:
        The numbers, as uint8 where they are narrow enough.

    Shapes:
        result: ``(count,)``.

    Raises:
        PayloadError: too few or too many bytes, or filling bits that are not zero.

    Examples:
        >>> unpack_width(bytes.fromhex("007ff000"), count=3, width=10).tolist()
        [1, 1023, 0]

    Source: this project.
    """
    if 1 <= width <= _BYTE:
        return unpack(data, count, 1 << width)
    expected = -(-count * width // _BYTE)
    if len(data) != expected:
        raise PayloadError(f"{count} numbers of {width} bits take {expected} bytes, not {len(data)}; they are damaged")
    if not width:
        return np.zeros(count, np.uint8)
    packed = np.frombuffer(data, np.uint8)
    values = np.zeros(count, np.uint64)
    for start in range(0, count, _STEP):
        step = values[start : start + _STEP]
        bits = np.unpackbits(packed[start * width // _BYTE :][: -(-step.size * width // _BYTE)])
        if bits[step.size * width :].any():
            raise PayloadError("the bits after the last packed number are not zero; the bytes are damaged")
        places = np.zeros((step.size, _WORD), np.uint8)
        places[:, _WORD - width :] = bits[: step.size * width].reshape(step.size, width)
        step[:] = np.packbits(places, axis=1).reshape(-1).view(">u8")
    return values


def _pack_wide(values: NDArray[np.uint64], width: int) -> bytes:
    bits = np.unpackbits(values.astype(">u8").view(np.uint8).reshape(-1, _BYTE), axis=1)
    return np.packbits(bits[:, _WORD - width :]).tobytes()


def unpack_prefix(data: bytes, row: int, num_symbols: int) -> NDArray[np.uint8]:
    """Unpack the rows that are whole in the first bytes of what `pack` packed.

    Args:
        data: the first bytes.
        row: how many symbols a row has, at least 1.
        num_symbols: how many values a symbol can take, 2 to 256.

    Returns:
        The rows.

    Shapes:
        result: ``(whole rows, row)``.

    Raises:
        PayloadError: a symbol is out of range.

    Examples:
        >>> unpack_prefix(pack([[1, 2, 3], [3, 2, 1], [1, 1, 1]], num_symbols=4)[:2], row=3, num_symbols=4).tolist()
        [[1, 2, 3], [3, 2, 1]]

    Source: this project.
    """
    bits = row * _bits(num_symbols)
    rows = _BYTE * len(data) // bits
    kept = bytearray(data[: -(-rows * bits // _BYTE)])
    if kept and rows * bits % _BYTE:
        kept[-1] &= 0xFF << (_BYTE - rows * bits % _BYTE) & 0xFF  # the next row begins there
    return unpack(bytes(kept), rows * row, num_symbols).reshape(rows, row)


def _bits(num_symbols: int) -> int:
    if not 2 <= num_symbols <= 1 << _BYTE:
        raise FeatureError(f"symbols that take {num_symbols} values cannot be packed; 2 to 256 can")
    return (num_symbols - 1).bit_length()


def _pack_whole(values: NDArray[np.uint8], width: int) -> bytes:
    """Pack symbols of 1, 2 or 4 bits: none crosses a byte, which is some ten times faster."""
    per_byte = _BYTE // width
    padded = np.zeros(-(-values.size // per_byte) * per_byte, dtype=np.uint8)
    padded[: values.size] = values
    columns = padded.reshape(-1, per_byte)
    packed = columns[:, 0]
    for column in range(1, per_byte):
        packed = packed << width | columns[:, column]
    return packed.tobytes()


def _unpack_whole(packed: NDArray[np.uint8], width: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    shifts = np.arange(_BYTE - width, -1, -width, dtype=np.uint8)
    values = (packed[:, None] >> shifts & np.uint8((1 << width) - 1)).reshape(-1)
    return values[:count], values[count:]


def _unpack_bits(packed: NDArray[np.uint8], width: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    bits = np.unpackbits(packed)
    places = np.zeros((count, _BYTE), dtype=np.uint8)
    places[:, _BYTE - width :] = bits[: count * width].reshape(count, width)
    return np.packbits(places, axis=1).reshape(-1), bits[count * width :]
