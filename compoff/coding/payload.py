"""What travels for one batch: a short header, the coded symbols, a checksum.

    byte 0      format version 1 in the high four bits, coding in the low four (0 raw, 1 range, 2 Huffman)
    byte 1      quality index
    1-5 bytes   batch size, LEB128, lowest seven bits first
    body        the symbols, channel-major over the whole batch, so that fewer channels are a prefix
    4 bytes     CRC-32, big-endian, over artifact id + all bytes above; the id itself is not sent

The file knows shapes and bytes; it does not know networks, centers or sockets.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from compoff.coding import huffman, packing, range_coder
from compoff.errors import ArtifactError, FeatureError, PayloadError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.tables import SymbolTables

__all__ = ["Coding", "Decoded", "Payload", "PayloadFormat"]

Coding = Literal["range", "huffman", "raw"]
"""How the symbols become bytes; `raw` is taken by itself wherever it is shorter."""

_VERSION = 1
_RAW, _RANGE, _HUFFMAN = 0, 1, 2
_CODINGS: dict[str, int] = {"raw": _RAW, "range": _RANGE, "huffman": _HUFFMAN}
_ID_LENGTH = 32
_CRC_LENGTH = 4
_SHORTEST = 2 + 1 + _CRC_LENGTH
_MOST_QUALITIES = 256
_MOST_BATCH_BYTES = 5


@dataclass(frozen=True)
class Payload:
    """The coded symbols of one batch; ``bytes(payload)`` is what travels.

    Args:
        data: the bytes that travel.
        artifact_id: the 32-byte name of the export that made them; not sent.
        quality: index of the quality they were made at.
        batch_size: how many samples they hold.

    Examples:
        >>> payload = Payload(b"seven b", artifact_id=bytes(32), quality=0, batch_size=1)
        >>> len(payload), bytes(payload)
        (7, b'seven b')

    Source: this project.
    """

    data: bytes
    artifact_id: bytes
    quality: int
    batch_size: int

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Payload({len(self.data)} bytes, quality={self.quality}, batch_size={self.batch_size})"


@dataclass(frozen=True, eq=False)
class Decoded:
    """The symbols of a payload.

    Args:
        symbols: one index of a center for each place of the latent.
        quality: index of the quality they were made at.

    Shapes:
        symbols: ``(batch, channels at this quality, *space)``.

    Examples:
        >>> import numpy as np
        >>> Decoded(np.zeros((2, 4, 5, 5), np.uint8), quality=0).symbols.shape
        (2, 4, 5, 5)

    Source: this project.
    """

    symbols: NDArray[np.uint8]
    quality: int


class PayloadFormat:
    """Codes and decodes the payloads of one export; holds no state of a call, so threads may share it.

    Args:
        artifact_id: the 32-byte name of the export; payloads of another one fail their checksum.
        tables: one frequency table for each channel of the latent.
        latent_shape: channels, then the extent of each spatial axis, without the batch.
        qualities: how many channels each quality sends, rising; all channels as the only quality by default.
        max_batch: the most samples that one payload may hold; bounds the memory a payload can claim.

    Raises:
        ArtifactError: the parts do not fit together.

    Examples:
        >>> import numpy as np
        >>> from compoff.coding import PayloadFormat, SymbolTables
        >>> tables = SymbolTables.from_probabilities([[0.9, 0.05, 0.05]] * 4)
        >>> payloads = PayloadFormat(bytes(32), tables, latent_shape=(4, 5, 5), qualities=(1, 4))
        >>> payload = payloads.encode(np.zeros((2, 4, 5, 5), np.uint8))
        >>> len(payload), payloads.max_bytes(batch=2), payloads.decode(payload).symbols.shape
        (7, 57, (2, 4, 5, 5))

    Source: this project.
    """

    __slots__ = ("_crc_of_id", "artifact_id", "latent_shape", "max_batch", "qualities", "tables")

    artifact_id: bytes
    tables: SymbolTables
    latent_shape: tuple[int, ...]
    qualities: tuple[int, ...]
    max_batch: int

    def __init__(
        self,
        artifact_id: bytes,
        tables: SymbolTables,
        latent_shape: tuple[int, ...],
        qualities: tuple[int, ...] | None = None,
        max_batch: int = 1024,
    ) -> None:
        qualities = (tables.num_channels,) if qualities is None else tuple(qualities)
        _check_parts(artifact_id, tables, latent_shape, qualities, max_batch)
        self.artifact_id = artifact_id
        self.tables = tables
        self.latent_shape = tuple(latent_shape)
        self.qualities = qualities
        self.max_batch = max_batch
        self._crc_of_id = zlib.crc32(artifact_id)

    def encode(self, symbols: ArrayLike, *, quality: int | None = None, coding: Coding = "range") -> Payload:
        """Code the symbols of a batch.

        Args:
            symbols: indices of centers, whole numbers.
            quality: index into ``qualities``; the last, with the most channels, by default.
            coding: how; raw packing replaces it where it is not longer, so `max_bytes` always holds.

        Returns:
            The payload.

        Shapes:
            symbols: ``(batch, qualities[quality], *space)``.

        Raises:
            FeatureError: the symbols do not fit this export, or there is no such quality or coding.

        Examples:
            >>> from compoff.coding import PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
            >>> payloads.encode([[[0, 1] * 8]], coding="raw").data[:-4].hex()
            '1000015555'

        Source: this project.
        """
        quality = self._checked_quality(quality)
        rows = self._rows(np.asarray(symbols), quality)
        if coding not in _CODINGS:
            raise FeatureError(f"there is no coding {coding!r}; choose one of {', '.join(map(repr, _CODINGS))}")
        code = _CODINGS[coding]
        batch = rows.size // (len(rows) * self._positions)
        body = b"" if code == _RAW else (range_coder if code == _RANGE else huffman).encode(rows, self.tables)
        if code == _RAW or len(body) >= self.packed_bytes(batch, quality):
            code, body = _RAW, packing.pack(rows, self.tables.num_symbols)
        covered = bytes((_VERSION << 4 | code, quality)) + _leb128(batch) + body
        return Payload(covered + self._crc(covered), self.artifact_id, quality, batch)

    def decode(self, data: bytes | bytearray | memoryview | Payload) -> Decoded:
        """Decode a payload, after checking every byte of it.

        Args:
            data: a payload of this export, from anywhere.

        Returns:
            The symbols and their quality.

        Raises:
            PayloadError: the bytes are damaged, truncated, of another export or of another format version.

        Examples:
            >>> from compoff.coding import PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
            >>> payloads.decode(payloads.encode([[[0, 1] * 8]])).symbols[0, 0, :5].tolist()
            [0, 1, 0, 1, 0]

        Source: this project.
        """
        if isinstance(data, Payload) and data.artifact_id != self.artifact_id:
            raise PayloadError(
                f"this payload was made by export {data.artifact_id.hex()[:12]}, not {self.artifact_id.hex()[:12]}; "
                "use head and tail of one export"
            )
        received = bytes(data)
        code, quality, batch, start = self._checked_header(received)
        covered, checksum = received[:-_CRC_LENGTH], received[-_CRC_LENGTH:]
        if self._crc(covered) != checksum:
            raise PayloadError("the payload's checksum is wrong: its bytes are damaged or of another export's head")
        return Decoded(self._symbols(covered[start:], code, quality, batch), quality)

    def packed_bytes(self, batch: int, quality: int | None = None) -> int:
        """Count the bytes of the body when the symbols are packed raw: the most a body can take.

        Args:
            batch: how many samples.
            quality: index into ``qualities``; the last by default.

        Returns:
            Bytes, without the header and the checksum.

        Raises:
            FeatureError: there is no such quality.

        Examples:
            >>> from compoff.coding import PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
            >>> payloads.packed_bytes(batch=3)
            6

        Source: this project.
        """
        count = batch * self._positions * self.qualities[self._checked_quality(quality)]
        return packing.packed_length(count, self.tables.num_symbols)

    def max_bytes(self, batch: int, quality: int | None = None) -> int:
        """Count the most bytes that the payload of a batch can take, whatever its symbols.

        Args:
            batch: how many samples.
            quality: index into ``qualities``; the last, with the most channels, by default.

        Returns:
            Bytes, with the header and the checksum.

        Raises:
            FeatureError: there is no such quality.

        Examples:
            >>> from compoff.coding import PayloadFormat, SymbolTables
            >>> payloads = PayloadFormat(bytes(32), SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
            >>> payloads.max_bytes(batch=3)
            13

        Source: this project.
        """
        return 2 + len(_leb128(batch)) + self.packed_bytes(batch, quality) + _CRC_LENGTH

    def __repr__(self) -> str:
        return (
            f"PayloadFormat(artifact_id={self.artifact_id.hex()[:12]}…, latent_shape={self.latent_shape}, "
            f"num_symbols={self.tables.num_symbols}, qualities={self.qualities}, max_batch={self.max_batch})"
        )

    @property
    def _positions(self) -> int:
        return math.prod(self.latent_shape[1:])

    def _crc(self, covered: bytes) -> bytes:
        return zlib.crc32(covered, self._crc_of_id).to_bytes(_CRC_LENGTH, "big")

    def _checked_quality(self, quality: int | None) -> int:
        if quality is None:
            return len(self.qualities) - 1
        if not 0 <= quality < len(self.qualities):
            raise FeatureError(f"there is no quality {quality}; this export has 0 to {len(self.qualities) - 1}")
        return quality

    def _rows(self, symbols: NDArray[np.generic], quality: int) -> NDArray[np.int32]:
        """Lay a batch out channel-major: ``(channels, batch * positions)``."""
        expected = (self.qualities[quality], *self.latent_shape[1:])
        if symbols.ndim != len(expected) + 1 or symbols.shape[1:] != expected:
            raise FeatureError(
                f"symbols of shape {symbols.shape} do not fit quality {quality} of this export: "
                f"expected (batch, {', '.join(map(str, expected))})"
            )
        if not 1 <= len(symbols) <= self.max_batch:
            raise FeatureError(f"a payload holds 1 to {self.max_batch} samples, not {len(symbols)}; split the batch")
        return self.tables.checked(np.moveaxis(symbols, 1, 0).reshape(expected[0], -1))

    def _checked_header(self, data: bytes) -> tuple[int, int, int, int]:
        """Read coding, quality and batch size; return them with the place where the body starts."""
        longest = self.max_bytes(self.max_batch)
        if not _SHORTEST <= len(data) <= longest:
            raise PayloadError(f"a payload of this export has {_SHORTEST} to {longest} bytes, not {len(data)}")
        version, code, quality = data[0] >> 4, data[0] & 15, data[1]
        if version != _VERSION:
            raise PayloadError(f"the payload has format version {version}; this compoff reads version {_VERSION}")
        if code not in _CODINGS.values():
            raise PayloadError(f"the payload names coding {code}, which does not exist; its bytes are damaged")
        if quality >= len(self.qualities):
            raise PayloadError(f"the payload has quality {quality}; this export has 0 to {len(self.qualities) - 1}")
        batch, start = _read_leb128(data[:-_CRC_LENGTH], 2)
        if not 1 <= batch <= self.max_batch:
            raise PayloadError(f"the payload claims {batch} samples; this export takes 1 to {self.max_batch}")
        if not start + _CRC_LENGTH <= len(data) <= self.max_bytes(batch, quality):
            raise PayloadError(f"a payload of {len(data)} bytes cannot hold {batch} samples at quality {quality}")
        return code, quality, batch, start

    def _symbols(self, body: bytes, code: int, quality: int, batch: int) -> NDArray[np.uint8]:
        channels, positions = self.qualities[quality], batch * self._positions
        if code == _RAW:
            rows = packing.unpack(body, channels * positions, self.tables.num_symbols)
        else:
            decode = range_coder.decode if code == _RANGE else huffman.decode
            rows = decode(body, self.tables, positions, channels).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, batch, *self.latent_shape[1:]), 0, 1))


def _check_parts(
    artifact_id: bytes,
    tables: SymbolTables,
    latent_shape: tuple[int, ...],
    qualities: tuple[int, ...],
    max_batch: int,
) -> None:
    if len(artifact_id) != _ID_LENGTH:
        raise ArtifactError(f"an artifact id has {_ID_LENGTH} bytes, not {len(artifact_id)}")
    if not latent_shape or min(latent_shape) < 1 or latent_shape[0] != tables.num_channels:
        raise ArtifactError(
            f"a latent of shape {tuple(latent_shape)} does not go with tables for {tables.num_channels} channels"
        )
    rising = all(low < high for low, high in pairwise(qualities))
    if not 1 <= len(qualities) <= _MOST_QUALITIES or not rising or qualities[0] < 1 or qualities[-1] > latent_shape[0]:
        raise ArtifactError(
            f"qualities {qualities} cannot be used: expected 1 to {_MOST_QUALITIES} rising numbers of channels "
            f"between 1 and {latent_shape[0]}"
        )
    if not 1 <= max_batch < 1 << 7 * _MOST_BATCH_BYTES:
        raise ArtifactError(f"max_batch must be between 1 and {(1 << 7 * _MOST_BATCH_BYTES) - 1}, not {max_batch}")


def _leb128(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*result, value))


def _read_leb128(data: bytes, start: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[start : start + _MOST_BATCH_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if index and not byte:
                raise PayloadError("the payload's batch size is written with a byte too many; its bytes are damaged")
            return value, start + index + 1
    raise PayloadError("the payload's batch size does not end; its bytes are damaged")
