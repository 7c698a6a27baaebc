"""Several server processes on one port: started, watched, asked for their figures, and started again when they die.

The system shares connections out among them (SO_REUSEPORT). Each holds the tails; or they are fronts, and one process
beside them holds the tails. They are told what to do over pipes, and end when the process that started them does,
however that ends.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
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
from compoff.operations.figures import Figures, merge
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
_STEADY_SECONDS = 60.0  # a process that has run so long is not part of a series of failures


class Processes:
    """A server made of several processes.

    Args:
        settings: How to run each.
        log: Format and level of their logs.

    Raises:
        BackendError: The system cannot share a port.
        CompoffError: The settings cannot be served.
    """

    def __init__(self, settings: Settings, log: tuple[str, str]) -> None:
        """Start them all; return when they listen."""
        if not hasattr(socket, "SO_REUSEPORT"):
            raise BackendError("this system cannot share a port among processes; set processes: 1")
        self._settings = settings
        self._lock = threading.Lock()  # one conversation at a time: a page may be asked for while others are told
        self._sockets = [_reserve(settings.address)]
        self.address = _address(self._sockets[0])
        self._members: list[_Member] = []
        self._keepers: list[_Member] = []  # who devices do not speak to
        try:
            role: _Role = _same
            if settings.fronts:
                role = self._start_keeper(settings, log)
            # Fronts listen only when there is somebody to answer: who calls before finds nobody rather than silence.
            served = [keeper.wait_until_ready() for keeper in self._keepers]
            for number in range(settings.fronts or settings.processes):
                self._members.append(_Member(str(number), role, settings, self.address, log))
            served += [member.wait_until_ready() for member in self._members]
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
        """Start those again that have died; to be called now and then."""
        with self._lock:
            for member in [*self._keepers, *self._members]:
                member.revive(self._settings)

    def figures(self) -> Figures:
        """What all of them have counted; one that does not answer is left out, and the server is not ready then."""
        with self._lock:
            questions = [(member, member.question()) for member in self._members if member.listening]
            deadline = time.monotonic() + _ANSWER_SECONDS
            parts = [
                figures for member, number in questions if (figures := member.figures(number, deadline)) is not None
            ]
        return merge(parts, processes=len(self._members))

    def reload(self, settings: Settings) -> None:
        """Have each take over tokens, certificates and tails."""
        self._settings = settings
        with self._lock:
            for member in [*self._keepers, *self._members]:
                member.ask("reload", member.role(settings))

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
        self.listening = False

    def wait_until_ready(self) -> list[str]:
        """What it serves, when it listens.

        Raises:
            CompoffError: It could not.
        """
        answer = self._receive("ready", time.monotonic() + _START_SECONDS)
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
        """Ask for the figures; the number tells its answer from a late one to another question."""
        self._questions += 1
        self.ask("figures", self._questions)
        return self._questions

    def figures(self, number: int, deadline: float) -> Figures | None:
        return self._receive(f"figures {number}", deadline)

    def _receive(self, kind: str, deadline: float) -> Any:
        try:
            while self._pipe.poll(max(0.0, deadline - time.monotonic())):
                found, content = self._pipe.recv()
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
            return
        now = time.monotonic()
        if not self._dead:
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
        while not told and worker.running:
            if wait([pipe], 0.2) and not _obey(worker, pipe):
                break
    except (EOFError, OSError):
        pass  # whoever started us has gone
    finally:
        worker.stop()


def _obey(worker: Worker, pipe: Connection) -> bool:
    """Do what was said; False to stop."""
    what, argument = pipe.recv()
    if what == "figures":
        pipe.send((f"figures {argument}", worker.figures()))
    elif what == "reload":
        worker.reload(argument)
    return what != "stop"
