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

from compoff.checks import check_sizes, check_whole
from compoff.coding import context_coder, huffman, packing, range_coder
from compoff.coding.context_model import ContextModel
from compoff.coding.levels import coarse_tables, coarsen, num_coarse, refine, zero_symbol
from compoff.coding.tables import SymbolTables
from compoff.errors import ArtifactError, FeatureError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["CODINGS", "CUT", "Code", "Coding"]

Coding = Literal["range", "static", "huffman", "raw"]
"""How the symbols become bytes: `range` under a context model where the export has one, `static` under the tables of
the channels alone, with less work on both sides; `raw` is taken by itself wherever it is shorter."""

_RAW, _RANGE, _HUFFMAN, _CUT_RANGE, _CUT_RAW, _CONTEXT, _CUT_CONTEXT = range(7)
CODINGS: dict[str, int] = {"raw": _RAW, "range": _CONTEXT, "static": _RANGE, "huffman": _HUFFMAN}
"""The number that stands for each coding in a payload; that of `range` is `static`'s where there is no context."""
CUT: dict[int, int] = {
    **dict.fromkeys((_RANGE, _CUT_RANGE), _CUT_RANGE),
    **dict.fromkeys((_RAW, _CUT_RAW), _CUT_RAW),
    **dict.fromkeys((_CONTEXT, _CUT_CONTEXT), _CUT_CONTEXT),
}
"""The number that stands for a body whose end was cut off, by the number of its coding; the others cannot be cut."""
_KNOWN = {*CODINGS.values(), *CUT.values()}

_MOST_QUALITIES = 256


@dataclass(frozen=True, init=False)
class Code:
    """One coded feature of an export: its symbols, and how they become bytes.

    Args:
        tables: one frequency table for each channel of the latent.
        latent_shape: channels, then the extent of each spatial axis, without the batch.
        qualities: how many channels each quality sends, never falling; all channels as the only quality by default.
        steps: the step of each quality's symbols (`compoff.coding.levels`), never rising; the finest, 1, by default.
        contexts: the context model of each quality; those that the tables carry by default.

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
    steps: tuple[int, ...]
    contexts: tuple[ContextModel, ...]

    def __init__(
        self,
        tables: SymbolTables,
        latent_shape: Sequence[int],
        qualities: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        contexts: Sequence[ContextModel] | None = None,
    ) -> None:
        if not isinstance(tables, SymbolTables):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ArtifactError(f"tables is a {type(tables).__name__}; expected SymbolTables")
        shape = check_sizes("latent_shape", latent_shape, ArtifactError)
        all_channels = (tables.num_channels,)
        channels = all_channels if qualities is None else check_sizes("qualities", qualities, ArtifactError)
        coarseness = (1,) * len(channels) if steps is None else check_sizes("steps", steps, ArtifactError)
        _check_parts(tables, shape, channels)
        _check_steps(tables, channels, coarseness)
        models = tables.contexts if contexts is None else contexts
        _check_contexts(tables, shape, (channels, coarseness), models)
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "latent_shape", shape)
        object.__setattr__(self, "qualities", channels)
        object.__setattr__(self, "steps", coarseness)
        object.__setattr__(self, "contexts", tuple(models))

    def tables_at(self, quality: int) -> SymbolTables:
        """Give the tables of a quality's symbols.

        Args:
            quality: index into ``qualities``.

        Returns:
            The tables of all channels; those of the first ones are used where fewer are sent.

        Examples:
            >>> from compoff.coding import Code, SymbolTables
            >>> code = Code(SymbolTables.from_counts([[1] * 7] * 2), (2, 3), qualities=(1, 2), steps=(3, 1))
            >>> code.tables_at(0).num_symbols
            3

        Source: this project.
        """
        step = self.steps[quality]
        if step == 1:
            return self.tables
        return self.tables.derived(f"step {step}", lambda tables: coarse_tables(tables, step))

    def sent(self, symbols: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
        """Take from all symbols what a quality sends: fewer channels, coarser steps.

        Args:
            symbols: the symbols of the whole latent.
            quality: index into ``qualities``.

        Returns:
            What `encode` codes at this quality.

        Shapes:
            symbols: ``(batch, *latent_shape)``; result: ``(batch, *shape(quality))``.

        Examples:
            >>> import numpy as np
            >>> from compoff.coding import Code, SymbolTables
            >>> code = Code(SymbolTables.from_counts([[1] * 7] * 2), (2, 3), qualities=(1, 2), steps=(3, 1))
            >>> code.sent(np.array([[[0, 3, 5], [1, 1, 1]]], np.uint8), quality=0).tolist()
            [[[0, 1, 2]]]

        Source: this project.
        """
        kept = symbols[:, : self.qualities[quality]]
        step = self.steps[quality]
        return kept if step == 1 else coarsen(kept, self.tables.num_symbols, step)

    def whole(self, symbols: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
        """Give what was decoded at a quality the shape and the meaning of the whole latent.

        Args:
            symbols: what `decode` gave; fewer channels than the quality sends are the first ones.
            quality: index into ``qualities``.

        Returns:
            Symbols of the finest step; the middle one in the channels that were not sent.

        Shapes:
            symbols: ``(batch, channels, *space)``; result: ``(batch, *latent_shape)``.

        Examples:
            >>> import numpy as np
            >>> from compoff.coding import Code, SymbolTables
            >>> code = Code(SymbolTables.from_counts([[1] * 7] * 2), (2, 3), qualities=(1, 2), steps=(3, 1))
            >>> code.whole(np.array([[[0, 1, 2]]], np.uint8), quality=0).tolist()
            [[[0, 3, 6], [3, 3, 3]]]

        Source: this project.
        """
        step, num_symbols = self.steps[quality], self.tables.num_symbols
        fine = symbols if step == 1 else refine(symbols, num_symbols, step)
        if fine.shape[1] == self.latent_shape[0]:
            return fine
        result = np.full((len(fine), *self.latent_shape), num_symbols // 2, dtype=np.uint8)
        result[:, : fine.shape[1]] = fine
        return result

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

        Raises:
            FeatureError: the batch is no number of samples.

        Examples:
            >>> from compoff.coding import Code, SymbolTables
            >>> Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16)).packed_bytes(batch=1)
            2

        Source: this project.
        """
        check_whole("batch", batch, FeatureError, 0)
        return packing.packed_length(int(batch) * math.prod(self.shape(quality)), self.tables_at(quality).num_symbols)

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
        tables, channels = self.tables_at(quality), np.moveaxis(symbols, 0, 1)
        # Each coder checks what it is given.
        rows = channels.reshape(self.qualities[quality], -1)
        if coding != _RAW:
            if coding == _CONTEXT and self.contexts:
                body = context_coder.encode(channels, self.contexts[quality], self._zero(quality))
            elif coding == _HUFFMAN:
                body = huffman.encode(rows, tables)
            else:
                coding, body = _RANGE, range_coder.encode(rows, tables)
            if len(body) < self.packed_bytes(len(symbols), quality):
                return coding, body
        return _RAW, packing.pack(rows, tables.num_symbols)

    def _zero(self, quality: int) -> int:
        return zero_symbol(self.tables.num_symbols, self.steps[quality])

    def decode(self, body: bytes, batch: int, quality: int, coding: int) -> NDArray[np.uint8]:
        """Decode what `encode` made.

        Args:
            body: the bytes.
            batch: how many samples they hold.
            quality: index into ``qualities``.
            coding: the coding that was taken.

        Returns:
            The symbols; of a cut body, those of the channels that are whole.

        Shapes:
            result: ``(batch, *shape(quality))``; of a cut body, fewer channels, perhaps none.

        Raises:
            PayloadError: no such symbols are written so.

        Examples:
            >>> from compoff.coding import Code, SymbolTables
            >>> code = Code(SymbolTables([[2**23, 2**23]]), latent_shape=(1, 16))
            >>> code.decode(bytes.fromhex("5555"), batch=1, quality=0, coding=0)[0, 0, :5].tolist()
            [0, 1, 0, 1, 0]

        Source: this project.
        """
        if coding not in _KNOWN:
            raise PayloadError(f"the payload names coding {coding}, which does not exist; its bytes are damaged")
        if coding in (_CONTEXT, _CUT_CONTEXT) and not self.contexts:
            raise PayloadError(f"the payload names coding {coding}, but this export has no context models")
        if len(body) > self.packed_bytes(batch, quality):
            raise PayloadError(f"{len(body)} bytes are too many for {batch} samples at quality {quality}")
        tables, (channels, *space) = self.tables_at(quality), self.shape(quality)
        positions = batch * math.prod(space)
        if coding == _RAW:
            rows = packing.unpack(body, channels * positions, tables.num_symbols)
        elif coding == _CUT_RANGE:
            rows = range_coder.decode_prefix(body, tables, positions, channels).astype(np.uint8)
            channels = len(rows)
        elif coding in (_CONTEXT, _CUT_CONTEXT):
            model, shape = self.contexts[quality], (channels, batch, *space)
            decoded = context_coder.decode(body, model, shape, self._zero(quality), prefix=coding == _CUT_CONTEXT)
            return np.ascontiguousarray(np.moveaxis(decoded, 0, 1))
        elif coding == _CUT_RAW:
            rows = packing.unpack_prefix(body, positions, tables.num_symbols)[:channels]
            channels = len(rows)
        else:
            decode = range_coder.decode if coding == _RANGE else huffman.decode
            rows = decode(body, tables, positions, channels).astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(rows.reshape(channels, batch, *space), 0, 1))


