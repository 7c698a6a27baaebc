"""The order in which several server processes start; what they do then is in test_run.py."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compoff.device.breaker import Backoff
from compoff.errors import BackendError, WireError
from compoff.operations import processes
from compoff.operations.figures import counted_only, only
from compoff.operations.processes import Processes
from compoff.operations.settings import Settings, TailPlace

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("counts", "order"),
    [
        (
            {"fronts": 2},
            ["start with the tails", "with the tails is ready", "start 0", "start 1", "0 is ready", "1 is ready"],
        ),
        ({"processes": 2}, ["start 0", "start 1", "0 is ready", "1 is ready"]),
    ],
)
def test_nobody_listens_before_somebody_can_answer(
    counts: dict[str, Any], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Member:
        def __init__(self, number: str, *_: Any) -> None:
            self.number = number
            seen.append(f"start {number}")

        def wait_until_ready(self, stopping: Callable[[], bool]) -> list[str]:
            assert not stopping()
            seen.append(f"{self.number} is ready")
            return [self.number]

        def ask(self, what: str) -> None:
            del what

        def end(self, seconds: float) -> None:
            del seconds

    monkeypatch.setattr(processes, "Member", Member)
    settings = Settings((TailPlace(Path("export")),), "127.0.0.1:0", **counts)
    server = Processes(settings, ("text", "info"))
    server.stop()
    assert seen == order
    assert server.served == [order[1].removesuffix(" is ready")] if "fronts" in counts else ["0"]


def test_a_port_that_others_share_among_themselves_is_not_shared_with_them() -> None:
    with socket.socket() as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        address = f"127.0.0.1:{theirs.getsockname()[1]}"
        with pytest.raises(WireError, match=f"cannot listen on {address}: Address already in use"):
            Processes(Settings((TailPlace(Path("export")),), address, processes=2), ("text", "info"))


@pytest.mark.parametrize(
    ("counts", "advice"), [({"processes": 2}, "set processes: 1"), ({"fronts": 2}, "leave fronts out")]
)
def test_a_system_that_cannot_share_a_port_says_what_to_do(
    counts: dict[str, Any], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(BackendError, match=f"cannot share a port among processes; {advice}"):
        Processes(Settings((TailPlace(Path("export")),), "127.0.0.1:0", **counts), ("text", "info"))


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
@pytest.mark.parametrize("counts", [{"processes": 2}, {"fronts": 1}])
def test_what_cannot_be_a_hosts_name_is_one_line(host: str, counts: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=f"cannot listen on {host}:7878: .*label"):
        Processes(Settings((TailPlace(Path("export")),), f"{host}:7878", **counts), ("text", "info"))


def test_a_start_ends_when_the_server_shall_stop(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(WireError, match="was stopped while it started"):
        Processes(
            Settings((TailPlace(tmp_path),), "127.0.0.1:0", processes=2), ("text", "error"), stopping=lambda: True
        )
    assert time.monotonic() - began < 20


def figures(requests: int, **fields: Any) -> Any:
    counts = {"requests": requests, "replies": requests, "errors": {}, "bytes_in": 0, "bytes_out": 0, "waiting": 3}
    rest = {"running": 0, "busy_seconds": 0.0, "latency_counts": [], "latency_seconds": 0.0, "batch_sizes": {}}
    tail = {"artifact": "a", "model": "Net", "split": "input", **counts, **rest, "live": None}
    held = {"connections": 2, "accepted": 2, "refused": 0, "pending": 1, "held_bytes": 0, "unread_bytes": 0}
    return {"uptime": 1.0, "processes": 1, "ready": True, **held, "tails": [tail], **fields}


class Counting:
    """A process that answers, or does not, and what it serves."""

    def __init__(self, answer: Any, last: Any = None, past: Any = (), began: float = 0.0) -> None:
        self.answer, self.counted, self.began = answer, [*past, last], began
        self.listening = self.settled = True
        self.exports = frozenset({"old"})
        self.told: list[tuple[Settings, bool]] = []
        self.read: bool | None = None
        self.owes_since: float | None = None
        self.dropped = 0

    @property
    def serves(self) -> frozenset[str]:
        last = self.counted[-1]
        return frozenset() if last is None else frozenset(tail["artifact"] for tail in last["tails"])

    def forget(self, others: Any) -> None:
        *past, last = self.counted
        self.counted = [*(only(one, others) for one in past), last]

    def question(self) -> int:
        return 1

    def figures(self, number: int, deadline: float) -> Any:
        return self.answer

    def revive(self, settings: Settings) -> None:
        del settings

    def reload(self, settings: Settings, *, tails: bool = True, keep: bool = False) -> tuple[int, int]:
        del keep
        self.told.append((settings, tails))
        return 1, 1

    def outcome(self, which: tuple[int, int]) -> bool | None:
        del which
        return self.read

    def ask(self, what: str) -> None:
        assert what == "drop"
        self.dropped += 1


def group(members: list[Counting], keepers: list[Counting]) -> Any:
    server: Any = object.__new__(Processes)
    server._lock, server._members, server._keepers = threading.Lock(), members, keepers
    server._settings = Settings((TailPlace(Path("export")),))
    server._awaited = server._behind = None
    server._apart, server._not_before, server._backoff = False, 0.0, Backoff(0.5, 30.0, lambda: 1.0)
    server._since = time.monotonic() - 50.0
    return server


def test_a_server_is_ready_when_the_process_with_the_tails_answers_too() -> None:
    keeper = Counting(figures(0), figures(0))
    server = group([Counting(figures(5), figures(5))], [keeper])
    found = server.figures()
    assert (found["ready"], found["processes"], found["tails"][0]["requests"]) == (True, 1, 5), "counted once"
    keeper.answer = None  # it hangs
    assert server.figures()["ready"] is False
    keeper.answer, keeper.listening = figures(0), False  # it has died, and is started again
    assert server.figures()["ready"] is False


@pytest.mark.parametrize("fronts", [False, True])
def test_one_that_finds_another_export_when_it_starts_again_has_the_others_read_theirs(
    fronts: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(processes.time, "monotonic", lambda: now)
    first, second, other = (Counting(figures(1), figures(1)) for _ in range(3))
    server = group([first, second], [other] if fronts else [])
    server.watch()
    assert server.figures()["ready"]
    again = other if fronts else second
    again.exports, again.began = frozenset({"new"}), 7.0
    server.watch()
    assert "server processes serve different tails" in caplog.text
    assert not server.figures()["ready"], "heads would be answered by chance"
    assert [len(one.told) for one in (first, second, other)] == [1, 1, 0], "the process with the tails has just read"
    # It may fail, or the folder change once more: then all read again, after pauses that grow.
    first.read = second.read = other.read = False
    server.watch()
    assert len(first.told) == 1
    now += 0.6
    server.watch()
    server.watch()
    assert [len(one.told) for one in (first, second, other)] == ([2, 2, 1] if fronts else [2, 2, 0])
    assert not server.figures()["ready"]
    first.exports = second.exports = frozenset({"new"})
    server.watch()
    assert server.figures()["ready"]
    now += 100.0
    server.watch()
    assert len(first.told) == 2


def test_tails_that_nobody_could_read_are_not_what_one_starts_again_with() -> None:
    first, second = (Counting(figures(1), figures(1)) for _ in range(2))
    server = group([first, second], [])
    fresh = Settings((TailPlace(Path("damaged")),), token_file=Path("tokens"))
    server.reload(fresh)
    assert server._settings.token_file == Path("tokens")
    first.read = False
    server.watch()
    assert server._awaited is not None
    second.read = False
    server.watch()
    assert server._settings.tails == (TailPlace(Path("export")),)
    server.reload(fresh)
    second.read = True
    server.watch()
    assert server._settings == fresh


def test_while_some_still_read_it_is_no_matter_that_they_serve_others_than_the_rest() -> None:
    quick, slow = (Counting(figures(1), figures(1)) for _ in range(2))
    server = group([quick, slow], [])
    server.reload(server._settings)
    quick.exports, quick.read = frozenset({"new"}), True
    server.watch()
    assert [len(one.told) for one in (quick, slow)] == [1, 1]
    slow.read, slow.settled = True, False
    server.watch()
    assert [len(one.told) for one in (quick, slow)] == [1, 1]


def test_what_fronts_may_still_use_is_not_dropped_while_tails_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(processes.time, "monotonic", lambda: now)
    front, keeper = (Counting(figures(1), figures(1)) for _ in range(2))
    server = group([front], [keeper])
    server.reload(server._settings)
    keeper.read = True
    server.watch()
    server.reload(server._settings)
    keeper.read, now = None, now + 1000.0
    server.watch()
    assert keeper.dropped == 0
    keeper.read = True
    server.watch()
    assert keeper.dropped == 0, "fronts have only just been told"
    now += 1000.0
    server.watch()
    server.watch()
    assert keeper.dropped == 1


def test_one_that_misses_its_turn_does_not_take_its_counts_out_of_the_sum() -> None:
    server = group(
        [Counting(figures(150), figures(150)), Counting(None, figures(100), [counted_only(figures(50))])], []
    )
    found = server.figures()
    assert (found["tails"][0]["requests"], found["processes"], found["ready"]) == (300, 1, False)
    assert (found["connections"], found["pending"], found["tails"][0]["waiting"]) == (4, 2, 6)


def test_a_tail_that_is_served_no_more_is_counted_no_more() -> None:
    one = Counting(figures(150), figures(150))
    two = Counting(figures(150), figures(150), [counted_only(figures(300))])
    server = group([one, two], [])
    assert server.figures()["tails"][0]["requests"] == 600
    other = {**figures(5), "tails": [{**figures(5)["tails"][0], "artifact": "b"}]}
    two.answer = two.counted[-1] = other  # first one has read its tails again, then the other
    assert [(tail["artifact"], tail["requests"]) for tail in server.figures()["tails"]] == [("a", 450), ("b", 5)]
    one.answer = one.counted[-1] = other
    assert [(tail["artifact"], tail["requests"]) for tail in server.figures()["tails"]] == [("b", 10)]
    one.answer = one.counted[-1] = figures(7)
    two.answer = two.counted[-1] = figures(0)
    assert [tail["requests"] for tail in server.figures()["tails"]] == [7], "from nothing, as a counter that was reset"


def test_a_server_is_as_old_as_it_is_whoever_of_it_has_died() -> None:
    server = group(
        [Counting(figures(1, uptime=3.0), figures(1, uptime=3.0), [counted_only(figures(1, uptime=9.0))])], []
    )
    assert server.figures()["uptime"] == pytest.approx(50.0, abs=5.0)
    assert counted_only(figures(1, uptime=9.0))["uptime"] == 0.0


def test_how_busy_a_tail_behind_fronts_is_the_process_with_the_tails_knows() -> None:
    def busy(seconds: float, waiting: int, running: int, **sizes: int) -> Any:
        made = figures(10)
        counts = {"waiting": waiting, "running": running, "batch_sizes": {name[1:]: n for name, n in sizes.items()}}
        made["tails"][0] |= {"busy_seconds": seconds, **counts}
        return made

    fronts = [Counting(busy(6.0, 1, 4, _1=10), busy(6.0, 1, 4, _1=10)) for _ in range(2)]
    keeper = Counting(busy(4.0, 2, 3, _5=4), busy(4.0, 2, 3, _5=4))
    [tail] = group(fronts, [keeper]).figures()["tails"]
    assert (tail["requests"], tail["busy_seconds"], tail["batch_sizes"]) == (20, 4.0, {"5": 4})
    assert (tail["waiting"], tail["running"]) == (4, 3)


def test_nobody_waits_for_a_look_at_the_figures_and_one_that_hangs_is_waited_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_ANSWER_SECONDS", 60.0)
    hanging = Counting(None, figures(3))
    hanging.owes_since = began = time.monotonic()
    server = group([hanging], [])
    found: list[Any] = []
    look = threading.Thread(target=lambda: found.append(server.figures()))
    look.start()
    for _ in range(20):
        server.watch()
        time.sleep(0.01)
    server.reload(server._settings)
    assert time.monotonic() - began < 30, "they waited for the look"
    assert look.is_alive()
    monkeypatch.setattr(processes, "_ANSWER_SECONDS", 0.1)
    look.join(30)
    assert (found[0]["ready"], found[0]["tails"][0]["requests"]) == (False, 3)
    monkeypatch.setattr(processes, "_ANSWER_SECONDS", 60.0)
    hanging.owes_since = time.monotonic() - 60.0
    began = time.monotonic()
    assert server.figures()["ready"] is False
    assert time.monotonic() - began < 30, "it has had its time"
    hanging.owes_since = time.monotonic()
    hanging.listening = False  # it has died meanwhile
    assert server.figures()["ready"] is False
    assert time.monotonic() - began < 50
