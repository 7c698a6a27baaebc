"""Logs of a server process: lines for people, or JSON objects for machines, one a line, on the error stream."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from compoff.errors import BackendError
from compoff.printable import printable

__all__ = ["set_up_logs"]

_FIELDS = "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s"


def set_up_logs(form: Literal["text", "json"] | str = "text", level: str = "info") -> None:
    """Send what compoff logs to the error stream.

    Args:
        form: ``"text"`` or ``"json"``.
        level: From which level on.

    Raises:
        BackendError: JSON needs a package that is not installed.
    """
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_json() if form == "json" else _Text(_FIELDS))
    logger = logging.getLogger("compoff")
    logger.handlers[:] = [stream]
    logger.setLevel(level.upper())
    logger.propagate = False


class _Text(logging.Formatter):
    """Lines for people, who look at them in a terminal; what is logged may quote a manifest or another machine."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")


def _json() -> logging.Formatter:
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ModuleNotFoundError as error:
        raise BackendError('JSON logs need python-json-logger: pip install "compoff[serve]"') from error
    names = {"asctime": "time", "levelname": "level", "name": "logger", "process": "process"}
    return JsonFormatter(_FIELDS, rename_fields=names, timestamp=False)
