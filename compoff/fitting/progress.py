"""A bar of progress: one for each stage of a fit, on a terminal unless it is asked for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator, Iterable, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["Done", "bar", "each"]

Done: TypeAlias = "Callable[[float | None], None]"
"""Told that one more is done, with the loss there or None."""

_Item = TypeVar("_Item")


@contextlib.contextmanager
def bar(what: str, total: int | None, unit: str, shown: bool | None, *, begun: int = 0) -> Generator[Done]:
    """Draw a bar while the block runs.

    Args:
        what: What is under way.
        total: How many there are of it; None where nobody knows.
        unit: What one of them is called.
        shown: Whether to draw it; None to draw it on a terminal only.
        begun: How many are done already.

    Yields:
        What is to be told of each that is done.

    Examples:
        >>> with bar("fit", 10, "step", shown=False) as done:
        ...     done(0.25)
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda loss: None  # a hidden bar of tqdm's would start a thread, and settle how processes start
        return
    drawn: Any
    with tqdm(total=total, initial=begun, desc=what, unit=unit) as drawn:

        def done(loss: float | None) -> None:
            drawn.update()
            if loss is not None:
                drawn.set_postfix(loss=f"{loss:.4f}", refresh=False)

        yield done


def each(items: Iterable[_Item], what: str, unit: str, shown: bool | None) -> Generator[_Item]:
    """Go through items with a bar beside them.

    Args:
        items: The items.
        what: As for `bar`.
        unit: As for `bar`.
        shown: As for `bar`.

    Yields:
        One item after the other.

    Examples:
        >>> [*each([1, 2], "measure", "batch", shown=False)]
        [1, 2]
    """
    with bar(what, len(items) if isinstance(items, Sized) else None, unit, shown) as done:
        for item in items:
            yield item
            done(None)
