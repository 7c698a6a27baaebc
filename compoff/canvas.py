"""An empty figure to draw on, where matplotlib is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.errors import BackendError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["empty_figure"]


def empty_figure(width: float, height: float) -> Figure:
    """Make one, outside of pyplot, which would keep it.

    Args:
        width: Width in inches.
        height: Height in inches.

    Returns:
        A matplotlib figure.

    Raises:
        BackendError: matplotlib is not installed.

    Examples:
        >>> empty_figure(7, 4).axes
        []
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendError('plots need matplotlib; install it with: pip install "compoff[demo]"') from error
    return Figure(figsize=(width, height), layout="constrained")
