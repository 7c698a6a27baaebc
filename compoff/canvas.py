"""An empty figure to draw on, where matplotlib is installed."""

from __future__ import annotations

import functools
import io
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
    figure = Figure(figsize=(width, height), layout="constrained")
    # A notebook asks pyplot to show what pyplot knows; of what it does not know it asks the figure itself.
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
