"""`compoff serve`: one process or several, metrics beside them, until a signal ends it.

SIGTERM and SIGINT: no new requests, the answers in flight still go out. SIGHUP: tokens, certificates and tails are read
again, and the settings file, if there is one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from compoff.errors import CompoffError, LocalProtocolError
from compoff.operations.figures import Figures, merge
from compoff.operations.logs import set_up_logs
from compoff.operations.settings import MOST_PROCESSES
from compoff.operations.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from compoff.operations.settings import Settings

__all__ = ["run_server"]

_logger = logging.getLogger("compoff.serve")
_LOOK_SECONDS = 0.2


class _Group(Protocol):
    """One process or several."""

    @property
    def address(self) -> str: ...
    @property
    def served(self) -> list[str]: ...
    @property
    def running(self) -> bool: ...
    def watch(self) -> None: ...
    def figures(self) -> Figures: ...
    def reload(self, settings: Settings) -> object: ...
    def stop(self) -> None: ...


class _Alone(Worker):
    """This process itself."""

    def watch(self) -> None:
        """Nobody else is there to be watched."""

    def figures(self) -> Figures:
        """What it has counted."""
        return merge([super().figures()], processes=1)


def run_server(
    settings: Settings,
    *,
    reread: Callable[[], tuple[Settings, tuple[str, str]]] | None = None,
    log: tuple[str, str] = ("text", "warning"),
    say: Callable[[str], None] = print,
) -> None:
    """Serve until a signal says stop.

    Args:
        settings: How to run the server.
        reread: Reads the settings again, and with them the form of the logs, at SIGHUP; None to keep them and read only
            the files they name.
        log: Format and level of the logs.
        say: Takes a line for whoever started the server.

    Raises:
        CompoffError: The settings cannot be served.
        OSError: A file cannot be read.
    """
    set_up_logs(*log)
    stop: list[int] = []  # an Event has a lock, on which a second signal inside the first one's handler would wait
    again: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: stop.append(number))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda number, _: again.append(number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # the command line keeps it waiting until now
    for name in ("processes", "fronts"):
        if getattr(settings, name) > MOST_PROCESSES:
            raise LocalProtocolError(f"{name} is {getattr(settings, name)}; expected at most {MOST_PROCESSES}")
    if settings.fronts and settings.processes > 1:
        raise LocalProtocolError("fronts and processes were both given; with fronts one process holds the tails")
    group = _group(settings, log, lambda: bool(stop))
    with contextlib.ExitStack() as stack:
        stack.callback(group.stop)
        if settings.metrics is not None:
            from compoff.operations.monitor import Monitor  # prometheus-client is an extra

            monitor = stack.enter_context(Monitor(group.figures, settings.metrics))
            _tell(say, f"metrics on http://{monitor.address}/")
        for tail in group.served:
            _tell(say, f"serving {tail} on {group.address}")
        while not stop and group.running:
            time.sleep(_LOOK_SECONDS)
            group.watch()
            if again:
                again.clear()
                settings = _reload(group, settings, log, reread)
    _tell(say, "stopped")


def _group(settings: Settings, log: tuple[str, str], stopping: Callable[[], bool]) -> _Group:
    if settings.processes == 1 and not settings.fronts:
        return _Alone(settings)
    from compoff.operations.processes import Processes  # multiprocessing, which not every Python has whole

    return Processes(settings, log, stopping)


def _tell(say: Callable[[str], None], line: str) -> None:
    """Say a line; where nobody is there any more to read it, the log says so once, and the server goes on."""
    output: TextIO | None = sys.stdout  # None where the program was started with it closed
    try:
        say(line)
        if output is not None:
            output.flush()
    except OSError as error:
        _logger.warning("standard output is closed (%s); no more is said there", error.strerror or error)
        if output is not None:  # what is left in its buffer would be an error at the exit
            with contextlib.suppress(OSError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), output.fileno())


def _reload(
    group: _Group,
    settings: Settings,
    log: tuple[str, str],
    reread: Callable[[], tuple[Settings, tuple[str, str]]] | None,
) -> Settings:
    """Read everything again; whatever is wrong, the server goes on with what it had. The settings from now on.

    Where the settings are wrong, what those in force name is read again all the same.
    """
    try:
        fresh, form = (settings, log) if reread is None else reread()
    except (CompoffError, OSError) as error:
        _logger.error("the settings stay as they were: %s", error)
        fresh, form = settings, log  # a mistake in one of them is no reason to keep a token that was taken back
    except Exception:
        _logger.exception("the settings stay as they were")
        fresh, form = settings, log
    names = {"options": "limits", "tls": "the files that tls names"}
    changed = [
        names.get(name, name)
        for name in ("address", "tls", "insecure", "options", "processes", "metrics", "fronts")
        if getattr(fresh, name) != getattr(settings, name)
    ]
    for name in changed + ["log"] * (form != log):
        _logger.warning("a change of %s needs a restart", name)
    # A process that dies and is started again must not differ from the others in what needed a restart of all.
    settings = replace(
        settings, tails=fresh.tails, token_file=fresh.token_file, secret=fresh.secret, written=fresh.written
    )
    group.reload(settings)
    return settings