def _check_steps(tables: SymbolTables, qualities: tuple[int, ...], steps: tuple[int, ...]) -> None:
    if len(steps) != len(qualities) or any(low < high for low, high in pairwise(steps)):
        raise ArtifactError(f"steps {steps} cannot be used: expected {len(qualities)} that never rise, one a quality")
    for step in steps:
        if step != 1:
            num_coarse(tables.num_symbols, step)


def _check_contexts(
    tables: SymbolTables,
    latent_shape: tuple[int, ...],
    ladder: tuple[tuple[int, ...], tuple[int, ...]],
    contexts: Sequence[ContextModel],
) -> None:
    qualities, steps = ladder
    if not (isinstance(contexts, (list, tuple)) and all(isinstance(model, ContextModel) for model in contexts)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArtifactError(f"contexts is {contexts!r:.80}; expected a list of ContextModel, one for each quality")
    if contexts and len(contexts) != len(qualities):
        raise ArtifactError(
            f"{len(contexts)} context models do not go with {len(qualities)} qualities; give one for each"
        )
    for channels, step, model in zip(qualities, steps, contexts, strict=False):
        num_symbols = num_coarse(tables.num_symbols, step)
        if (model.num_channels, model.tables.num_symbols) != (channels, num_symbols):
            raise ArtifactError(
                f"a context model is for {model.num_channels} channels of {model.tables.num_symbols} symbols; expected "
                f"{channels} of {num_symbols}"
            )
        if len(model.leading) and model.num_axes != len(latent_shape) - 1:
            raise ArtifactError(
                f"channels lead in a space of {model.num_axes} axes; expected {len(latent_shape) - 1} as in the latent"
            )


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
