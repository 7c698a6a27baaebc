"""Side tensors: what crosses a cut as it is (masks, token ids, sizes, skips), in the fewest bytes that lose nothing.

    byte 0      form in the low seven bits; bit 7 is set where the rest is a raw DEFLATE stream (RFC 1951)
    form 0      the values, little-endian, in C order; truth values as bits, highest first, zeros to the last byte
    form 1      the same bytes, first those of place 0 in each value, then those of place 1, …; not of truth values
    form 2      whole numbers: the least as zigzag LEB128, bits a value u8, then (value − least) in so many bits each
    form 3      few distinct values: their number − 1 u8, their bits ascending, then each value's place among them

Shape and dtype are known on both sides and not sent. Bits, not numbers, are kept: NaN and -0.0 come back as they were.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compoff.checks import check_flag, check_sizes
from compoff.coding import packing
from compoff.coding.numbers import leb128, read_leb128
from compoff.errors import ArtifactError, FeatureError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["DTYPES", "Side", "decode_side", "encode_side", "max_side_bytes"]

DTYPES = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")
"""What tensors may hold: what numpy, torch and the wire all know."""

_PLAIN, _PLANES, _OFFSETS, _PALETTE = range(4)
_DEFLATED = 0x80
_FEWEST_DEFLATED = 16  # bytes below which DEFLATE is not tried
_SAMPLE, _SAMPLES = 8192, 4  # bytes of one sample, and samples, from which a long body's deflated length is guessed
_MOST_COLORS = 256
_STEP = 1 << 16
_MOST_NUMBER_BYTES = 10  # of a zigzag LEB128 of 64 bits
# What the forms 2 and 3 may have besides one full width a value, in bytes.
_MOST_EXTRA = 1 + _MOST_COLORS * 8 + _MOST_NUMBER_BYTES


@dataclass(frozen=True)
class Side:
    """One side tensor of an export: it crosses the cut beside the coded features, without loss.

    Args:
        shape: its shape, without the batch.
        dtype: name of its dtype, one of `DTYPES`.
        batched: whether the batch stands before the shape.

    Raises:
        ArtifactError: there is no such tensor.

    Examples:
        >>> mask = Side((1, 8, 8), "bool")
        >>> mask.full_shape(batch=2), max_side_bytes(mask.full_shape(batch=2), mask.dtype)
        ((2, 1, 8, 8), 17)

    Source: this project.
    """

    shape: tuple[int, ...]
    dtype: str
    batched: bool = True

    def __post_init__(self) -> None:
        check_flag("batched", self.batched, ArtifactError)
        object.__setattr__(self, "shape", check_sizes("shape", self.shape, ArtifactError))
        # An empty array, too, may not have other axes so long that numpy has no shape like it.
        if self.dtype not in DTYPES or min(self.shape, default=0) < 0 or math.prod(filter(None, self.shape)) > 1 << 40:
            raise ArtifactError(f"a side tensor of {self.dtype} and shape {self.shape} cannot be sent")

    def full_shape(self, batch: int) -> tuple[int, ...]:
        """Give the shape with the batch.

        Args:
            batch: how many samples.

        Returns:
            The shape of the whole tensor.

        Examples:
            >>> Side((4,), "int64", batched=False).full_shape(batch=2)
            (4,)

        Source: this project.
        """
        return (batch, *self.shape) if self.batched else self.shape


class _Layout(NamedTuple):
    """How many values of which kind."""

    size: int
    dtype: np.dtype[Any]

    @property
    def little(self) -> np.dtype[Any]:
        return np.dtype(f"<{self.dtype.kind}{self.dtype.itemsize}")

    @property
    def plain_bytes(self) -> int:
        return packing.packed_length(self.size, 2) if self.dtype.kind == "b" else self.size * self.dtype.itemsize


def max_side_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Count the most bytes that a side tensor can take, whatever it holds.

    Args:
        shape: its shape, with the batch.
        dtype: name of its dtype, one of `DTYPES`.

    Returns:
        Bytes.

    Raises:
        FeatureError: the dtype is unknown.

    Examples:
        >>> max_side_bytes((2, 1, 8, 8), "bool"), max_side_bytes((3,), "float32")
        (17, 13)

    Source: this project.
    """
    return 1 + _layout(shape, dtype).plain_bytes


