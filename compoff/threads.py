"""The threads that PyTorch computes with, in a forked child: they were left in the parent, and are waited for in vain.

Never imports PyTorch: where it is not loaded, nobody waits.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

__all__ = ["has_lost_threads", "work_without_lost_threads"]

_log = logging.getLogger("compoff.threads")
# Of the thread that forked alone: OpenMP gives every other one threads of its own when it first needs them.
_forked = threading.local()


def has_lost_threads() -> bool:
    """Whether this is the thread that a process was forked in, in the child.

    Examples:
        >>> has_lost_threads()
        False
    """
    return getattr(_forked, "lost", False)


def work_without_lost_threads() -> None:
    """Have PyTorch compute in one thread where those that it had were left in the parent; the log hears of it once."""
    if not has_lost_threads() or getattr(_forked, "alone", False):
        return
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    _forked.alone = True
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        _log.warning(
            "process %d was forked, and PyTorch's threads were left in its parent: it computes in one thread from now "
            "on; start processes with multiprocessing's 'spawn' for more",
            os.getpid(),
        )


def _note() -> None:
    _forked.lost, _forked.alone = True, False


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_note)
