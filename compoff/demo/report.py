"""``report.html`` and ``results.json``: the results for people and for programs.

The page is one file that loads nothing; its template lies beside this file. Computes no result of its own.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import TYPE_CHECKING, Any

from compoff.demo.plots import draw_accuracy, draw_link, draw_losses
from compoff.demo.table import cells, describe_link, headers, notes
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.fitting import FitReport

__all__ = ["render_report", "write_report"]

_TEMPLATE = "report.html.jinja"


def render_report(results: dict[str, Any], fits: FitReport) -> str:
    """Make the page.

    Args:
        results: What ``results.json`` holds.
        fits: The loss curves.

    Returns:
        HTML.
    """
    import jinja2  # the demo's extra
    from markupsafe import Markup

    source = importlib.resources.files("compoff.demo").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        results=results,
        headers=headers(results),
        rows=[{"system": row["system"], "cells": cells(row)} for row in results["rows"]],
        notes=notes(results),
        accuracy=Markup(draw_accuracy(results)),
        links=[(describe_link(link), Markup(draw_link(results, link))) for link in results["links"]],
        losses=Markup(draw_losses(fits)),
    )


def write_report(results: dict[str, Any], fits: FitReport, out: Path) -> None:
    """Write both files.

    Args:
        results: What ``results.json`` holds.
        fits: The loss curves.
        out: The folder; it exists.

    Raises:
        ArtifactError: A file cannot be written.
    """
    files = {
        "results.json": json.dumps(results, indent=1, allow_nan=False) + "\n",
        "report.html": render_report(results, fits),
    }
    for name, text in files.items():
        try:
            (out / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{out / name} cannot be written ({error.strerror}); give --out another folder"
            ) from error