def encode_side(array: ArrayLike) -> bytes:
    """Pack a tensor without loss, by whichever form is shortest.

    Args:
        array: of a dtype in `DTYPES`, in any byte and memory order.

    Returns:
        At most ``max_side_bytes`` bytes; neither shape nor dtype is in them.

    Shapes:
        array: any.

    Raises:
        FeatureError: the dtype is unknown.

    Examples:
        >>> import numpy as np
        >>> tokens = np.array([[101, 7592, 2088, 102]])
        >>> tokens.nbytes, encode_side(tokens).hex(), encode_side(np.array([17])).hex()
        (32, '02ca010d000750cf860010', '022200')

    Source: this project; DEFLATE of RFC 1951.
    """
    given = np.asarray(array)
    little = _layout(given.shape, f"{given.dtype.name}").little
    flat = np.ascontiguousarray(given.reshape(-1), dtype=little)
    bodies = dict(_bodies(flat))
    form = min(bodies, key=lambda form: len(bodies[form]))
    if len(bodies[form]) >= _FEWEST_DEFLATED:
        guesses = {form: _guessed_length(body) for form, body in bodies.items()}
        likely = min(guesses, key=lambda form: guesses[form])
        deflated = _deflate(bodies[likely]) if guesses[likely] < len(bodies[form]) else bodies[form]
        if len(deflated) < len(bodies[form]):
            return bytes((_DEFLATED | likely,)) + deflated
    return bytes((form,)) + bodies[form]


