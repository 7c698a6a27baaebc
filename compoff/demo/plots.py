"""The report's plots as inline SVG: bytes against accuracy, time over each link, loss curves.

Every text and line takes the color of the page around it, so that one picture serves light and dark.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from compoff.canvas import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from compoff.fitting import FitReport

__all__ = ["draw_accuracy", "draw_link", "draw_losses"]

_INK = "#010203"  # stands for the page's own color until the SVG is written
_COLORS = {"local": "#8c8c8c", "raw": "#d55e00", "png": "#cc79a7", "jpeg": "#e69f00", "compoff": "#2a8fd0"}
_PARTS = (("device", "#2a8fd0"), ("edge", "#009e73"), ("round trip", "#8c8c8c"), ("bytes on the line", "#e69f00"))


def draw_accuracy(results: dict[str, Any]) -> str:
    """Draw accuracy over bytes, a point for each way that sends.

    Args:
        results: What ``results.json`` holds.

    Returns:
        An SVG element.
    """
    figure, axes = _canvas(4.0)
    alone = next((row for row in results["rows"] if not row["bytes_up"]), None)
    if alone is not None:
        axes.axhline(alone["accuracy"], color=_COLORS["local"], linestyle=":", linewidth=1, label="the network alone")
    sending = [row for row in results["rows"] if row["bytes_up"]]
    for system in dict.fromkeys(row["system"] for row in sending):
        rows = [row for row in sending if row["system"] == system]
        errors = [row["drop_stderr"] for row in rows]
        x, y = [row["bytes_up"] for row in rows], [row["accuracy"] for row in rows]
        axes.errorbar(x, y, yerr=errors, fmt="o", color=_COLORS[system], label=system, capsize=2, linewidth=1)
    for number, row in enumerate(sending):
        place = (5, 5 if number % 2 else -12)  # neighbors may lie close together
        text = str(row["split"] or row["quality"] or "")
        axes.annotate(text, (row["bytes_up"], row["accuracy"]), place, textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="bytes up, mean, frame included (log)", ylabel="accuracy, %")
    log_ticks(axes.xaxis)
    axes.grid(alpha=0.25)
    _legend(figure, axes, columns=5)
    return _svg(figure, "accuracy", "Accuracy over bytes of each way")


def draw_link(results: dict[str, Any], link: dict[str, Any]) -> str:
    """Draw where the time goes over one link, a bar for each way.

    Args:
        results: What ``results.json`` holds.
        link: One of its links.

    Returns:
        An SVG element.
    """
    rows = list(reversed(results["rows"]))
    figure, axes = _canvas(0.9 + 0.3 * len(rows))
    start = [0.0] * len(rows)
    for name, color in _PARTS:
        widths = [_part(row, link, name) for row in rows]
        axes.barh([row["label"] for row in rows], widths, left=start, color=color, label=name)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    for position, (row, end) in enumerate(zip(rows, start, strict=True)):
        axes.annotate(
            f"{row['link_ms'][link['name']]:.1f}", (end, position), (3, 0), textcoords="offset points", va="center"
        )
    axes.set(xlabel="milliseconds")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, axes, columns=4)
    identity = re.sub(r"\W+", "-", link["name"])
    return _svg(figure, f"link-{identity}", f"Time of each way on {link['name']}")


def _part(row: dict[str, Any], link: dict[str, Any], name: str) -> float:
    """Milliseconds of one summand of the formula."""
    if name == "device":
        return row["device_ms"]
    if not row["bytes_up"]:
        return 0.0
    if name == "edge":
        return row["edge_ms"]
    if name == "round trip":
        return 1000 * link["round_trip_seconds"]
    return 1000 * 8 * (row["bytes_up"] + row["bytes_down"]) / link["bits_per_second"]


def draw_losses(report: FitReport) -> str:
    """Draw the loss curves of the fits.

    Args:
        report: The fits.

    Returns:
        An SVG element.
    """
    figure = report.plot()
    figure.set_size_inches(5, 3.2)
    return _svg(figure, "losses", "Loss of each step of the fits")


def _canvas(height: float) -> tuple[Figure, Axes]:
    """A figure that is narrow enough for a phone."""
    from matplotlib.figure import Figure  # the demo's extra

    figure = Figure(figsize=(5, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    """The legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        columnspacing=1,
        handlelength=1,
    )


def _svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an element to put into a page: no header, no namespace, its own ids, the page's ink."""
    import matplotlib as mpl

    _ink(figure)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{description}">',
        text,
        count=1,
    )
    return text.replace(_INK, "currentColor")


def _ink(figure: Figure) -> None:
    """Paint all that is not data in the stand-in for the page's color."""
    from matplotlib.text import Text

    for axes in figure.axes:
        axes.tick_params(which="both", color=_INK, labelcolor=_INK)
        axes.set_facecolor("none")
        for spine in axes.spines.values():
            spine.set_edgecolor(_INK)
        legend = axes.get_legend()
        if legend is not None:
            legend.set_frame_on(False)
    for text in figure.findobj(Text):
        text.set_color(_INK)
