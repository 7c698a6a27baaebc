"""A forked child that does something and tells what came of it."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def in_child(work: Callable[[], object]) -> str:
    """What a forked child says of some work: its result, or the error; the child is killed where it says nothing.

    Before that it writes to stderr where it hangs.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which is what is tested
        child = os.fork()
    if child == 0:
        try:
            faulthandler.dump_traceback_later(50)
            said = repr(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    try:
        # A hang has no end, and cores may be busy.
        if not select.select([reader], [], [], 60)[0]:
            return "nothing"
        return os.read(reader, 65536).decode()
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
