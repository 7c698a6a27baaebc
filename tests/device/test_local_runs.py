"""The whole model in a thread of its own: one at a time, let go of with its owner, and no process waits for it long."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from compoff.device.calls import Call
from compoff.device.local_runs import LocalRuns
from compoff.device.timing import Estimate
from compoff.wire.replies import FULL
from tests.device.stand_in import StandIn
from tests.edge.peers import eventually


def call(*inputs: Any) -> Call:
    return Call(StandIn(), 0, inputs, {}, None, None, None, 10.0, FULL)  # type: ignore[arg-type]


def test_one_after_another_and_what_a_model_raises_reaches_who_waits() -> None:
    seconds = Estimate()
    runs = LocalRuns([lambda number: 6 // number], seconds)
    answers = [runs.submit(call(number), hurry=False) for number in (1, 0, 3)]
    assert answers[0].result(30) == 6
    with pytest.raises(ZeroDivisionError):
        answers[1].result(30)
    assert answers[2].result(30) == 2
    assert seconds.mean is not None
    runs.close()
    with pytest.raises(RuntimeError, match="closed"):
        runs.submit(call(1), hurry=False)


def test_a_model_that_raises_where_nobody_may_hear_of_it_is_told_once_until_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = LocalRuns([lambda number: 6 // number], Estimate())
    for numbers, hurry, count in (((0, 0), False, 0), ((0, 0, 0), True, 1), ((2, 0, 0), True, 2)):
        for run in [runs.submit(call(number), hurry=hurry) for number in numbers]:
            run.exception(30)
        assert len(caplog.records) == count
    assert {(record.name, record.levelname) for record in caplog.records} == {("compoff.connect", "WARNING")}
    assert "the whole model on this device raises, and cannot stand in: ZeroDivisionError" in caplog.text
    runs.close()


def test_closed_it_cancels_what_waits() -> None:
    began, freed = threading.Event(), threading.Event()

    def model() -> bool:
        began.set()
        return freed.wait(30)

    runs = LocalRuns([model], Estimate())
    first, second = runs.submit(call(), hurry=False), runs.submit(call(), hurry=False)
    assert began.wait(30)
    runs.close()
    with pytest.raises(CancelledError):
        second.result(30)
    freed.set()
    assert first.result(30)


def test_behind_a_run_that_hangs_nothing_gathers_that_nobody_waits_for() -> None:
    class Big:
        pass

    began, freed = threading.Event(), threading.Event()

    def model(given: Any) -> Any:
        began.set()
        return given if freed.wait(30) else None

    runs = LocalRuns([model], Estimate())
    hanging = runs.submit(call(0), hurry=False)
    assert began.wait(30)
    kept, waiting = list[Any](), [runs.submit(call(number), hurry=False) for number in (1, 2)]
    for _ in range(100):
        given = Big()
        kept.append(weakref.ref(given))
        runs.submit(call(given), hurry=False).cancel()
        del given
    gc.collect()
    assert sum(one() is not None for one in kept) < 10
    freed.set()
    assert [answer.result(30) for answer in (hanging, *waiting)] == [0, 1, 2]
    runs.close()


def test_one_that_nobody_holds_takes_its_thread_with_it() -> None:
    before = set(threading.enumerate())
    runs = LocalRuns([lambda: 1], Estimate())
    assert runs.submit(call(), hurry=False).result(30) == 1
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(runs)
    del runs
    gc.collect()
    assert gone() is None
    eventually(lambda: not thread.is_alive())


def test_neither_inputs_nor_an_answer_are_kept() -> None:
    class Big:
        pass

    runs = LocalRuns([lambda given: Big()], Estimate())
    given = Big()
    answer = runs.submit(call(given), hurry=False)
    kept = [weakref.ref(given), weakref.ref(answer.result(30))]
    del given, answer
    eventually(lambda: gc.collect() >= 0 and not any(one() for one in kept))
    runs.close()


@pytest.mark.parametrize(("seconds", "longest", "told"), [(0.3, 30.0, "began ended "), (60, 0.5, "began ")])
def test_a_process_that_ends_waits_a_moment_for_the_run_under_way(seconds: float, longest: float, told: str) -> None:
    script = f"""
import time
from compoff.device import local_runs
from compoff.device.timing import Estimate
from tests.device.test_local_runs import call

local_runs._LONGEST_END = {longest}

def model():
    print("began", end=" ", flush=True)
    time.sleep({seconds})
    print("ended", end=" ", flush=True)

runs = local_runs.LocalRuns([model], Estimate())
several = [runs.submit(call(), hurry=False) for _ in range(3)]
while not several[0].running():
    time.sleep(0.01)
"""
    began = time.monotonic()
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=90, cwd=root)
    assert (done.returncode, done.stdout) == (0, told), done.stderr
    assert time.monotonic() - began < 50
