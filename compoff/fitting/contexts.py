"""Fit the context models that a code's symbols are coded with, where they save enough to be worth their work.

Least squares says what a magnitude is expected from; what then remains is counted. Knows symbols, no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from compoff.coding import SymbolTables
from compoff.coding.context_model import BOUND, CONTEXTS, ContextModel, expected_value
from compoff.coding.grid import Grid
from compoff.coding.leading import MOST_LEADING
from compoff.coding.levels import zero_symbol
from compoff.coding.sums import Sums, groups
from compoff.fitting.leading import fit_leading, in_units
from compoff.fitting.least_squares import magnitude_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from compoff.coding import Code

__all__ = ["SomeSamples", "fit_contexts"]

_KEPT_BYTES = 1 << 25  # of symbols that are kept for a fit
# Of a quality, that its model is fitted to, at most; more would show the same.
_SEEN_SYMBOLS, _SEEN_POSITIONS = 1 << 22, 1 << 19
# Samples, or symbols of a channel in fewer samples: of less, what is found would be about them alone.
_FEWEST, _FEWEST_SYMBOLS = 32, 1 << 14
_HELD_OUT = 4  # every fourth sample says whether the models are worth it
# Of the bits of all qualities, and bits of a sample at the last: less is not worth a millisecond. Nor may a quality
# take so much more.
_LEAST_GAIN, _LEAST_BITS = 0.01, 64.0
_LEAST_LED = 0.01  # of the bits, that leading channels save
_NUM_TABLES = 16
_LEADING = MOST_LEADING  # channels
_LED_POSITIONS = 1 << 17  # that are looked at of channels that lead, in all samples
_ROWS = 1 << 18  # that are looked at together
_PRIOR = 2.0  # counts that are spread as a two-sided geometric distribution


class SomeSamples:
    """Every so many of the samples that went by, so that few are held however many there are.

    Examples:
        >>> import torch
        >>> some = SomeSamples()
        >>> some.add(torch.zeros(5, 2, 3, dtype=torch.uint8))
        >>> some.symbols().shape
        (5, 2, 3)
    """

    def __init__(self) -> None:
        self._kept: list[NDArray[np.uint8]] = []
        self._every, self._seen = 1, 0

    def add(self, symbols: Tensor) -> None:
        """Take some of a batch.

        Args:
            symbols: Its symbols.
        """
        first = -self._seen % self._every
        self._seen += len(symbols)
        # Copies: a part of a batch would keep all of it.
        self._kept += [one.copy() for one in symbols[first :: self._every].cpu().numpy()]
        while len(self._kept) >= 2 * _HELD_OUT and len(self._kept) * self._kept[0].nbytes > _KEPT_BYTES:
            self._kept, self._every = self._kept[::2], 2 * self._every

    @property
    def num_samples(self) -> int:
        """How many samples are kept."""
        return len(self._kept)

    def symbols(self) -> NDArray[np.uint8]:
        """What was kept.

        Returns:
            The symbols.

        Shapes:
            ``(samples, channels, *space)``.
        """
        return np.stack(self._kept)


def fit_contexts(symbols: NDArray[np.uint8], code: Code) -> tuple[ContextModel, ...]:
    """Fit a context model to each quality.

    Args:
        symbols: All symbols of some samples.
        code: The code, its tables counted.

    Returns:
        One model a quality; none where they would save less than a hundredth, or than eight bytes of a sample at the
        last quality, or make one quality longer by a hundredth, or there are too few samples to say.

    Shapes:
        symbols: ``(samples, *code.latent_shape)``.

    Examples:
        >>> from compoff.coding import Code
        >>> values = np.random.default_rng(0).geometric(0.5, (256, 1, 128)).repeat(2, 1).astype(np.uint8) % 3
        >>> tables = SymbolTables.from_counts([np.bincount(values.ravel())] * 2)
        >>> [model] = fit_contexts(values, Code(tables, (2, 128)))
        >>> model.num_channels
        2

    Source: this project.
    """
    samples = len(symbols)
    few = samples < _FEWEST and (samples < _HELD_OUT or symbols[:, 0].size < _FEWEST_SYMBOLS)
    if few or code.tables.num_symbols % 2 == 0:
        return ()
    found: list[_Found] = []
    for quality, sent in enumerate(code.qualities):
        per_channel = symbols[0, 0].size
        most = min(_SEEN_SYMBOLS // (per_channel * sent), _SEEN_POSITIONS // per_channel, samples)
        count = max(most, _HELD_OUT)
        some = [place * samples // count for place in range(count)]
        tables, zero = code.tables_at(quality), zero_symbol(code.tables.num_symbols, code.steps[quality])
        values = np.moveaxis(code.sent(symbols[some], quality), 0, 1).astype(np.int32) - zero
        found.append(_best(values, tables, zero))
    before, after = (sum(bits) for bits in zip(*(one.bits for one in found), strict=True))
    longer = any(ours > (1 + _LEAST_GAIN) * tables for tables, ours in (one.bits for one in found))
    last_before, last_after = found[-1].bits
    if longer or after >= (1 - _LEAST_GAIN) * before or last_before - last_after < _LEAST_BITS:
        return ()
    return tuple(one.model for one in found)


class _Found(NamedTuple):
    model: ContextModel
    bits: tuple[float, float]  # of a sample that was held out: under the code's tables, under the model


def _best(values: NDArray[np.int32], tables: SymbolTables, zero: int) -> _Found:
    """The model of one quality; one with leading channels where it saves enough to be worth their passes."""
    held_out = np.array([place % _HELD_OUT == _HELD_OUT - 1 for place in range(values.shape[1])])
    seen, test = values[:, ~held_out], values[:, held_out]
    before = tables.cross_entropy((test + zero).reshape(len(test), -1)) / test.shape[1]
    weights, magnitudes = _plain_weights(seen)
    model = _tabled(seen, _Weights(weights, magnitudes.reshape(-1)), tables.num_symbols, zero)
    bits = _bits(test, model, zero)
    if values.ndim > 2:  # else there are no neighbors
        led = fit_leading(seen[:_LEADING, :: -(-seen.shape[1] * seen[0, 0].size // _LED_POSITIONS)])
        ours = _Weights(
            np.concatenate([led.weights, weights[_LEADING:]]),
            np.concatenate([led.magnitudes, magnitudes[_LEADING:].reshape(-1)]),
            led.leading,
        )
        leading = _tabled(seen, ours, tables.num_symbols, zero)
        fewer = _bits(test, leading, zero)
        if fewer < (1 - _LEAST_LED) * bits:
            return _Found(leading, (before, fewer))
    return _Found(model, (before, bits))


class _Weights(NamedTuple):
    weights: NDArray[np.int64]
    magnitudes: NDArray[np.float64]  # that they expect, of all channels
    leading: NDArray[np.int64] | None = None


def _plain_weights(values: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Weights of all channels, none of which leads, and the magnitudes that they expect."""
    grid, channels = Grid(values.shape[1:]), len(values)
    rows, odd = grid.spread(values), np.arange(len(grid.order)) >= grid.split
    target, near = rows.take(grid.order, axis=1), np.zeros((channels, len(odd)), np.int32)
    beside, near[:, odd] = (grid.beside(one).take(grid.later, axis=1) for one in (rows, np.abs(rows)))
    value_weights = _value_weights(target[:, odd], beside)
    target[:, odd] -= expected_value(value_weights[:, None].astype(np.float64), beside)
    target = np.abs(target)
    sums = Sums(grid)
    sums.add(rows)
    every = -(-len(odd) // _ROWS)  # positions: of more, the weights would be the same
    weights, target, near = np.empty((channels, CONTEXTS - 1)), target[:, ::every], near[:, ::every]
    magnitudes = np.empty(target.shape)
    for start, end in groups(channels):
        before = sums.features(start).take(grid.order[::every], axis=1)
        shared: NDArray[np.float64] = np.transpose(np.concatenate([before, odd[None, ::every].astype(np.float64)]))
        step = max(1, _ROWS // len(shared))
        for first in range(start, end, step):
            part = slice(first, min(first + step, end))
            own = near[part, :, None].astype(np.float64)
            rows_seen = np.concatenate([np.repeat(shared[None], len(own), axis=0), own], axis=2)
            weights[part], magnitudes[part] = magnitude_weights(rows_seen, target[part])
    return np.concatenate([in_units(weights), value_weights[:, None]], axis=1), magnitudes


def _tabled(values: NDArray[np.int32], found: _Weights, num_symbols: int, zero: int) -> ContextModel:
    """The model of these weights; tables are counted under the whole numbers, as the coder does."""
    bounds, led = _bounds(found.magnitudes), found.leading is not None
    num_tables = _NUM_TABLES * (1 + led)
    even = SymbolTables.from_counts(np.ones((num_tables, num_symbols)))
    model, counts = ContextModel(found.weights, bounds, even, found.leading), np.zeros(num_tables * num_symbols)
    for piece in _pieces(values):
        seen = model.expected(piece + zero, zero)
        counts += np.bincount((seen.tables * np.int64(num_symbols) + seen.coded).reshape(-1), minlength=len(counts))
    counts = counts.reshape(-1, _NUM_TABLES, num_symbols)
    shares = np.concatenate([_smoothed(one, bounds, zero) for one in counts])
    return ContextModel(found.weights, bounds, SymbolTables.from_probabilities(shares), found.leading)


def _value_weights(values: NDArray[np.int32], beside: NDArray[np.int32]) -> NDArray[np.int64]:
    """What share of the sum beside a value of the later half is expected to be in it."""
    y, x = values.astype(np.float64), beside.astype(np.float64)
    return in_units((x * y).sum(1) / (np.square(x).sum(1) + 1))


def _bounds(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bounds at equal ratios over the magnitudes that are expected."""
    low, high = (float(one) for one in np.quantile(magnitudes, (0.001, 0.999)))
    bounds = np.rint(BOUND * np.geomspace(low, high, _NUM_TABLES - 1)).astype(np.int64)
    # The least are so near to each other that they would be the same.
    steps = np.arange(len(bounds))
    return np.maximum.accumulate(bounds - steps) + steps


def _smoothed(counts: NDArray[np.float64], bounds: NDArray[np.int64], zero: int) -> NDArray[np.float64]:
    """Counts with a few more of what a table's magnitude lets expect, so that what was never seen can be coded."""
    sizes = np.array([abs(symbol - zero) for symbol in range(counts.shape[1])])
    edges: NDArray[np.float64] = np.concatenate([bounds[:1], bounds]) / BOUND
    ratios = ((np.sqrt(1 + np.square(edges)) - 1) / edges)[:, None]  # of one size to the next, for this mean
    shape: NDArray[np.float64] = np.maximum(np.power(ratios, sizes), 1e-6)
    return counts + _PRIOR * shape / shape.sum(1, keepdims=True)


def _bits(values: NDArray[np.int32], model: ContextModel, zero: int) -> float:
    """What a sample costs under a model."""
    seen = (model.expected(piece + zero, zero) for piece in _pieces(values))
    return sum(float(model.tables.bits[one.tables, one.coded].sum()) for one in seen) / values.shape[1]


def _pieces(values: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """Some samples at a time."""
    step = max(1, _ROWS // max(values[:, 0].size, 1))
    for start in range(0, values.shape[1], step):
        yield values[:, start : start + step]
