"""Several server processes on one port: started, watched, asked for their figures, and started again when they die.

The system shares connections out among them (SO_REUSEPORT). Each holds the tails; or they are fronts, and one process
beside them holds the tails. They are told what to do over pipes, and end when the process that started them does,
however that ends.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from compoff.device.breaker import Backoff
from compoff.errors import BackendError, WireError
from compoff.operations.figures import Figures, behind, merge
from compoff.operations.member import Member, Role
from compoff.operations.settings import Relay, Settings
from compoff.wire.address import format_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Processes"]

_logger = logging.getLogger("compoff.serve")
_FRONT_WORKERS = 4  # batches that a front has under way
_FRONT_WINDOW = 1024  # requests of one front that the process with the tails takes
_ANSWER_SECONDS = 2.0  # from the question on: who owes an answer for longer is not waited for again
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks whether answers are there
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
            instead = "leave fronts out" if settings.fronts else "set processes: 1"
            raise BackendError(f"this system cannot share a port among processes; {instead}")
        self._settings = settings
        self._lock = threading.Lock()  # one conversation at a time, and no waiting in it
        self._sockets = [_reserve(settings.address)]
        self.address = _address(self._sockets[0])
        self._members: list[Member] = []
        self._keepers: list[Member] = []  # who devices do not speak to
        # What is read again, and by whom, which time; fronts come after them.
        self._awaited: tuple[Settings, list[tuple[Member, tuple[int, int]]]] | None = None
        self._behind: float | None = None  # when the keeper shall let go of its former tails
        self._apart = False  # some serve other exports than others
        self._backoff = Backoff(0.5, 30.0)
        self._not_before = 0.0
        try:
            role: Role = _same
            if settings.fronts:
                role = self._start_keeper(settings, log)
            # Fronts listen only when there is somebody to answer: who calls before finds nobody rather than silence.
            served = [keeper.wait_until_ready(stopping) for keeper in self._keepers]
            for number in range(settings.fronts or settings.processes):
                self._members.append(Member(str(number), role, settings, self.address, log))
            served += [member.wait_until_ready(stopping) for member in self._members]
            self.served = served[0]
            self._since = time.monotonic()  # all of them listen
        except BaseException:
            self.stop()
            raise

    def _start_keeper(self, settings: Settings, log: tuple[str, str]) -> Role:
        """Start the process that holds the tails; what the others have to be told to find it."""
        self._sockets.append(_reserve("127.0.0.1:0"))
        relay = Relay(_address(self._sockets[-1]), secrets.token_urlsafe(32))
        room = {"window": _FRONT_WINDOW, "max_pending": _FRONT_WINDOW * settings.fronts}

        def keeper(one: Settings) -> Settings:
            options = {**one.options, **room}
            return replace(one, tls=None, insecure=False, secret=relay.token, token_file=None, options=options)

        self._keepers.append(Member("with the tails", keeper, settings, relay.address, log))
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
            self._go_on()
            self._come_together()

    def figures(self) -> Figures:
        """What all of them have counted, those that ran before them included.

        Of one that does not answer it is what it had counted last, and the server is not ready then: a sum that lost it
        and had it again would look like traffic that never was. Nor is it ready while the process with the tails does
        not answer, or while some serve other exports than others. A tail that none of them serves any more is counted
        no more.
        """
        everyone = [*self._members, *self._keepers]
        with self._lock:
            questions = [(member, member.question()) for member in everyone if member.listening]
        pause = _SHORTEST_PAUSE
        while True:
            with self._lock:
                answers = {member: member.figures(number, 0.0) for member, number in questions}
                if not any(_is_awaited(member) for member, answer in answers.items() if answer is None):
                    parts = [self._counted(members) for members in (self._members, self._keepers)]
                    apart = self._apart
                    break
            time.sleep(pause)  # outside the lock: whoever dies is started again meanwhile, and a stop is a stop
            pause = min(2 * pause, _LONGEST_PAUSE)
        ready = not apart and all((answer := answers.get(one)) is not None and answer["ready"] for one in everyone)
        answered = sum(answers.get(member) is not None for member in self._members)
        whole = behind(*parts) if self._keepers else parts[0]
        return {**whole, "uptime": time.monotonic() - self._since, "processes": answered, "ready": ready}

    @staticmethod
    def _counted(members: Sequence[Member]) -> Figures:
        """What some of them have counted, those that ran before them included."""
        served = frozenset[str]().union(*(member.serves for member in members))
        if served:  # else all of them have just died
            for member in members:
                member.forget(served)
        counted = [part for member in members for part in member.counted]
        return merge(counted, processes=len(counted))

    def reload(self, settings: Settings) -> None:
        """Have each take over tokens, certificates and tails.

        Fronts take new tails when the process that holds them has read them: who they welcome must find an answer.
        """
        with self._lock:
            self._read_again(settings)

    def _read_again(self, settings: Settings) -> None:
        first = self._keepers or self._members
        self._awaited = settings, [(one, one.reload(settings, keep=bool(self._keepers))) for one in first]
        self._behind = None  # what the fronts still use must not be dropped behind this reload
        if not self._keepers:  # the tails follow when somebody has read them: who is started again shall find some
            self._settings = replace(settings, tails=self._settings.tails)

    def _go_on(self) -> None:
        """Take over tails that were read; tell the fronts of them, and let the keeper drop the former ones later."""
        now = time.monotonic()
        if self._behind is not None and now >= self._behind and not self._apart:
            self._behind = None
            for keeper in self._keepers:
                keeper.ask("drop")
        if self._awaited is None:
            return
        settings, first = self._awaited
        outcomes = [member.outcome(which) for member, which in first]
        if None in outcomes:
            return
        self._awaited, read = None, any(outcomes)
        self._settings = settings if read else replace(settings, tails=self._settings.tails)
        if self._keepers:
            for member in self._members:
                member.reload(self._settings, tails=read)
            self._behind = now + _BEHIND_SECONDS

    def _come_together(self) -> None:
        """Have all read the tails again where one that was started again, or one alone, found others than the rest.

        Folders may hold another export since the last reload. Heads would be answered by chance, and through fronts not
        at all.
        """
        everyone = [member for member in (*self._keepers, *self._members) if member.listening]
        if self._awaited is not None or not all(member.settled for member in everyone):
            return
        if len({member.exports for member in everyone}) < 2:
            self._apart = False
            self._backoff.reset()
            return
        again, self._apart = self._apart, True
        now = time.monotonic()
        if again and now < self._not_before:
            return
        self._not_before = now + self._backoff.next()
        _logger.warning("server processes serve different tails; all of them read their tails again")
        if not again and self._keepers and max(everyone, key=lambda one: one.began) in self._keepers:
            for member in self._members:  # the keeper has only just read them: fronts need not wait for a second time
                member.reload(self._settings)
        else:
            self._read_again(self._settings)

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


def _is_awaited(member: Member) -> bool:
    """Whether the figures that it owes may still come in time."""
    since = member.owes_since
    return member.listening and since is not None and time.monotonic() < since + _ANSWER_SECONDS


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
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a host's name
        reason = getattr(error, "strerror", None) or error
        raise WireError(f"cannot listen on {address}: {reason}; choose another port, or port 0") from error
    return holder
