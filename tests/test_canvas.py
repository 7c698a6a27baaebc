"""Figures outside of pyplot are drawn in a notebook all the same."""

from __future__ import annotations

import pickle
import sys

from compoff.canvas import empty_figure, log_ticks


def test_a_notebook_shows_a_figure() -> None:
    figure = empty_figure(2, 1)
    figure.subplots().plot([0, 1], [1, 0])
    image = figure._repr_png_()  # type: ignore[attr-defined]
    assert image.startswith(b"\x89PNG")
    assert len(image) > 1000


def test_pyplot_keeps_nothing() -> None:
    figure = empty_figure(2, 1)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or figure not in map(pyplot.figure, pyplot.get_fignums())


def test_a_figure_is_pickled_as_others_are() -> None:
    figure = pickle.loads(pickle.dumps(empty_figure(2, 1)))
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_short_logarithmic_axis_has_numbers_too() -> None:
    for ends, expected in (([100, 127], {"105", "125"}), ([90, 40_000], {"100", "2,000", "20,000"})):
        axes = empty_figure(7, 4).subplots()
        axes.semilogx(ends, [1, 2])
        log_ticks(axes.xaxis)
        assert expected <= {label.get_text() for label in axes.get_xticklabels()}