def decode_side(data: bytes, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Unpack what `encode_side` packed, after checking every byte; allocates for `shape` only.

    Args:
        data: the packed bytes.
        shape: the tensor's shape, with the batch.
        dtype: name of its dtype.

    Returns:
        The same bits, in an array of its own memory.

    Shapes:
        result: ``shape``.

    Raises:
        PayloadError: no tensor of this shape and dtype is written so.
        FeatureError: the dtype is unknown.

    Examples:
        >>> import numpy as np
        >>> decode_side(encode_side(np.array([[True], [False]])), (2, 1), "bool").tolist()
        [[True], [False]]

    Source: this project; DEFLATE of RFC 1951.
    """
    layout = _layout(shape, dtype)
    if not 1 <= len(data) <= 1 + layout.plain_bytes:
        raise _damaged(f"{dtype} of shape {tuple(shape)} takes 1 to {1 + layout.plain_bytes} bytes, not {len(data)}")
    form, body = data[0] & ~_DEFLATED, bytes(data[1:])
    if data[0] & _DEFLATED:
        body = _inflated(body, layout.plain_bytes + _MOST_EXTRA)
    read = _READERS.get(form)
    if read is None or (form and layout.dtype.kind == "b") or (form == _OFFSETS and layout.dtype.kind == "f"):
        raise _damaged(f"there is no form {form} of {dtype}")
    return read(body, layout).reshape(shape)


def _layout(shape: tuple[int, ...], dtype: str) -> _Layout:
    if dtype not in DTYPES:
        raise FeatureError(f"a side tensor of {dtype} cannot be sent; expected {', '.join(DTYPES)}: convert it")
    return _Layout(math.prod(shape), np.dtype(dtype))


def _damaged(reason: str) -> PayloadError:
    return PayloadError(f"a side tensor cannot be read: {reason}; its bytes are damaged")


# ── to bytes ──


def _bodies(flat: NDArray[Any]) -> Iterator[tuple[int, bytes]]:
    """The forms that can hold the values; a form that could only be longer is left out."""
    if flat.dtype.kind == "b":
        yield _PLAIN, packing.pack(flat.view(np.uint8), 2)
        return
    yield _PLAIN, flat.tobytes()
    width = flat.dtype.itemsize
    if width > 1:
        yield _PLANES, flat.view(np.uint8).reshape(-1, width).tobytes(order="F")
    if flat.size and flat.dtype.kind != "f":
        yield from _offsets(flat)
    bits = flat.view(f"<u{width}")
    colors = _distinct(bits)
    if colors is not None:
        places = np.searchsorted(colors, bits).astype(np.uint64)
        packed = packing.pack_width(places, (len(colors) - 1).bit_length())
        yield _PALETTE, bytes((len(colors) - 1,)) + colors.tobytes() + packed


def _offsets(flat: NDArray[Any]) -> Iterator[tuple[int, bytes]]:
    least, most = int(flat.min()), int(flat.max())
    width = (most - least).bit_length()
    if width < 8 * flat.dtype.itemsize:
        wrapped = flat.astype(np.int64).view(np.uint64) - np.uint64(least & (1 << 64) - 1)  # right modulo 2**64
        zigzag = 2 * least if least >= 0 else -2 * least - 1
        yield _OFFSETS, leb128(zigzag) + bytes((width,)) + packing.pack_width(wrapped, width)


def _distinct(bits: NDArray[Any]) -> NDArray[Any] | None:
    """The distinct values, ascending, if they are few; a sample says so of most tensors where they are not."""
    step = max(1, bits.size // (4 * _MOST_COLORS))
    for values in (bits[::step], bits):
        colors = np.unique(values)
        if not 1 <= len(colors) <= _MOST_COLORS:
            return None
    return colors


def _deflate(body: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)  # no header and no checksum: the payload has its own
    return stream.compress(body) + stream.flush()


def _guessed_length(body: bytes) -> float:
    """The length after DEFLATE; of a long body, what samples promise, so that only the best form is deflated whole."""
    if len(body) <= _SAMPLE * _SAMPLES:
        return len(_deflate(body))
    step = len(body) // _SAMPLES
    sample = b"".join(body[start * step : start * step + _SAMPLE] for start in range(_SAMPLES))
    return len(_deflate(sample)) / len(sample) * len(body)


# ── from bytes ──


def _inflated(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        body = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise _damaged(f"it is no DEFLATE stream ({error})") from error
    if len(body) > most or not stream.eof or stream.unused_data:
        raise _damaged("its DEFLATE stream is longer or shorter than the tensor")
    return body


def _from_plain(body: bytes, layout: _Layout) -> NDArray[Any]:
    if len(body) != layout.plain_bytes:
        raise _damaged(f"its values take {layout.plain_bytes} bytes, not {len(body)}")
    if layout.dtype.kind == "b":
        return packing.unpack(body, layout.size, 2).view(np.bool_)
    return np.frombuffer(body, layout.little).astype(layout.dtype)


def _from_planes(body: bytes, layout: _Layout) -> NDArray[Any]:
    if len(body) != layout.plain_bytes:
        raise _damaged(f"its values take {layout.plain_bytes} bytes, not {len(body)}")
    planes = np.frombuffer(body, np.uint8).reshape(layout.dtype.itemsize, layout.size)
    return np.frombuffer(planes.tobytes(order="F"), layout.little).astype(layout.dtype)


def _from_offsets(body: bytes, layout: _Layout) -> NDArray[Any]:
    zigzag, start = read_leb128(body, 0, _MOST_NUMBER_BYTES, "least value")
    least = zigzag >> 1 ^ -(zigzag & 1)
    limits = np.iinfo(layout.dtype)
    width = body[start] if start < len(body) else 255
    if not limits.min <= least <= limits.max or width >= 8 * layout.dtype.itemsize:
        raise _damaged(f"{layout.dtype} from {least} on in {width} bits a value cannot be")
    wrapped = packing.unpack_width(body[start + 1 :], layout.size, width)
    if wrapped.size and least + int(wrapped.max()) > limits.max:
        raise _damaged(f"a value is {least + int(wrapped.max())}, the most {layout.dtype} holds is {limits.max}")
    bits = 8 * layout.dtype.itemsize
    values = wrapped.astype(f"u{layout.dtype.itemsize}", copy=False)
    values += values.dtype.type(least & (1 << bits) - 1)  # right modulo 2**bits, and it fits
    return values.view(layout.dtype)


def _from_palette(body: bytes, layout: _Layout) -> NDArray[Any]:
    width = layout.dtype.itemsize
    count = body[0] + 1 if body else 0
    end = 1 + count * width
    if not 1 + width <= end <= len(body):
        raise _damaged(f"{count} distinct values do not fit {len(body)} bytes")
    colors = np.frombuffer(body[1:end], f"<u{width}")
    if (colors[1:] <= colors[:-1]).any():
        raise _damaged("its distinct values do not ascend")
    places = packing.unpack_width(body[end:], layout.size, (count - 1).bit_length())
    if places.size and int(places.max()) >= count:
        raise _damaged(f"it names value {int(places.max())} of {count}")
    values = np.empty(layout.size, layout.dtype)
    palette = colors.view(layout.little)
    for start in range(0, layout.size, _STEP):  # an index takes eight bytes, and a tensor may be large
        values[start : start + _STEP] = palette[places[start : start + _STEP]]
    return values


_READERS: dict[int, Callable[[bytes, _Layout], NDArray[Any]]] = {
    _PLAIN: _from_plain,
    _PLANES: _from_planes,
    _OFFSETS: _from_offsets,
    _PALETTE: _from_palette,
}
