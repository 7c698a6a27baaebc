"""Several server processes on one port: started, watched, asked for their figures, and started again when they die.

The system shares connections out among them (SO_REUSEPORT). Each holds the tails; or they are fronts, and one process
beside them holds the tails. They are told what to do over pipes, and end when the process that started them does,
however that ends.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, TypeAlias

from compoff.device.breaker import Backoff
from compoff.errors import BackendError, CompoffError, WireError
from compoff.operations.figures import Figures, counted_only, merge
from compoff.operations.logs import set_up_logs
from compoff.operations.settings import Relay, Settings
from compoff.operations.worker import Worker
from compoff.wire.address import format_address, parse_address

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["Processes"]

_Role: TypeAlias = Callable[[Settings], Settings]
"""From what the server was told to what one of its processes is told."""

_logger = logging.getLogger("compoff.serve")
_FRONT_WORKERS = 4  # batches that a front has under way
_FRONT_WINDOW = 1024  # requests of one front that the process with the tails takes
_START_SECONDS = 120.0  # to load a large tail from a slow disk
_ANSWER_SECONDS = 2.0
_LOOK_SECONDS = 0.2
_STEADY_SECONDS = 60.0  # a process that has run so long is not part of a series of failures
_QUIET_SECONDS = 5.0  # after which a process is asked for its figures, wanted or not
_SILENT_SECONDS = 60.0  # a process that owes an answer for so long hangs
_BEHIND_SECONDS = 60.0  # for which former tails stay, for requests that a front has taken for them


class Processes:
    """A server made of several processes.

    Args:
        settings: How to run each.
        log: Format and level of their logs.
        stopping: Whether the server shall stop already: a start that takes long ends then.

    Raises:
        BackendError: The system cannot share a port.
        CompoffError: The settings cannot be served, or it shall stop.
    """

    def __init__(self, settings: Settings, log: tuple[str, str], stopping: Callable[[], bool] = lambda: False) -> None:
        """Start them all; return when they listen."""
        if not hasattr(socket, "SO_REUSEPORT"):
            raise BackendError("this system cannot share a port among processes; set processes: 1")
        self._settings = settings
        self._lock = threading.Lock()  # one conversation at a time: a page may be asked for while others are told
        self._sockets = [_reserve(settings.address)]
        self.address = _address(self._sockets[0])
        self._members: list[_Member] = []
        self._keepers: list[_Member] = []  # who devices do not speak to
        self._awaited: tuple[Settings, tuple[int, int]] | None = None  # what the keeper reads again, and which time
        self._behind: float | None = None  # when it shall let go of its former tails
        try:
            role: _Role = _same
            if settings.fronts:
                role = self._start_keeper(settings, log)
            # Fronts listen only when there is somebody to answer: who calls before finds nobody rather than silence.
            served = [keeper.wait_until_ready(stopping) for keeper in self._keepers]
            for number in range(settings.fronts or settings.processes):
                self._members.append(_Member(str(number), role, settings, self.address, log))
            served += [member.wait_until_ready(stopping) for member in self._members]
            self.served = served[0]
        except BaseException:
            self.stop()
            raise

    def _start_keeper(self, settings: Settings, log: tuple[str, str]) -> _Role:
        """Start the process that holds the tails; what the others have to be told to find it."""
        self._sockets.append(_reserve("127.0.0.1:0"))
        relay = Relay(_address(self._sockets[-1]), secrets.token_urlsafe(32))
        room = {"window": _FRONT_WINDOW, "max_pending": _FRONT_WINDOW * settings.fronts}

        def keeper(one: Settings) -> Settings:
            options = {**one.options, **room}
            return replace(one, tls=None, insecure=False, secret=relay.token, token_file=None, options=options)

        self._keepers.append(_Member("with the tails", keeper, settings, relay.address, log))
        return lambda one: replace(one, relay=relay, options={"workers": _FRONT_WORKERS, **one.options})

    @property
    def running(self) -> bool:
        """Whether it is worth going on: always, since those that die are started again."""
        return True

    def watch(self) -> None:
        """Start those again that have died or hang, and go on with a reload; to be called now and then."""
        with self._lock:
            for member in [*self._keepers, *self._members]:
                member.revive(self._settings)
            for keeper in self._keepers:
                self._go_on(keeper)

    def figures(self) -> Figures:
        """What all of them have counted, those that ran before them included.

        Of one that does not answer it is what it had counted last, and the server is not ready then: a sum that lost it
        and had it again would look like traffic that never was.
        """
        with self._lock:
            questions = [(member, member.question()) for member in self._members if member.listening]
            deadline = time.monotonic() + _ANSWER_SECONDS
            answers = [member.figures(number, deadline) for member, number in questions]
            parts = [part for member in self._members for part in member.counted]
        answered = [answer for answer in answers if answer is not None]
        whole = merge(parts, processes=len(parts))
        ready = len(answered) == len(self._members) and all(answer["ready"] for answer in answered)
        return {**whole, "processes": len(answered), "ready": ready}

    def reload(self, settings: Settings) -> None:
        """Have each take over tokens, certificates and tails.

        Fronts take new tails when the process that holds them has read them: who they welcome must find an answer.
        """
        with self._lock:
            for keeper in self._keepers:
                self._awaited = (settings, keeper.reload(settings, keep=True))
                self._behind = None  # what the fronts still use must not be dropped behind this reload
            if not self._keepers:
                self._settings = settings
                for member in self._members:
                    member.reload(settings)

    def _go_on(self, keeper: _Member) -> None:
        """Tell the fronts of tails that the process with the tails has read; let it drop the former ones later."""
        now = time.monotonic()
        if self._behind is not None and now >= self._behind:
            self._behind = None
            keeper.ask("drop")
        if self._awaited is None or (read := keeper.outcome(self._awaited[1])) is None:
            return
        settings, self._awaited = self._awaited[0], None
        self._settings = settings if read else replace(settings, tails=self._settings.tails)
        for member in self._members:
            member.reload(self._settings, tails=read)
        self._behind = now + _BEHIND_SECONDS

    def stop(self) -> None:
        """Have each send the answers in flight and end."""
        for members in (self._members, self._keepers):  # the tails last: fronts have answers to wait for
            with self._lock:
                for member in members:
                    member.ask("stop")
            for member in members:
                member.end(self._settings.options.get("drain_timeout", 5.0) + 5.0)
        for held in self._sockets:
            held.close()


class _Member:
    """One process, as the one that started it sees it."""

    def __init__(self, number: str, role: _Role, settings: Settings, address: str, log: tuple[str, str]) -> None:
        self._number = number
        self.role = role
        self._address = address
        self._log = log
        self._backoff = Backoff(0.5, 30.0)
        self._not_before = 0.0
        self._questions = 0
        self._dead = False
        self._starts = 0
        self._reloads = 0
        self._last: Figures | None = None  # as it has told them last
        self._past: list[Figures] = []  # of those that ran before it, added up
        self._start(settings)

    def _start(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (self.role(settings), self._address, theirs, self._log)
        name = f"compoff-serve-{self._number}"
        self._process: BaseProcess = context.Process(target=_run, args=arguments, name=name, daemon=True)
        self._process.start()
        theirs.close()
        self._began = time.monotonic()
        self._starts += 1
        self._asked: float | None = None  # since when it owes its figures
        self._told = self._began  # when it gave them last
        self._outcomes: dict[str, bool] = {}  # what became of each reload
        self.listening = False

    def wait_until_ready(self, stopping: Callable[[], bool] = lambda: False) -> list[str]:
        """What it serves, when it listens.

        Args:
            stopping: Whether not to wait any longer.

        Raises:
            CompoffError: It could not, or it is not waited for.
        """
        deadline, answer = time.monotonic() + _START_SECONDS, None
        while answer is None and self._process.is_alive() and time.monotonic() < deadline:
            if stopping():
                raise WireError("the server was stopped while it started")
            answer = self._receive("ready", time.monotonic() + _LOOK_SECONDS)
        answer = answer or self._receive("ready", 0.0)  # what it said before it ended
        if answer is None:
            raise WireError(f"server process {self._number} ended before it listened; its log says why")
        if isinstance(answer, str):
            raise WireError(answer)
        self.listening = True
        return answer

    def ask(self, what: str, argument: Any = None) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send((what, argument))

    def question(self) -> int:
        """Ask for the figures, unless it owes them still; the number tells which answer belongs to the question."""
        if self._asked is None:
            self._questions += 1
            self._asked = time.monotonic()
            self.ask("figures", self._questions)
        return self._questions

    def figures(self, number: int, deadline: float) -> Figures | None:
        return self._receive(f"figures {number}", deadline)

    @property
    def counted(self) -> list[Figures]:
        """What it has told last, and what those had counted that ran before it."""
        return self._past + ([] if self._last is None else [self._last])

    def reload(self, settings: Settings, *, tails: bool = True, keep: bool = False) -> tuple[int, int]:
        """Have it read again what may change; which time this is, for `outcome`."""
        self._reloads += 1
        self.ask("reload", (self._reloads, self.role(settings), tails, keep))
        return self._starts, self._reloads

    def outcome(self, which: tuple[int, int]) -> bool | None:
        """Whether it has taken over the tails; None while it is at it."""
        if which[0] != self._starts or self._dead:
            return False
        self._receive("", 0.0)
        return self._outcomes.pop(f"reloaded {which[1]}", None)

    def _receive(self, kind: str, deadline: float) -> Any:
        try:
            while self._pipe.poll(max(0.0, deadline - time.monotonic())):
                found, content = self._pipe.recv()
                if found.startswith("figures"):
                    self._asked, self._last, self._told = None, content, time.monotonic()
                elif found.startswith("reloaded"):
                    self._outcomes[found] = content
                if found == kind:
                    return content
        except (EOFError, OSError):
            pass
        return None

    def revive(self, settings: Settings) -> None:
        """Start it again where it has died, after a pause that grows while it keeps dying."""
        alive = self._process.is_alive()
        answer = self._receive("ready", 0.0)  # after that look: what it said before it ended is there then
        if isinstance(answer, str):
            _logger.error("server process %s cannot serve: %s", self._number, answer)
        if alive:
            self.listening = self.listening or isinstance(answer, list)
            if self.listening and time.monotonic() - self._told > _QUIET_SECONDS:
                self.question()  # also where nobody wants the figures: one that hangs shows only so
            if self._asked is not None and time.monotonic() - self._asked > _SILENT_SECONDS:
                _logger.error("server process %s has not answered for %g s; killing it", self._number, _SILENT_SECONDS)
                self._process.kill()
            return
        now = time.monotonic()
        if not self._dead:
            self._past = [counted_only(merge(self.counted, processes=1))] if self.counted else []
            self._last = None
            _logger.error("server process %s died (exit code %s)", self._number, self._process.exitcode)
            if now - self._began > _STEADY_SECONDS:
                self._backoff.reset()
            self._dead, self.listening = True, False
            self._not_before = now + self._backoff.next()
        if now >= self._not_before:
            self._pipe.close()
            self._process.close()
            self._start(settings)
            self._dead = False
            _logger.info("server process %s starts again", self._number)

    def end(self, seconds: float) -> None:
        self._process.join(seconds)
        if self._process.is_alive():
            _logger.error("server process %s does not end; killing it", self._number)
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _same(settings: Settings) -> Settings:
    return settings


def _address(held: socket.socket) -> str:
    host, port = held.getsockname()[:2]
    return format_address(host, port)


def _reserve(address: str) -> socket.socket:
    """A socket that holds the port without listening: the number stays ours while no process does."""
    host, port = parse_address(address)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if port:  # where others listen who share their port, too, it would be shared with them
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(target)
    except OSError as error:
        raise WireError(f"cannot listen on {address}: {error.strerror}; choose another port, or port 0") from error
    return holder


def _run(settings: Settings, address: str, pipe: Connection, log: tuple[str, str]) -> None:
    """What each process does: serve, and do what it is told, until it is told to stop or nobody is there to tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody; the one that started us decides
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
        pipe.send(("ready", worker.served))
        reader = _Reader(worker, pipe)
        while not told and worker.running:
            if wait([pipe], 0.2) and not _obey(worker, pipe, reader):
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
        while True:
            wanted = self._wanted.get()
            if wanted is None:
                self._worker.drop_former()
                continue
            number, settings, tails, keep = wanted
            try:
                done = self._worker.reload(settings, tails=tails, keep=keep)
            except Exception:  # whatever a tail raises while it is read: somebody waits for the answer
                _logger.exception("the reload failed")
                done = False
            with self.sending, contextlib.suppress(OSError):
                self._pipe.send((f"reloaded {number}", done))


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
