"""A tail with two replicas in Ray Serve behind our front; one is killed under load. Is every answer right?

    python -m benchmarks.ray_serve

Devices in threads of this process ask over loopback, each with its own connection and one call at a time. A replica is
killed from outside (SIGKILL) in the middle; the run goes on until Ray has started another, and as long again. A call
may end with an answer, which is compared with that of the tail itself, or with an error of compoff's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

import compoff
from benchmarks.record import record
from compoff.operations.ray_serve import deploy


def export(folder: Path) -> compoff.Head:
    """A small network's head, and its tail in a folder."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(), nn.Flatten()
    )
    model = compoff.wrap(net.eval(), "2", example_input=torch.zeros(2, 3, 16, 16))
    head, tail = compoff.export(model, "2")
    tail.save(folder / "tail")
    return head


def replicas() -> list[int]:
    """Process ids of the replicas that run now."""
    found: list[int] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if "ServeReplica" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def back(killed: int, most: float) -> float:
    """Seconds until there are two replicas again that live."""
    began = time.monotonic()
    while time.monotonic() < began + most:
        alive = [pid for pid in replicas() if pid != killed]
        if len(alive) == 2:
            return time.monotonic() - began
        time.sleep(0.2)
    return most


class Device(threading.Thread):
    """Asks one thing after another until it is told to stop, and compares every answer."""

    def __init__(self, head: compoff.Head, address: str, cases: list[tuple[Any, Any]], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.seconds: list[tuple[float, float]] = []
        self._head, self._address, self._cases, self._stop_asking = head, address, cases, stop

    def run(self) -> None:
        """Ask."""
        with self._head.connect(self._address, timeout=10.0) as remote:
            number = 0
            while not self._stop_asking.is_set():
                given, expected = self._cases[number % len(self._cases)]
                number += 1
                began = time.monotonic()
                try:
                    right = np.allclose(np.asarray(remote(given)), expected, atol=1e-4)
                    self.outcomes["right" if right else "wrong"] += 1
                except compoff.CompoffError as error:
                    self.outcomes[type(error).__name__] += 1
                self.seconds.append((began, time.monotonic() - began))


def measure(devices: int, seconds: float) -> dict[str, Any]:
    """One run."""
    import ray
    from ray import serve

    with tempfile.TemporaryDirectory() as scratch:
        head = export(Path(scratch))
        tail = compoff.Tail.load(scratch)
        inputs = [torch.randn(1 + number % 3, 3, 16, 16) for number in range(20)]
        cases = [(one, tail(head(one)).numpy()) for one in inputs]
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, logging_level="ERROR")
        try:
            front = deploy(scratch, replicas=(2, 2), max_batch=8, cpus=1.0)
            stop = threading.Event()
            with compoff.serve(front, workers=devices, max_batch=8) as server:
                asking = [Device(head, server.address, cases, stop) for _ in range(devices)]
                for device in asking:
                    device.start()
                time.sleep(seconds / 2)
                before = replicas()
                killed_at = time.monotonic()
                os.kill(before[0], signal.SIGKILL)
                recovered = back(before[0], 60.0)
                time.sleep(seconds / 2)
                stop.set()
                for device in asking:
                    device.join(30)
                after = replicas()
        finally:
            serve.shutdown()
            ray.shutdown()
    outcomes: collections.Counter[str] = sum((device.outcomes for device in asking), collections.Counter())
    times = [pair for device in asking for pair in device.seconds]
    quiet = sorted(took for began, took in times if began + took < killed_at)
    shaken = [took for began, took in times if killed_at - 0.5 < began < killed_at + 2]
    return {
        "devices": devices,
        "seconds": seconds,
        "replicas_before": len(before),
        "replicas_after": len(after),
        "replacement_seconds": recovered,
        "calls": sum(outcomes.values()),
        "right": outcomes["right"],
        "wrong": outcomes["wrong"],
        "errors": sum(outcomes.values()) - outcomes["right"] - outcomes["wrong"],
        **{f"error_{name}": count for name, count in outcomes.items() if name not in ("right", "wrong")},
        "median_ms": 1000 * statistics.median(quiet),
        "p99_ms": 1000 * quiet[int(0.99 * len(quiet))],
        "longest_around_the_kill_ms": 1000 * max(shaken),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    row = measure(options.devices, options.seconds)
    print(row)
    command = f"python -m benchmarks.ray_serve --devices {options.devices} --seconds {options.seconds:g}"
    print(record("ray_serve", [row], seed=0, command=command))


if __name__ == "__main__":
    main()
