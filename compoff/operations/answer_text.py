"""A model's answer for a terminal, and where bytes and time of the call went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compoff.device.answers import CallReport

__all__ = ["answer_text"]


def answer_text(answer: Any, report: CallReport | None = None) -> str:
    """The answer, briefly: of a table of scores the best five of each row.

    Args:
        answer: What the model returned, in numpy.
        report: What became of the call, if that is known.

    Returns:
        Lines of text.

    Examples:
        >>> answer_text(np.array([[0.5, 2.0]]))
        'top 5: 1 (2.000), 0 (0.500)'
    """
    if isinstance(answer, np.ndarray) and answer.ndim == 2:
        scores = cast("NDArray[Any]", answer)
        ranks = np.argsort(scores, axis=1)[:, ::-1][:, :5]
        lines = [
            "top 5: " + ", ".join(f"{index} ({row[index]:.3f})" for index in best)
            for row, best in zip(scores, ranks, strict=True)
        ]
    else:
        lines = [str(answer)]  # pyright: ignore[reportUnknownArgumentType]
    if report is not None:
        lines.append(
            f"split {report.split}: {report.payload_bytes} B sent, {report.reply_bytes} B received; head "
            f"{1000 * report.head_seconds:.1f} ms, link and tail {1000 * report.remote_seconds:.1f} ms"
        )
    return "\n".join(lines)
