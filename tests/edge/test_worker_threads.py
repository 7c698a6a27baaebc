"""The threads under load: every job gets one outcome, whichever lane, worker or decoder it goes through."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from compoff.edge.batching import Job, Lane, Outcome
from compoff.edge.workers import Workers
from compoff.manifest import TensorSpec
from compoff.wire.replies import FULL
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence


class One:
    """Answers one payload at a time."""

    artifact_id = bytes(32)
    max_payload_bytes = 100

    def answer(self, payload: bytes) -> bytes:
        return payload


class Several(One):
    """Answers several at once, some of them slowly."""

    outputs = (TensorSpec((), "uint8"),)
    max_batch = 64

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def decode(self, payload: bytes) -> np.ndarray:
        return np.frombuffer(payload, np.uint8)

    def run(self, decoded: Sequence[Any]) -> list[list[np.ndarray]]:
        if self.rng.random() < 0.1:
            time.sleep(0.001)
        return [[part] for part in decoded]


class Device:
    """Waits for everything, or has gone."""

    def __init__(self, here: bool) -> None:
        self._here = here

    def wants(self, request_id: int) -> bool:
        return self._here

    def deliver(self, job: Job, outcome: Outcome | None) -> None:
        """Nothing."""

    def settle(self) -> None:
        """Nothing."""


@pytest.mark.parametrize(("count", "decoders", "max_wait"), [(1, 0, 0.0), (1, 1, 0.005), (3, 2, 0.001), (2, 2, 0.0)])
def test_every_job_has_one_outcome(count: int, decoders: int, max_wait: float) -> None:
    found: dict[int, Outcome | None] = {}
    times: Counter[int] = Counter()
    lock = threading.Lock()

    def deliver(jobs: Sequence[Job], outcomes: Sequence[Outcome | None], seconds: float) -> None:
        with lock:
            for job, outcome in zip(jobs, outcomes, strict=True):
                times[job.request_id] += 1
                found[job.request_id] = outcome

    workers = Workers(count, decoders, max_wait, deliver)
    lanes = [Lane(One(), 8), Lane(Several(), 8), Lane(Several(), 3)]
    for lane in lanes:
        workers.open(lane)
    devices = [Device(here=True), Device(here=True), Device(here=False)]

    def submit(start: int) -> None:
        rng = random.Random(start)
        for number in range(start, start + 400):
            lane, device = rng.choice(lanes), rng.choice(devices)
            deadline = math.inf if rng.random() < 0.9 else time.monotonic() + rng.uniform(-0.001, 0.002)
            payload = number.to_bytes(4, "big")
            workers.submit(Job(lane, payload, FULL, deadline, device, number, time.perf_counter()))
            if rng.random() < 0.05:
                time.sleep(rng.uniform(0.0, 0.003))

    threads = [threading.Thread(target=submit, args=(1000 * index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    workers.stop(10)
    assert len(found) == 1200
    assert set(times.values()) == {1}
    assert all(lane.running == 0 and not lane.waiting for lane in lanes)
    right = {number: outcome.body for number, outcome in found.items() if outcome is not None and outcome.code is None}
    assert len(right) > 400
    for number, body in right.items():
        assert number.to_bytes(4, "big") in {body, unpack(body, 1)[0].tobytes() if len(body) > 4 else b""}


def test_a_place_is_given_up_by_who_has_two_more_waiting_than_who_asks() -> None:
    begun, gate = threading.Event(), threading.Event()

    class Held(One):
        def answer(self, payload: bytes) -> bytes:
            begun.set()
            gate.wait(30)
            return payload

    workers = Workers(1, 0, 0.0, lambda *_: None)
    lane, greedy, modest = Lane(Held(), 8), Device(here=True), Device(here=True)
    workers.open(lane)
    for number in range(3):
        workers.submit(Job(lane, b"", FULL, math.inf, greedy, number, 0.0))
        assert begun.wait(30), "the first runs, the others wait"
    assert workers.displace(greedy) is None
    displaced = workers.displace(modest)
    assert displaced is not None
    assert displaced.request_id == 2
    assert workers.displace(modest) is None
    gate.set()
    workers.stop(30)


def test_of_two_lanes_that_wait_the_one_goes_whose_time_comes_first() -> None:
    answered = threading.Event()
    workers = Workers(1, 0, 20.0, lambda jobs, *_: answered.set() if jobs[0].lane is quick else None)
    slow, quick = Lane(Several(), 8), Lane(Several(), 8)
    for lane, seconds in ((slow, 80.0), (quick, 0.04)):
        jobs = [Job(lane, b"x", FULL, math.inf, Device(here=True), number, time.monotonic()) for number in range(3)]
        for job in jobs[:2]:
            lane.push(job)
        lane.done(len(lane.take()), 2, seconds)
        workers.open(lane)
        workers.submit(jobs[2])
    assert answered.wait(10)
    workers.stop(30)
