"""What one process of a server does: serve, and do what it is told over a pipe, until it is told to stop."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import threading
from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from compoff.errors import CompoffError
from compoff.operations.logs import set_up_logs
from compoff.operations.worker import Worker

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from compoff.operations.settings import Settings

__all__ = ["serve_as_told"]

_logger = logging.getLogger("compoff.serve")
_LOOK_SECONDS = 0.2
_AGAIN_SECONDS = 10.0  # after which former tails that could not be let go of are to go again


def serve_as_told(settings: Settings, address: str, pipe: Connection, log: tuple[str, str]) -> None:
    """Serve until told to stop, or until nobody is there to tell.

    Args:
        settings: How to run.
        address: Where to listen, beside others that do.
        pipe: Over which it is told, and answers.
        log: Format and level of the logs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody; the one that started us decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # held back since before the start
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    set_up_logs(*log)
    try:
        worker = Worker(settings, address, shared=True)
    except (CompoffError, OSError) as error:
        pipe.send(("ready", str(error)))
        return
    try:
        pipe.send(("exports", worker.exports))
        pipe.send(("ready", worker.served))
        reader = _Reader(worker, pipe)
        while not told and worker.running:
            if wait([pipe], _LOOK_SECONDS) and not _obey(worker, pipe, reader):
                break
    except (EOFError, OSError):
        pass  # whoever started us has gone
    finally:
        worker.stop()


class _Reader:
    """Reads again what may change, in a thread of its own: a large tail takes its time, and questions go on."""

    def __init__(self, worker: Worker, pipe: Connection) -> None:
        self.sending = threading.Lock()  # two threads send
        self._worker = worker
        self._pipe = pipe
        self._wanted: queue.SimpleQueue[tuple[int, Settings, bool, bool] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="compoff-reload", daemon=True).start()

    def reload(self, wanted: tuple[int, Settings, bool, bool]) -> None:
        """Reload, after the reloads before it."""
        self._wanted.put(wanted)

    def drop(self) -> None:
        """Let go of former tails, after the reloads before."""
        self._wanted.put(None)

    def _work(self) -> None:
        again: float | None = None
        while True:
            try:
                wanted = self._wanted.get(timeout=again)
            except queue.Empty:
                wanted = None
            again = None  # a reload says anew what goes, and when
            if wanted is None:
                again = None if self._drop() else _AGAIN_SECONDS
                continue
            number, settings, tails, keep = wanted
            try:
                done = self._worker.reload(settings, tails=tails, keep=keep)
            except Exception:  # whatever a tail raises while it is read: somebody waits for the answer
                _logger.exception("the reload failed")
                done = False
            with self.sending, contextlib.suppress(OSError):
                self._pipe.send(("exports", self._worker.exports))
                self._pipe.send((f"reloaded {number}", done))

    def _drop(self) -> bool:
        try:
            self._worker.drop_former()
        except Exception as error:  # the server may be too busy; the reloads to come must find somebody
            _logger.error("former tails are served for longer: %s", error)
            return False
        return True


def _obey(worker: Worker, pipe: Connection, reader: _Reader) -> bool:
    """Do what was said; False to stop."""
    what, argument = pipe.recv()
    if what == "figures":
        with reader.sending:
            pipe.send((f"figures {argument}", worker.figures()))
    elif what == "reload":
        reader.reload(argument)
    elif what == "drop":
        reader.drop()
    return what != "stop"
