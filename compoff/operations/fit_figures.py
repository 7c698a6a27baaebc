"""Figures of a fit as a file keeps them: checked before they are shown, and how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compoff.checks import is_number
from compoff.errors import ArtifactError
from compoff.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.table import Table

__all__ = [
    "GUARANTEE",
    "MEASURED",
    "MEASURED_ON",
    "check_each",
    "check_figures",
    "count",
    "facts_of",
    "is_figure",
    "number",
    "quality_table",
    "shape",
    "table",
]

GUARANTEE = (
    "agreement",
    "output_error",
    "semi_orthogonality_error",
    "lipschitz_bound",
    "local_gain",
    "aim_met",
)
"""What a fit found at its default quality, the terms of the paper's guarantee among it."""

MEASURED = ("bytes", "static_bytes", "agreement", "output_error", "encoder_macs")
"""What was measured of each quality."""

MEASURED_ON = ("measured_on", "held_out")
"""What all of it was measured on."""

_COLUMNS = ("quality", "channels", "step", "bytes", "static", "at most", "agreement", "output error")
_FLAGS = ("aim_met", "held_out")
_FIGURES = (
    "raw_bytes",
    "head_macs",
    "encoder_macs",
    "tail_macs",
    "measured_on",
    *(name for name in GUARANTEE if name not in _FLAGS),
)
_MOST = 1 << 63  # a number of hundreds of digits is no figure, and no float holds it


def check_figures(where: str, report: Mapping[str, Any], cure: str) -> None:
    """Refuse figures that are none.

    Args:
        where: What holds them, for the error.
        report: The figures by name, with the ``curve``.
        cure: What to do then.

    Raises:
        ArtifactError: One of those that are shown is of another kind.
    """
    check_each(where, report, _FIGURES, is_figure, cure)
    check_each(where, report, _FLAGS, lambda value: value is None or isinstance(value, bool), cure)
    check_each(where, {"curve": [], **report}, ("curve",), _is_curve, cure)


def check_each(
    where: str, found: Mapping[str, Any], names: Sequence[str], fits: Callable[[Any], bool], cure: str
) -> None:
    """Refuse values that do not fit.

    Args:
        where: What holds them, for the error.
        found: The values.
        names: Names of those to check.
        fits: Whether a value fits.
        cure: What to do where one does not.

    Raises:
        ArtifactError: One does not.
    """
    wrong = next((name for name in names if not fits(found.get(name))), None)
    if wrong is not None:
        raise ArtifactError(f"{where}.{wrong} is {found.get(wrong)!r:.80}, which cannot be; it is damaged: {cure}")


def is_figure(value: Any) -> bool:
    """Whether a value is a number that can be shown, or None."""
    return value is None or (is_number(value) and (isinstance(value, float) or abs(value) < _MOST))


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and all(is_figure(entry.get(name)) for name in MEASURED)  # pyright: ignore[reportUnknownMemberType]
        for entry in value  # pyright: ignore[reportUnknownVariableType]
    )


def facts_of(guarantee: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, str]:
    """What a fit found, as lines for people.

    Args:
        guarantee: The figures of `GUARANTEE`.
        measured: Those of `MEASURED_ON`.

    Returns:
        What to show, by its name.
    """
    # Terms of the paper's guarantee mean something where the decoder's gain is bound, as with the paper's codec.
    bound = guarantee["lipschitz_bound"] is not None
    known = {
        name: value
        for name, value in guarantee.items()
        if value is not None and (bound or name not in ("semi_orthogonality_error", "local_gain"))
    }
    facts = {name.replace("_", " "): number(value) for name, value in known.items()}
    if measured["measured_on"]:
        facts["measured on"] = (
            f"{count(measured['measured_on'])} {'held-out' if measured['held_out'] else 'training'} samples"
        )
    return facts


def quality_table(rows: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> Table:
    """The qualities as a table; what they take without context models only where there are some.

    Args:
        rows: What each sends and was measured to cost.
        without: Heads of columns that are left out.

    Returns:
        The table.
    """
    left_out = {*without, *([] if any(row["static_bytes"] is not None for row in rows) else ["static"])}
    kept = [index for index, name in enumerate(_COLUMNS) if name not in left_out]
    cells = [_cells(row) for row in rows]
    return table("qualities", [_COLUMNS[index] for index in kept], [[row[index] for index in kept] for row in cells])


def _cells(row: Mapping[str, Any]) -> list[str]:
    """A cell for each column."""
    mark = ", default" if row["default"] else ""
    channels = ", ".join(map(str, row["channels"]))
    agreement = "–" if row["agreement"] is None else f"{100 * row['agreement']:.1f} %"
    measured = ["–" if row[name] is None else f"{row[name]:.1f}" for name in ("bytes", "static_bytes")]
    sent = [f"{row['quality']}{mark}", channels, str(row["step"])]
    return [*sent, *measured, number(row["ceiling_bytes"]), agreement, number(row["output_error"])]


def table(title: str, columns: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> Table:
    """A table for a terminal, whatever is in its cells.

    Args:
        title: What it is of.
        columns: Heads of its columns; None for none.
        rows: Its cells.

    Returns:
        The table.
    """
    from rich.table import Table
    from rich.text import Text

    heading = Text(printable(title), style="table.title")
    made = Table(title=heading, title_justify="left", show_header=columns is not None)
    for name in columns or ():
        made.add_column(name)
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))  # a name may hold rich's own brackets, or a terminal's
    return made


def shape(sizes: Sequence[object]) -> str:
    """Sizes of a tensor as they are shown."""
    return "[" + ", ".join(map(str, sizes)) + "]"


def count(value: int | None) -> str:
    """A whole number as it is shown."""
    return "not stored" if value is None else f"{value:,}"


def number(value: Any) -> str:
    """Any number as it is shown."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
