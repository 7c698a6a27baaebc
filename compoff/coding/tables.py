"""Integer frequency tables: how probable each symbol is, channel by channel.

Probabilities live here as whole numbers that sum to ``2**24`` so that device and edge agree to the last bit on
every platform; nobody recomputes one from floats. The file does not know which coder reads the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from compoff.checks import check_array, check_number
from compoff.errors import ArtifactError, FeatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import ArrayLike, NDArray

    from compoff.coding.context_model import ContextModel

__all__ = ["PRECISION", "SymbolTables"]

PRECISION = 24
"""Bits of a probability: the weights of one channel sum to ``2**PRECISION``."""

_TOTAL = 1 << PRECISION
_FEWEST_SYMBOLS, _MOST_SYMBOLS = 2, 256
# Shares are rounded to 38 bits first: with the 24 of the total they fit a signed product, so the rest is exact.
_SHARE_BITS = 38

_T = TypeVar("_T")


class SymbolTables:
    """The frequency table of every channel; immutable.

    A weight ``w`` stands for the probability ``w / 2**24``. No weight is zero, so every symbol can be coded.

    Args:
        weights: whole numbers, at least 1 each, ``2**24`` in sum over each row.
        contexts: of each quality of an export what its symbols are coded with instead, where a fit found that to be
            shorter on average; these tables only carry it.

    Shapes:
        weights: ``(num_channels, num_symbols)``, 2 to 256 symbols.

    Raises:
        ArtifactError: the weights are not such a table.

    Examples:
        >>> tables = SymbolTables([[2**23, 2**23], [2**24 - 1, 1]])
        >>> tables.num_channels, tables.num_symbols
        (2, 2)
        >>> tables.cross_entropy([[0, 1, 1], [0, 0, 0]]).__round__(3)
        3.0

    Source: this project.
    """

    __slots__ = ("_derived", "_weights", "contexts")

    contexts: tuple[ContextModel, ...]

    def __init__(self, weights: ArrayLike, contexts: Iterable[ContextModel] = ()) -> None:
        self._weights = _checked_weights(check_array("weights", weights, ArtifactError))
        self.contexts = tuple(contexts)
        self._derived: dict[str, object] = {}

    @classmethod
    def from_probabilities(cls, probabilities: ArrayLike) -> SymbolTables:
        """Round probabilities to weights by largest remainders; the same on every platform.

        Args:
            probabilities: finite, not negative; each row needs a positive sum, not a sum of 1.

        Returns:
            Tables whose weights are ``1 + p * (2**24 - num_symbols)``, rounded up or down.

        Shapes:
            probabilities: ``(num_channels, num_symbols)``.

        Raises:
            ArtifactError: a value is negative or not finite, or a row sums to zero.

        Examples:
            >>> SymbolTables.from_probabilities([[0.25, 0.75]]).weights.tolist()
            [[4194305, 12582911]]

        Source: this project.
        """
        shares = check_array("probabilities", probabilities, ArtifactError, np.float64)
        _check_shape(shares.shape)
        if not np.isfinite(shares).all() or (shares < 0).any() or not (shares.max(axis=1) > 0).all():
            raise ArtifactError(
                "probabilities must be finite and not negative, with a positive sum in every row; "
                "check the prior that they come from for NaN"
            )
        return cls(_largest_remainders(shares))

    @classmethod
    def from_counts(cls, counts: ArrayLike, smoothing: float = 0.5) -> SymbolTables:
        """Turn counts of seen symbols into tables; a symbol never seen keeps a small probability.

        Args:
            counts: how often each symbol was seen; an empty channel gets a flat table.
            smoothing: what is added to each count, more than 0.

        Shapes:
            counts: ``(num_channels, num_symbols)``.

        Raises:
            ArtifactError: a count is negative or not finite, or ``smoothing`` is not positive.

        Examples:
            >>> SymbolTables.from_counts([[3, 0], [0, 0]]).weights.tolist()
            [[14680063, 2097153], [8388608, 8388608]]

        Source: this project (the default is the estimator of Krichevsky and Trofimov).
        """
        check_number("smoothing", smoothing, ArtifactError)
        if not smoothing > 0:
            raise ArtifactError(f"smoothing must be more than 0, not {smoothing}; 0.5 is the usual value")
        seen = check_array("counts", counts, ArtifactError, np.float64)
        if (seen < 0).any():
            raise ArtifactError(f"counts must not be negative; the lowest here is {seen.min():g}")
        return cls.from_probabilities(seen + smoothing)

    @property
    def weights(self) -> NDArray[np.uint32]:
        """The weights, read-only, of shape ``(num_channels, num_symbols)``."""
        return self._weights

    @property
    def num_channels(self) -> int:
        """How many channels have a table."""
        return self._weights.shape[0]

    @property
    def num_symbols(self) -> int:
        """How many symbols each channel can take."""
        return self._weights.shape[1]

    @property
    def bits(self) -> NDArray[np.float64]:
        """What an ideal coder spends on each symbol, in bits, of shape ``(num_channels, num_symbols)``."""
        return self.derived("bits", _bits)

    def cross_entropy(self, symbols: ArrayLike) -> float:
        """Sum the bits that an ideal coder spends on these symbols under these tables.

        Args:
            symbols: whole numbers below ``num_symbols``; fewer channels than tables are the first ones.

        Returns:
            Bits, the sum over all symbols.

        Shapes:
            symbols: ``(channels, positions)``.

        Raises:
            FeatureError: the symbols do not fit the tables.

        Examples:
            >>> SymbolTables([[2**22, 2**22, 2**23]]).cross_entropy([[0, 2]])
            3.0

        Source: this project.
        """
        checked = self.checked(symbols)
        return float(np.take_along_axis(self.bits[: len(checked)], checked.astype(np.int64), axis=1).sum())

    def checked(self, symbols: ArrayLike) -> NDArray[np.int32]:
        """Give the symbols in the one layout that all coders take, or say what is wrong with them.

        Args:
            symbols: whole numbers below ``num_symbols``.

        Returns:
            The same symbols, contiguous.

        Shapes:
            symbols and result: ``(channels, positions)`` with at most ``num_channels`` channels.

        Raises:
            FeatureError: wrong dtype, wrong shape, or a symbol that no table has.

        Examples:
            >>> SymbolTables([[2**23, 2**23]]).checked([[1, 0]]).dtype
            dtype('int32')

        Source: this project.
        """
        given = check_array("symbols", symbols, FeatureError)
        if given.dtype.kind not in "iu":
            raise FeatureError(f"symbols must be whole numbers, not {given.dtype}; quantize the latent first")
        if given.ndim != 2 or not 1 <= given.shape[0] <= self.num_channels:
            raise FeatureError(
                f"symbols of shape {given.shape} do not fit the tables: expected (channels, positions) "
                f"with 1 to {self.num_channels} channels"
            )
        unsigned = given.dtype.kind == "u"
        if given.size and not (int(given.max()) < self.num_symbols and (unsigned or int(given.min()) >= 0)):
            raise FeatureError(
                f"symbols reach from {given.min()} to {given.max()}, but the tables know 0 to {self.num_symbols - 1}"
            )
        return np.ascontiguousarray(given, dtype=np.int32)

    def derived(self, key: str, build: Callable[[SymbolTables], _T]) -> _T:
        """Build something from the tables once and keep it; coders hold their own form of the tables here.

        Args:
            key: its name; one name always goes with one ``build``.
            build: called with these tables the first time.

        Returns:
            What ``build`` returned.

        Examples:
            >>> SymbolTables([[2**23, 2**23]]).derived("sum", lambda tables: int(tables.weights.sum()))
            16777216

        Source: this project.
        """
        if key not in self._derived:
            self._derived[key] = build(self)
        return cast("_T", self._derived[key])

    def __reduce__(self) -> tuple[type[SymbolTables], tuple[NDArray[np.uint32], tuple[ContextModel, ...]]]:
        # What coders derive is cheap to build again and may not be picklable: only the weights are copied.
        return (SymbolTables, (self._weights, self.contexts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SymbolTables):
            return False
        return np.array_equal(self._weights, other._weights) and self.contexts == other.contexts

    def __hash__(self) -> int:
        return hash((self._weights.shape, self._weights.tobytes()))

    def __repr__(self) -> str:
        return f"SymbolTables(num_channels={self.num_channels}, num_symbols={self.num_symbols})"


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] < 1 or not _FEWEST_SYMBOLS <= shape[1] <= _MOST_SYMBOLS:
        raise ArtifactError(
            f"symbol tables of shape {shape} cannot be used: expected (channels, symbols) "
            f"with at least 1 channel and {_FEWEST_SYMBOLS} to {_MOST_SYMBOLS} symbols"
        )


def _checked_weights(weights: NDArray[np.generic]) -> NDArray[np.uint32]:
    if weights.dtype.kind not in "iu":
        raise ArtifactError(f"symbol weights must be whole numbers, not {weights.dtype}; see from_probabilities")
    _check_shape(weights.shape)
    whole = weights.astype(np.int64)
    if (whole < 1).any() or (whole > _TOTAL).any():
        raise ArtifactError(f"every symbol weight must be between 1 and {_TOTAL}, not {whole.min()} to {whole.max()}")
    sums = whole.sum(axis=1)
    if (sums != _TOTAL).any():
        channel = int(np.argmax(sums != _TOTAL))
        raise ArtifactError(f"the symbol weights of channel {channel} sum to {sums[channel]}, expected {_TOTAL}")
    result = np.array(whole, dtype=np.uint32, order="C")
    result.setflags(write=False)
    return result


def _largest_remainders(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Share out ``2**24`` units, one to each symbol and the others in proportion."""
    free = _TOTAL - shares.shape[1]
    exponents = np.frexp(shares.max(axis=1, keepdims=True))[1]
    steps = np.rint(np.ldexp(shares, _SHARE_BITS - exponents)).astype(np.int64)
    totals = steps.sum(axis=1, keepdims=True)
    quotas, remainders = np.divmod(steps * free, totals)
    missing = free - quotas.sum(axis=1, keepdims=True)
    # A stable sort gives the unit to the first of two equal remainders, on every platform.
    order = np.argsort(-remainders, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    return 1 + quotas + (ranks < missing)


def _bits(tables: SymbolTables) -> NDArray[np.float64]:
    return PRECISION - np.log2(tables.weights.astype(np.float64))
