"""One process of a server, as the one that started it sees it: told, asked, and started again when it dies or hangs."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Container, Generator
from multiprocessing import resource_tracker
from typing import Any, TypeAlias

from compoff.device.breaker import Backoff
from compoff.errors import WireError
from compoff.operations.child import serve_as_told
from compoff.operations.figures import Figures, counted_only, merge, only
from compoff.operations.settings import Settings

__all__ = ["Member", "Role"]

Role: TypeAlias = Callable[[Settings], Settings]
"""From what the server was told to what one of its processes is told."""

_logger = logging.getLogger("compoff.serve")
_START_SECONDS = 120.0  # to load a large tail from a slow disk
_LOOK_SECONDS = 0.2
_STEADY_SECONDS = 60.0  # a process that has run so long is not part of a series of failures
_QUIET_SECONDS = 5.0  # after which a process is asked for its figures, wanted or not
_SILENT_SECONDS = 60.0  # a process that owes an answer for so long hangs


@contextlib.contextmanager
def _interrupts_wait() -> Generator[None]:
    """Hold SIGINT back; what is started meanwhile inherits that, and holds it back until it can ignore it.

    A terminal sends it to everybody, also to who has only just begun to read its modules.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # to start it lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Member:
    """One process, as the one that started it sees it.

    Args:
        number: Its name in logs.
        role: What it is told of the settings.
        settings: Of the server.
        address: Where it listens.
        log: Format and level of its logs.
    """

    def __init__(self, number: str, role: Role, settings: Settings, address: str, log: tuple[str, str]) -> None:
        """Start it."""
        self._number = number
        self.role = role
        self._address = address
        self._log = log
        self._backoff = Backoff(0.5, 30.0)
        self._not_before = 0.0
        self._questions = self._answered = 0
        self._dead = False
        self._starts = 0
        self._reloads = 0
        self._last: Figures | None = None  # as it has told them last
        self._past: list[Figures] = []  # of those that ran before it, added up
        self._start(settings)

    def _start(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with theirs:
            arguments = (self.role(settings), self._address, theirs, self._log)
            name = f"compoff-serve-{self._number}"
            process = context.Process(target=serve_as_told, args=arguments, name=name, daemon=True)
            try:
                with _interrupts_wait():
                    process.start()
            except BaseException:
                ours.close()
                raise
        self._pipe, self._process = ours, process
        self._began = time.monotonic()
        self._starts += 1
        self._asked: float | None = None  # since when it owes its figures
        self._told = self._began  # when it gave them last
        self._outcomes: dict[str, bool] = {}  # what became of each reload
        self._owed = 0  # reloads that it was told of and has not done
        self._killed = False
        self.listening = False
        self.exports: frozenset[str] = frozenset()

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
        return answer

    def ask(self, what: str, argument: Any = None) -> None:
        """Tell it something; one that has died hears nothing.

        Args:
            what: "figures", "reload", "drop" or "stop".
            argument: What belongs to it.
        """
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
        """The answer to a question.

        Args:
            number: Of the question.
            deadline: Until when to wait, by the monotonic clock.

        Returns:
            What it has counted; None without an answer by then.
        """
        if self._answered < number:  # else it was read beside something else
            self._receive(f"figures {number}", deadline)
        return self._last if self._answered >= number else None

    @property
    def owes_since(self) -> float | None:
        """Since when it owes its figures, by the monotonic clock; None where it does not."""
        return self._asked

    @property
    def counted(self) -> list[Figures]:
        """What it has told last, and what those had counted that ran before it."""
        return self._past + ([] if self._last is None else [self._last])

    @property
    def serves(self) -> frozenset[str]:
        """The artifacts of which it has told figures last."""
        return frozenset() if self._last is None else frozenset(tail["artifact"] for tail in self._last["tails"])

    def forget(self, others: Container[str]) -> None:
        """Count for good without the tails of other artifacts: served again, they begin at nothing, as everywhere."""
        self._past = [only(past, others) for past in self._past]

    def reload(self, settings: Settings, *, tails: bool = True, keep: bool = False) -> tuple[int, int]:
        """Have it read again what may change; which time this is, for `outcome`."""
        self._reloads += 1
        self._owed += 1
        self._outcomes.clear()  # of those before; whoever waits, waits for the last
        self.ask("reload", (self._reloads, self.role(settings), tails, keep))
        return self._starts, self._reloads

    @property
    def settled(self) -> bool:
        """Whether it listens and has done all that it was told: `exports` are what it serves from now on."""
        return self.listening and not self._owed

    @property
    def began(self) -> float:
        """When it was started, by the monotonic clock."""
        return self._began

    def outcome(self, which: tuple[int, int]) -> bool | None:
        """Whether it has taken over the tails; None while it is at it."""
        if which[0] != self._starts or self._dead:
            return False
        self._receive("", 0.0)
        return self._outcomes.get(f"reloaded {which[1]}")

    def _receive(self, kind: str, deadline: float) -> Any:
        try:
            while self._pipe.poll(max(0.0, deadline - time.monotonic())):
                found, content = self._pipe.recv()
                if found.startswith("figures"):
                    self._asked, self._last, self._told = None, content, time.monotonic()
                    self._answered = int(found.split()[1])
                elif found.startswith("reloaded"):
                    self._outcomes[found] = content
                    self._owed -= 1
                elif found == "exports":
                    self.exports = content
                elif found == "ready":
                    self.listening = isinstance(content, list)  # whoever reads it; the other form is why it cannot
                if found == kind:
                    return content
        except (EOFError, OSError):
            pass
        return None

    def revive(self, settings: Settings) -> None:
        """Start it again where it has died, after a pause that grows while it keeps dying."""
        alive = not self._dead and self._process.is_alive()
        answer = self._receive("ready", 0.0)  # after that look: what it said before it ended is there then
        if isinstance(answer, str):
            _logger.error("server process %s cannot serve: %s", self._number, answer)
        if alive:
            if self.listening and time.monotonic() - self._told > _QUIET_SECONDS:
                self.question()  # also where nobody wants the figures: one that hangs shows only so
            if self._asked is not None and time.monotonic() - self._asked > _SILENT_SECONDS:
                self._kill(f"has not answered for {_SILENT_SECONDS:g} s")
            if not self.listening and time.monotonic() - self._began > _START_SECONDS:
                self._kill(f"does not listen after {_START_SECONDS:g} s")
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
            self._start_again(settings)

    def _kill(self, reason: str) -> None:
        if not self._killed:  # one that waits for a disk may take its time to end
            _logger.error("server process %s %s; killing it", self._number, reason)
            self._killed = True
        self._process.kill()

    def _start_again(self, settings: Settings) -> None:
        self._pipe.close()  # before, for what it holds may be what the next one lacks
        self._process.close()
        try:
            self._start(settings)
        except OSError as error:  # too many open files or processes, or too little memory, and perhaps not for long
            _logger.error("server process %s cannot be started: %s", self._number, error.strerror or error)
            self._not_before = time.monotonic() + self._backoff.next()
            return
        self._dead = False
        _logger.info("server process %s starts again", self._number)

    def end(self, seconds: float) -> None:
        """Wait until it has ended, and kill it if it does not, or has not begun to listen: it owes nobody an answer.

        Args:
            seconds: How long to wait.
        """
        if not self._dead:  # and perhaps closed
            self._receive("ready", 0.0)
            if not self.listening:
                self._process.kill()  # it may load a large tail for minutes, and hears nothing before the end of that
            self._process.join(seconds)
            if self._process.is_alive():
                _logger.error("server process %s does not end; killing it", self._number)
                self._process.kill()
                self._process.join()
        self._pipe.close()
