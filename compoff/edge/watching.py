"""The event loop of a server: one that watches sockets, whichever is the default.

That of Windows does not, nor need one that another package has made the default, such as uvloop.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["run_watching"]


def run_watching(main: Callable[[selectors.BaseSelector], Coroutine[Any, Any, None]]) -> None:
    """As ``asyncio.run``, which takes no loop before Python 3.12.

    Args:
        main: What to run, given what the loop watches its sockets with.
    """
    selector = selectors.DefaultSelector()
    loop = asyncio.SelectorEventLoop(selector)
    try:
        loop.run_until_complete(main(selector))
    finally:
        try:
            rest = asyncio.all_tasks(loop)
            for task in rest:
                task.cancel()
            if rest:
                loop.run_until_complete(asyncio.wait(rest))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
