"""Figures outside of pyplot are drawn in a notebook all the same."""

from __future__ import annotations

import pickle
import sys

from compoff.canvas import empty_figure


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
