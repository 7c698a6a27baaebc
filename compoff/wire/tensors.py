"""Arrays to bytes and back: the body of a reply.

The bytes are a count, then for each array: dtype code u8, number of dimensions u8, the dimensions, the raw
little-endian values in C order. Count and dimensions are LEB128. Knows nothing of the structure the arrays came from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.errors import FeatureError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["pack", "unpack"]

_NAMES = ("f2", "f4", "f8", "u1", "i1", "i2", "i4", "i8", "b1")  # a dtype's code is its place here
_NATIVE: tuple[np.dtype[Any], ...] = tuple(np.dtype(name) for name in _NAMES)
_LITTLE = tuple(np.dtype("<" + name) for name in _NAMES)
_CODES = {(dtype.kind, dtype.itemsize): code for code, dtype in enumerate(_NATIVE)}
_MAX_DIMENSIONS = 32
_MAX_VARINT_BYTES = 5  # 35 bits: more than any array that fits a reply


def pack(arrays: Sequence[NDArray[Any]]) -> bytes:
    """Bytes of some arrays.

    Args:
        arrays: Arrays of float16, float32, float64, uint8, int8, int16, int32, int64 or bool, in any memory order.

    Returns:
        The bytes.

    Shapes:
        Any, up to 32 dimensions, also empty and 0-dimensional.

    Raises:
        FeatureError: An array has another dtype or more dimensions.

    Examples:
        >>> pack([np.array([[1, 2]], np.uint8)]).hex()
        '01030201020102'

    Source: this project.
    """
    parts = [_varint(len(arrays))]
    for array in arrays:
        code = _CODES.get((array.dtype.kind, array.dtype.itemsize))
        if code is None or array.ndim > _MAX_DIMENSIONS:
            message = (
                f"an array of {array.dtype} with {array.ndim} dimensions cannot be sent; expected at most "
                f"{_MAX_DIMENSIONS} dimensions of {', '.join(str(known) for known in _NATIVE)}; convert it first"
            )
            raise FeatureError(message)
        parts.append(bytes([code, array.ndim]) + b"".join(_varint(size) for size in array.shape))
        parts.append(array.astype(_LITTLE[code], copy=False).tobytes())
    return b"".join(parts)


def unpack(data: bytes, num_arrays: int | None = None, *, most_arrays: int | None = None) -> list[NDArray[Any]]:
    """Arrays from the bytes that ``pack`` made; allocates no more than the bytes say and hold.

    Args:
        data: The bytes.
        num_arrays: How many arrays there must be; None for any number.
        most_arrays: How many there may be, where their number is not known; None for any number.

    Returns:
        Arrays of the machine's byte order that own their memory and can be written to.

    Raises:
        RemoteProtocolError: The bytes are truncated, have something after the last array, another number of arrays, or
            another form.

    Examples:
        >>> unpack(pack([np.array(0.5, np.float32), np.arange(3)]))
        [array(0.5, dtype=float32), array([0, 1, 2])]

    Source: this project.
    """
    reader = _Reader(data)
    count = reader.count()
    if num_arrays not in (None, count):  # before any is made: thousands of empty arrays take few bytes here
        raise RemoteProtocolError(_damaged(f"there are {count} arrays, expected {num_arrays}"))
    if most_arrays is not None and count > most_arrays:
        raise RemoteProtocolError(_damaged(f"there are {count} arrays, expected at most {most_arrays}"))
    arrays = [reader.array() for _ in range(count)]
    if reader.position != len(data):
        raise RemoteProtocolError(_damaged(f"{len(data) - reader.position} bytes follow the last array"))
    return arrays


def _damaged(reason: str) -> str:
    return f"the arrays in a reply cannot be read: {reason}; is the server of the same compoff version?"


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


class _Reader:
    """A position in the bytes that never passes their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise RemoteProtocolError(_damaged(f"they end after {len(self._data)} bytes, in the middle of an array"))
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            byte = self._byte()
            value |= (byte & 127) << 7 * index
            if byte < 128:
                if byte == 0 and index:
                    break  # only the shortest form: one value has one writing
                return value
        raise RemoteProtocolError(_damaged("a number is not in its shortest form or too large"))

    def count(self) -> int:
        """Number of arrays, each of which takes at least two bytes."""
        count = self._varint()
        if 2 * count > len(self._data):
            raise RemoteProtocolError(_damaged(f"{count} arrays do not fit {len(self._data)} bytes"))
        return count

    def array(self) -> NDArray[Any]:
        code, num_dimensions = self._byte(), self._byte()
        if code >= len(_LITTLE) or num_dimensions > _MAX_DIMENSIONS:
            raise RemoteProtocolError(_damaged(f"dtype code {code} with {num_dimensions} dimensions is unknown"))
        dtype = _LITTLE[code]
        shape = tuple(self._varint() for _ in range(num_dimensions))
        size = math.prod(shape)
        available = len(self._data) - self.position
        if size * dtype.itemsize > available:
            raise RemoteProtocolError(_damaged(f"an array of {shape} {dtype.name} does not fit {available} bytes"))
        flat = np.frombuffer(self._data, dtype, size, self.position)
        self.position += size * dtype.itemsize
        if dtype.kind == "b" and (flat.view(np.uint8) > 1).any():
            raise RemoteProtocolError(_damaged("a truth value is neither 0 nor 1"))
        try:
            return flat.reshape(shape).astype(_NATIVE[code])
        except ValueError:  # an empty array whose other dimensions are absurd
            raise RemoteProtocolError(_damaged(f"no array has the shape {shape}")) from None
