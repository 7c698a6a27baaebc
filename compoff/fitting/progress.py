"""A bar of progress: one for each stage of a fit, on a terminal unless it is asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from typing import TypeAlias

__all__ = ["Bar", "bar"]

Bar: TypeAlias = "tqdm[Any]"


def bar(what: str, total: int, unit: str, shown: bool | None, *, begun: int = 0) -> Bar:
    """Draw a bar while it is used as a context.

    Args:
        what: What is under way.
        total: How many there are of it.
        unit: What one of them is called.
        shown: Whether to draw it; None to draw it on a terminal only.
        begun: How many are done already.

    Returns:
        The bar.

    Examples:
        >>> with bar("fit", 10, "step", shown=False) as drawn:
        ...     _ = drawn.update()
    """
    hidden = not (sys.stderr.isatty() if shown is None else shown)
    return tqdm(total=total, initial=begun, desc=what, disable=hidden, unit=unit)
