"""Fit the context models that a code's symbols are coded with, where they save enough to be worth their work.

Least squares says what a magnitude is expected from; what then remains is counted. Knows symbols, no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.coding import SymbolTables
from compoff.coding.context_model import (
    BOUND,
    CONTEXTS,
    LARGEST,
    ONE,
    ContextModel,
    Sums,
    expected_value,
    groups,
)
from compoff.coding.grid import Grid
from compoff.coding.levels import zero_symbol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from compoff.coding import Code

__all__ = ["SomeSamples", "fit_contexts"]

_KEPT_BYTES = 1 << 25  # of symbols that are kept for a fit
_SEEN_SYMBOLS = 1 << 22  # of a quality that its model is fitted to, at most; more would show the same
# Samples, or symbols of a channel in fewer samples: of less, what is found would be about them alone.
_FEWEST, _FEWEST_SYMBOLS = 32, 1 << 14
_HELD_OUT = 4  # every fourth sample says whether the models are worth it
# Of the bits of all qualities, and bits of a sample at the last: less is not worth a millisecond.
_LEAST_GAIN, _LEAST_BITS = 0.01, 64.0
_NUM_TABLES = 24
_ROUNDS = 3  # of least squares, each weighted by what the one before expects
_LEAST, _SOFT = 0.005, 0.05  # magnitudes: the least expected, and what is added to it as the deviation it stands for
_RIDGE = 1e-4
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
        last quality, or there are too few samples to say.

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
    models: list[ContextModel] = []
    bits = bits_before = saved = 0.0
    for quality in range(len(code.qualities)):
        most = max(_HELD_OUT, _SEEN_SYMBOLS // symbols[0, : code.qualities[quality]].size)
        sent = code.sent(symbols[:: -(-samples // most)], quality)
        tables, zero = code.tables_at(quality), zero_symbol(code.tables.num_symbols, code.steps[quality])
        values = np.moveaxis(sent, 0, 1).astype(np.int32) - zero
        held_out = np.arange(len(sent)) % _HELD_OUT == _HELD_OUT - 1
        model = _fitted(values[:, ~held_out], tables.num_symbols, zero)
        test = values[:, held_out]
        before, after = tables.cross_entropy((test + zero).reshape(len(test), -1)), _bits(test, model, zero)
        bits_before, bits, saved = bits_before + before, bits + after, (before - after) / test.shape[1]
        models.append(model)
    return tuple(models) if bits < (1 - _LEAST_GAIN) * bits_before and saved >= _LEAST_BITS else ()


def _fitted(values: NDArray[np.int32], num_symbols: int, zero: int) -> ContextModel:
    """The model of one quality."""
    grid, channels = Grid(values.shape[1:]), len(values)
    rows, odd = grid.spread(values), np.arange(len(grid.order)) >= grid.split
    target, near = rows.take(grid.order, axis=1), np.zeros((channels, len(odd)), np.int32)
    beside, near[:, odd] = (grid.beside(one).take(grid.later, axis=1) for one in (rows, np.abs(rows)))
    value_weights = _value_weights(target[:, odd], beside)
    target[:, odd] -= expected_value(value_weights[:, None], beside)
    target = np.abs(target)
    sums = Sums(grid)
    sums.add(rows)
    weights = np.empty((channels, CONTEXTS - 1))
    magnitudes = np.empty(target.shape)
    for start, end in groups(channels):
        before = sums.features(start).take(grid.order, axis=1)
        shared: NDArray[np.float64] = np.transpose(np.concatenate([before, odd[None].astype(np.float64)]))
        step = max(1, _ROWS // len(shared))
        for first in range(start, end, step):
            part = slice(first, min(first + step, end))
            own = near[part, :, None].astype(np.float64)
            seen = np.concatenate([np.repeat(shared[None], len(own), axis=0), own], axis=2)
            weights[part], magnitudes[part] = _least_squares(seen, target[part])
    bounds = _bounds(magnitudes)
    whole = np.clip(np.rint(np.concatenate([weights * ONE, value_weights[:, None]], axis=1)), -LARGEST, LARGEST)
    untabled = ContextModel(
        whole.astype(np.int64), bounds, SymbolTables.from_counts(np.ones((_NUM_TABLES, num_symbols)))
    )
    # Tables are counted under the whole numbers that the coder has, not under those they were rounded from.
    tables, coded = untabled.expected(values + zero, zero)
    counts = np.bincount((tables * np.int64(num_symbols) + coded).reshape(-1), minlength=_NUM_TABLES * num_symbols)
    counts = counts.reshape(_NUM_TABLES, num_symbols).astype(np.float64)
    return ContextModel(
        whole.astype(np.int64), bounds, SymbolTables.from_probabilities(_smoothed(counts, bounds, zero))
    )


def _value_weights(values: NDArray[np.int32], beside: NDArray[np.int32]) -> NDArray[np.float64]:
    """What share of the sum beside a value of the later half is expected to be in it."""
    y, x = values.astype(np.float64), beside.astype(np.float64)
    return np.rint(ONE * (x * y).sum(1) / (np.square(x).sum(1) + 1))


def _least_squares(
    rows: NDArray[np.float64], target: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights for each channel, and the magnitudes that they expect; the deviation of one counts as its own size."""
    scale: NDArray[np.float64] = np.sqrt(np.square(rows).mean(1, keepdims=True)) + 1e-12
    scaled, deviation = rows / scale, np.ones(target.shape)
    weights, magnitudes = np.zeros((len(rows), rows.shape[2], 1)), deviation
    for _ in range(_ROUNDS):
        weighted = scaled / np.square(deviation)[:, :, None]
        square: NDArray[np.float64] = np.moveaxis(scaled, 1, 2) @ weighted
        mean: NDArray[np.float64] = np.trace(square, axis1=1, axis2=2)[:, None, None] / square.shape[1]
        square += (_RIDGE * mean + 1e-12) * np.eye(square.shape[1])
        weights = np.linalg.solve(square, np.moveaxis(weighted, 1, 2) @ target[:, :, None].astype(np.float64))
        magnitudes = np.maximum((scaled @ weights)[:, :, 0], _LEAST)
        deviation = magnitudes + _SOFT
    return weights[:, :, 0] / scale[:, 0], magnitudes


def _bounds(magnitudes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bounds at equal ratios over the magnitudes that are expected."""
    low, high = (float(one) for one in np.quantile(magnitudes, (0.001, 0.999)))
    low = max(low, _LEAST)
    bounds = np.rint(BOUND * np.geomspace(low, max(high, 2 * low), _NUM_TABLES - 1)).astype(np.int64)
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
    """What the values cost under a model."""
    return float(model.tables.bits[model.expected(values + zero, zero)].sum())
