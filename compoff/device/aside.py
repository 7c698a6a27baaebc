"""Work that takes locks, done aside: a signal's handler or the garbage collector may interrupt who holds them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["aside"]


def aside(work: Callable[[], None], patience: float) -> None:
    """Do something in a thread of its own, and wait for it a while; here, where the program ends or no thread is left.

    Args:
        work: What to do.
        patience: Seconds to wait for it.

    Examples:
        >>> done = []
        >>> aside(lambda: done.append(1), 5.0)
        >>> done
        [1]
    """
    if threading.main_thread().is_alive():
        thread = threading.Thread(target=work, name="compoff-close", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a limit of threads
            pass
        else:
            thread.join(patience)
            return
    work()
