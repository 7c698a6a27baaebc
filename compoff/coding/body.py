"""The symbols of one coded feature ◄─► bytes, under a ceiling that no symbols exceed.

Channel-major over the whole batch, so that the symbols of fewer channels are a prefix of those of more. The file does
not know what else a payload holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from compoff.coding import huffman, packing, range_coder
from compoff.errors import ArtifactError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compoff.coding.tables import SymbolTables

__all__ = ["CODINGS", "Code", "Coding"]

Coding = Literal["range", "huffman", "raw"]
"""How the symbols become bytes; `raw` is taken by itself wherever it is shorter."""

_RAW, _RANGE, _HUFFMAN = 0, 1, 2
CODINGS: dict[str, int] = {"raw": _RAW, "range": _RANGE, "huffman": _HUFFMAN}
"""The number that stands for each coding in a payload."""

_MOST_QUALITIES = 256


@dataclass(frozen=True, init=False)
class Code:
    """One coded feature of an export: its symbols, and how they become bytes.

    Args:
        tables: one frequency table for each channel of the latent.
        latent_shape: channels, then the extent of each spatial axis, without the batch.
        qualities: how many channels each quality sends, never falling; all channels as the only quality by default.

    Raises:
        ArtifactError: the parts do not fit together.

    Examples:
        >>> from compoff.coding import Code, SymbolTables
        >>> code = Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
        >>> code.qualities, code.packed_bytes(batch=3)
        ((1,), 6)

    Source: this project.
    """

    tables: SymbolTables
    latent_shape: tuple[int, ...]
    qualities: tuple[int, ...]

    def __init__(
        self, tables: SymbolTables, latent_shape: Sequence[int], qualities: Sequence[int] | None = None
    ) -> None:
        shape = tuple(latent_shape)
        channels = (tables.num_channels,) if qualities is None else tuple(qualities)
        _check_parts(tables, shape, channels)
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "latent_shape", shape)
        object.__setattr__(self, "qualities", channels)

    def shape(self, quality: int) -> tuple[int, ...]:
        """Give the shape of one sample's symbols.

        Args:
            quality: index into ``qualities``.

        Returns:
            The channels of this quality, then the space, without the batch.

        Examples:
            >>> from compoff.coding import Code, SymbolTables
            >>> Code(SymbolTables([[2**23, 2**23]] * 4), latent_shape=(4, 5, 5), qualities=(1, 4)).shape(0)
            (1, 5, 5)

        Source: this project.
        """
        return (self.qualities[quality], *self.latent_shape[1:])

    def packed_bytes(self, batch: int, quality: int = -1) -> int:
        """Count the bytes of the symbols packed raw: the most that they can take.

        Args:
            batch: how many samples.
            quality: index into ``qualities``; the last by default.

        Returns:
            Bytes.

        Examples:
            >>> from compoff.coding import Code, SymbolTables
            >>> Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16)).packed_bytes(batch=1)
            2

        Source: this project.
        """
        return packing.packed_length(batch * math.prod(self.shape(quality)), self.tables.num_symbols)

    def encode(self, symbols: NDArray[np.generic], quality: int, coding: int) -> tuple[int, bytes]:
        """Code the symbols of a batch, or pack them raw where that is not longer.

        Args:
            symbols: indices of centers.
            quality: index into ``qualities``.
            coding: one of the numbers of `CODINGS`.

        Returns:
            The coding that was taken, and the bytes.

        Shapes:
            symbols: ``(batch, *shape(quality))``.

        Raises:
            FeatureError: the symbols do not fit the tables.

        Examples:
            >>> import numpy as np
            >>> from compoff.coding import Code, SymbolTables
            >>> code = Code(SymbolTables([[2**24 - 1, 1]]), latent_shape=(1, 16))
            >>> code.encode(np.zeros((1, 1, 16), np.uint8), quality=0, coding=1)
            (1, b'')

        Source: this project.
        """
        rows = self.tables.checked(np.moveaxis(symbols, 1, 0).reshape(self.qualities[quality], -1))
        if coding != _RAW:
            body = (range_coder if coding == _RANGE else huffman).encode(rows, self.tables)
            if len(body) < self.packed_bytes(len(symbols), quality):
                return coding, body
        return _RAW, packing.pack(rows, self.tables.num_symbols)

    def decode(self, body: bytes, batch: int, quality: int, coding: int) -> NDArray[np.uint8]:
        """Decode what `encode` made.

        Args:
            body: the bytes.
            batch: how many samples they hold.
            quality: index into ``qualities``.
            coding: the coding that was taken.

        Returns:
            The symbols.

        Shapes:
            result: ``(batch, *shape(quality))``.

        Raises:
            PayloadError: no such symbols are written so.

        Examples:
            >>> from compoff.coding import Code, SymbolTables
            >>> code = Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
            >>> code.decode(bytes.fromhex("5555"), batch=1, quality=0, coding=0)[0, 0, :5].tolist()
            [0, 1, 0, 1, 0]

        Source: this project.
        """
        if coding not in CODINGS.values():
            raise PayloadError(f"the payload names coding {coding}, which does not exist; its bytes are damaged")
        if len(body) > self.packed_bytes(batch, quality):
            raise PayloadError(f"{len(body)} bytes are too many for {batch} samples at quality {quality}")
        channels, *space = self.shape(quality)
        positions = batch * math.prod(space)
        if coding == _RAW:
            rows = packing.unpack(body, channels * positions, self.tables.num_symbols)
        else:
            decode = range_coder.decode if coding == _RANGE else huffman.decode
            rows = decode(body, self.tables, positions, channels).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, batch, *space), 0, 1))


def _check_parts(tables: SymbolTables, latent_shape: tuple[int, ...], qualities: tuple[int, ...]) -> None:
    if not latent_shape or min(latent_shape) < 1 or latent_shape[0] != tables.num_channels:
        raise ArtifactError(
            f"a latent of shape {latent_shape} does not go with tables for {tables.num_channels} channels"
        )
    rising = all(low <= high for low, high in pairwise(qualities))
    if not 1 <= len(qualities) <= _MOST_QUALITIES or not rising or qualities[0] < 1 or qualities[-1] > latent_shape[0]:
        raise ArtifactError(
            f"qualities {qualities} cannot be used: expected 1 to {_MOST_QUALITIES} rising numbers of channels "
            f"between 1 and {latent_shape[0]}"
        )
