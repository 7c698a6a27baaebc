"""One process of a server as the one that started it sees it: that it dies, hangs, reloads, and what is told of it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from compoff.artifact import write_folder
from compoff.device.breaker import Backoff
from compoff.operations import member
from compoff.operations.member import Member
from compoff.operations.settings import Relay, Settings, TailPlace
from tests.small_artifacts import MANIFEST, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def test_a_process_that_cannot_serve_when_it_starts_again_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def front(settings: Settings) -> Settings:  # needs no torch, so it starts quickly
        return replace(settings, relay=Relay("127.0.0.1:1", "token" * 8))

    settings = Settings((TailPlace(tmp_path / "gone"),), "127.0.0.1:0")
    caplog.set_level(logging.INFO, "compoff.serve")
    started = Member("0", front, settings, "127.0.0.1:0", ("text", "info"))
    try:
        deadline = time.monotonic() + 60
        while "died" not in caplog.text and time.monotonic() < deadline:
            started.revive(settings)
            time.sleep(0.05)
    finally:
        started.end(10.0)
    assert not started.listening
    (told,) = [record.getMessage() for record in caplog.records if "cannot serve" in record.getMessage()]
    assert told.startswith(f"server process 0 cannot serve: '{tmp_path / 'gone'}' is not a folder")


def within(seconds: float, condition: Callable[[], object]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def die_and_start_again(front: Any) -> None:
    front._process.kill()
    front._process.join()
    front.revive(front.settings)
    front._not_before = 0.0
    front.revive(front.settings)


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Member]:
    """A front, which needs no torch and so starts quickly; whoever holds its tails is not there."""
    write_folder(tmp_path / "tail", replace(MANIFEST, kind="tail", factory=""), TABLES, {})
    settings = Settings((TailPlace(tmp_path / "tail"),), "127.0.0.1:0")

    def role(settings: Settings) -> Settings:
        return replace(settings, relay=Relay("127.0.0.1:1", "token" * 8))

    started = Member("0", role, settings, "127.0.0.1:0", ("text", "warning"))
    started.settings = settings  # type: ignore[attr-defined]
    try:
        started.wait_until_ready()
        yield started
    finally:
        started._process.kill()
        started.end(10.0)


def test_a_process_that_hangs_is_not_asked_again_and_again_and_started_anew(
    front: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert front.figures(front.question(), time.monotonic() + 60)["ready"]
    # An answer that came too late is one all the same: the next question is asked, and nobody is killed.
    late = front.question()
    within(60, lambda: front._pipe.poll(0))
    front.revive(front.settings)
    deadline = time.monotonic() + 30
    assert front.figures(late, deadline) is not None
    assert time.monotonic() < deadline, "it is there, and not waited for"
    assert front.question() == late + 1
    assert front.figures(late + 1, time.monotonic() + 60) is not None
    first = front._process.pid
    os.kill(first, signal.SIGSTOP)
    asked = {front.question() for _ in range(2000)}  # far more than its pipe holds
    assert len(asked) == 1
    assert front.figures(*asked, time.monotonic()) is None
    front.revive(front.settings)
    assert front._process.pid == first
    monkeypatch.setattr(member, "_SILENT_SECONDS", 0.0)
    deadline = time.monotonic() + 60
    while front._process.pid == first and time.monotonic() < deadline:
        front.revive(front.settings)
        time.sleep(0.05)
    assert "server process 0 has not answered for 0 s; killing it" in caplog.text
    monkeypatch.setattr(member, "_SILENT_SECONDS", 60.0)
    front.wait_until_ready()
    assert front.figures(front.question(), time.monotonic() + 60) is not None
    assert len(front.counted) == 2, "what the first one had counted stays in the sum"


def test_one_that_cannot_be_started_again_is_tried_later(
    front: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = SpawnProcess.start, 0

    def start(process: SpawnProcess) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        real(process)

    monkeypatch.setattr(SpawnProcess, "start", start)
    front._backoff = Backoff(1.0, 4.0, lambda: 1.0)
    front._process.kill()
    front._process.join()
    front.revive(front.settings)
    for number, pause in enumerate((2.0, 4.0, 4.0), start=1):
        front.revive(front.settings)
        assert tries == number - 1, "not at once"
        now, front._not_before = time.monotonic(), 0.0
        front.revive(front.settings)
        assert (tries, front.listening, front._not_before >= now + pause) == (number, False, True)
    assert caplog.text.count("server process 0 cannot be started: Too many open files") == 3
    front.ask("stop")
    front.end(1.0)  # the server may be stopped meanwhile
    front._not_before = 0.0
    front.revive(front.settings)
    front.wait_until_ready()
    assert front.figures(front.question(), time.monotonic() + 60) is not None


def test_one_that_hangs_before_it_listens_is_started_anew(
    front: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_and_start_again(front)
    hanging = front._process.pid
    os.kill(hanging, signal.SIGSTOP)
    front.revive(front.settings)
    assert "killing it" not in caplog.text
    monkeypatch.setattr(member, "_START_SECONDS", 0.0)
    front.revive(front.settings)
    front.revive(front.settings)
    assert caplog.text.count("server process 0 does not listen after 0 s; killing it") == 1
    monkeypatch.setattr(member, "_START_SECONDS", 120.0)
    front._process.join()
    front.revive(front.settings)
    front._not_before = 0.0
    front.revive(front.settings)
    assert front._process.pid != hanging
    assert front.wait_until_ready()
    monkeypatch.setattr(member, "_START_SECONDS", 0.0)
    front.revive(front.settings)
    assert caplog.text.count("killing it") == 1, "one that listens may go on"


def test_an_interrupt_while_one_starts_reaches_only_the_one_that_started_it(
    front: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SpawnProcess.start
    heard: list[int] = []

    def start(process: SpawnProcess) -> None:
        real(process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)  # before it has read anything
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SpawnProcess, "start", start)
    front._process.kill()
    front._process.join()
    front.revive(front.settings)
    front._not_before = 0.0
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        front.revive(front.settings)
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert front.wait_until_ready()
    status = Path(f"/proc/{front._process.pid}/status")
    if status.exists():
        masks = dict(line.split(":") for line in status.read_text().splitlines())
        assert [bool(int(masks[name], 16) & 1 << signal.SIGINT - 1) for name in ("SigBlk", "SigIgn")] == [False, True]
    assert "KeyboardInterrupt" not in capfd.readouterr().err


def test_one_that_does_not_listen_yet_is_not_waited_for_at_the_end(
    front: Any, caplog: pytest.LogCaptureFixture
) -> None:
    die_and_start_again(front)
    os.kill(front._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    front.ask("stop")
    front.end(30.0)
    assert time.monotonic() - began < 20
    assert "does not end" not in caplog.text


def test_a_reload_says_whether_the_tails_were_read(front: Any, tmp_path: Path) -> None:
    def read(settings: Settings) -> bool:
        which = front.reload(settings)
        deadline = time.monotonic() + 60
        while (found := front.outcome(which)) is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert found is not None
        return found

    asked = front.question()
    front.reload(front.settings)
    assert front.question() == asked, "the same, for it is not answered yet"
    assert read(front.settings)
    before = front.exports
    assert before == {MANIFEST.artifact_id}
    assert not read(replace(front.settings, tails=(TailPlace(tmp_path / "gone"),)))
    assert (front.settled, front.exports) == (True, before)
    other = replace(MANIFEST, kind="tail", factory="", artifact_id="f" * 64)
    write_folder(tmp_path / "other", other, TABLES, {})
    which = front.reload(replace(front.settings, tails=(TailPlace(tmp_path / "other"),)))
    assert not front.settled, "what it serves is not known before it says so"
    within(60, lambda: front.outcome(which))
    assert (front.settled, front.exports) == (True, {"f" * 64})
    front._process.kill()
    front._process.join()
    front.revive(front.settings)
    assert front.outcome((front._starts, 99)) is False
