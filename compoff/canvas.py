"""An empty figure to draw on, where matplotlib is installed."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

from compoff.errors import BackendError

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["empty_figure", "log_ticks"]


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
    figure = Figure(figsize=(width, height), layout="constrained")
    # A notebook asks pyplot to show what pyplot knows; of what it does not know it asks the figure itself.
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    return figure


def log_ticks(axis: Axis) -> None:
    """Write a few plain numbers on a logarithmic axis: 1, 2 and 5, or finer ones where it is short.

    Args:
        axis: The axis, its scale set, and everything drawn.

    Examples:
        >>> axes = empty_figure(7, 4).subplots()
        >>> lines = axes.loglog([400, 5000], [1, 2])
        >>> log_ticks(axes.xaxis)
        >>> [label.get_text() for label in axes.get_xticklabels() if 400 <= label.get_position()[0] <= 5000]
        ['500', '1,000', '2,000', '5,000']
    """
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter

    least, most = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if most > 5 * least else AutoLocator())
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(NullFormatter())


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
