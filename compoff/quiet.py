"""What PyTorch tells while it exports, left out."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet(log: str, printed: Callable[[io.StringIO], contextlib.AbstractContextManager[object]]) -> Generator[None]:
    """Leave out PyTorch's own deprecations, what it logs and what it prints while the block runs; errors still raise.

    Args:
        log: Name of the logger to silence.
        printed: ``contextlib.redirect_stdout`` for its progress, or ``redirect_stderr`` for a graph that it could not
            finish.

    Yields:
        Nothing.
    """
    logger = logging.getLogger(log)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), printed(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
