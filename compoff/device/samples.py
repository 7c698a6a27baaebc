"""The samples that a head is compared and calibrated on, out of batches as `fit` takes them. Knows no head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

__all__ = ["first_samples"]

_MOST = 512


def first_samples(
    batches: Iterable[Any] | None,
    pieces: Callable[[tuple[Any, ...], dict[str, Any]], list[list[NDArray[Any]]]],
    names: frozenset[str] | None,
) -> list[list[NDArray[Any]]]:
    """The first few hundred samples.

    Args:
        batches: Inputs, or inputs with labels behind them; None for none.
        pieces: Makes the arrays of a batch, those of one call after another.
        names: Names that an input may be given by; None where that is not known.

    Returns:
        The inputs of each call.

    Raises:
        FeatureError: A batch is not what the model takes, or there is no way through the batches.
    """
    if isinstance(batches, Mapping) or hasattr(batches, "__array__"):  # a tensor would be taken apart, sample by sample
        given = type(cast("Any", batches)).__name__
        raise FeatureError(f"batches is a {given}, one batch; expected several: put it in a list")
    try:
        iterator = iter(() if batches is None else batches)
    except TypeError:
        given = type(batches).__name__
        raise FeatureError(
            f"batches is a {given}; expected batches to go through, such as a list or a loader"
        ) from None
    taken: list[list[NDArray[Any]]] = []
    count = 0
    for batch in iterator:
        called = _called(batch, names)
        inputs = cast("Any", batch[0] if isinstance(batch, (tuple, list)) and batch and called is None else batch)
        called = called or _called(inputs, names)
        if called is not None:
            found = pieces(*called)
        elif isinstance(inputs, Mapping):
            named = cast("Mapping[str, Any]", inputs).items()
            known = {name: value for name, value in named if names is None or name in names}
            found = pieces((), known)
        else:
            found = pieces(cast("tuple[Any, ...]", inputs if isinstance(inputs, tuple) else (inputs,)), {})
        for piece in found:
            taken.append(piece)
            count += max((len(array) for array in piece if array.ndim), default=1)
            if count >= _MOST:
                return taken
    return taken


def _called(given: Any, names: frozenset[str] | None) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positional and keyword inputs of a pair of both; None where what comes second has other names."""
    if names is None or not isinstance(given, (tuple, list)) or len(parts := cast("tuple[Any, ...]", given)) != 2:
        return None
    inputs, other = parts
    if not isinstance(inputs, (tuple, list)) or not isinstance(other, Mapping):
        return None
    named = dict(cast("Mapping[Any, Any]", other))
    return (tuple(cast("tuple[Any, ...]", inputs)), named) if named and names.issuperset(named) else None
