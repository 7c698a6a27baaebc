"""Faults at random moments under a steady stream of calls: is every call over by its deadline, right or with an error?

Every kind of ``fault_kinds`` is brought about some hundred times, on several sites at once. On each site four devices
call without pause: one that raises, one that answers locally, one that hedges, and one in asyncio. The answer to a
payload is its digest, so a wrong or foreign one shows. Writes ``benchmarks/results/faults.json``; status 1 where a call
was wrong, late, or ended with an error that does not belong to the fault.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fault_kinds import ID, KINDS, Site, digest
from benchmarks.record import record
from compoff.coding import Payload
from compoff.device.connecting import connect, connect_async
from compoff.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from compoff.device.async_remote import AsyncRemote
    from compoff.device.remote import Remote
    from compoff.errors import CompoffError

__all__ = ["Ledger", "run_kind"]

DEADLINE = 0.5  # seconds that each call is given
SLACK = 0.25  # seconds beyond it that a shared machine may take to wake a thread; more is late
_BYSTANDER = 0.01  # seconds that a thread sleeps which does nothing else: what it oversleeps, the machine stood still
HEARTBEAT = 0.2
_PAUSE = 0.02  # seconds, at most, between two calls of a device
_RECOVERY = 15.0  # seconds after which a fault that was mended has to be over


class DigestHead:
    """A head whose payload is its input."""

    artifact_id = ID
    split = "input"
    runner = None

    def __init__(self) -> None:
        """Answers are 32 bytes."""
        outputs = (TensorSpec((32,), "uint8"),)
        self.manifest = Manifest("head", ID.hex(), "input", "Digest", (), outputs, {"leaf": 0}, (), (), max_batch=1)

    def __call__(self, word: NDArray[np.uint8], quality: int | None = None) -> Payload:
        """The payload."""
        return Payload(word.tobytes(), ID, 0, 1)

    def check(self, word: NDArray[np.uint8], quality: int | None = None, **keywords: Any) -> None:
        """Takes everything."""


def whole(word: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole model: another answer than the edge's, so that one cannot pass for the other."""
    return np.frombuffer(digest(b"local" + word.tobytes()), np.uint8)[None]


class Ledger:
    """What became of the calls of one kind of fault; threads share it.

    Args:
        errors: Those that belong to the fault.
    """

    def __init__(self, errors: tuple[type[CompoffError], ...]) -> None:
        """Start empty."""
        self._errors = errors
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self.overruns: list[float] = []
        self.recoveries: list[float] = []
        self.stalls: list[tuple[float, float]] = []  # moments between which the machine stood still
        self._late: list[tuple[str, float, float]] = []

    def answered(self, policy: str, source: str, right: bool, began: float, ended: float) -> None:
        """Count an answer."""
        with self._lock:
            self.counts["calls"] += 1
            self.counts[f"{policy}: {source}"] += 1
            self._time(policy, began, ended)
            if not right:
                self.violations.append(f"{policy}: a wrong answer from {source}")

    def failed(self, policy: str, error: BaseException, began: float, ended: float) -> None:
        """Count an error."""
        with self._lock:
            self.counts["calls"] += 1
            self.counts[f"{policy}: {type(error).__name__}"] += 1
            self._time(policy, began, ended)
            if policy == "local" or not isinstance(error, self._errors):
                self.violations.append(f"{policy}: {type(error).__name__}: {error}")

    def watch(self, stop: threading.Event) -> None:
        """Note when the machine stands still, as a bystander sees it."""
        while not stop.is_set():
            began = time.monotonic()
            time.sleep(_BYSTANDER)
            ended = time.monotonic()
            if ended - began > 5 * _BYSTANDER:
                self.stalls.append((began + _BYSTANDER, ended))

    def judge(self) -> None:
        """Add the late calls to what must not have happened; while the machine stands still no call can end."""
        for policy, began, ended in self._late:
            still = sum(max(0.0, min(ended, to) - max(began, since)) for since, to in self.stalls)
            if ended - began - still > DEADLINE + SLACK:
                self.violations.append(f"{policy}: {ended - began:.3f} s with a deadline of {DEADLINE} s")

    def _time(self, policy: str, began: float, ended: float) -> None:
        self.overruns.append(ended - began - DEADLINE)
        if ended - began > DEADLINE + SLACK:
            self._late.append((policy, began, ended))


class Device:
    """Calls without pause from a thread of its own, until it is stopped.

    Args:
        policy: ``raise``, ``local``, ``hedge``, or ``asyncio``.
        site: Where to.
        ledger: Where every call is written down.
        seed: Of inputs and pauses.
    """

    def __init__(self, policy: str, site: Site, ledger: Ledger, seed: int) -> None:
        """Connect, and begin."""
        self.policy = policy
        self._ledger = ledger
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.good = 0  # answers of the edge
        options: dict[str, Any] = {"tls": site.tls, "timeout": 10.0, "heartbeat": HEARTBEAT}
        if policy in ("local", "hedge"):
            options |= {"on_failure": policy, "local": whole}
        head: Any = DigestHead()
        if policy == "asyncio":
            self._loop = asyncio.new_event_loop()
            self._async_remote = self._loop.run_until_complete(connect_async(head, site.address, **options))
            work: Callable[[], None] = self._work_async
        else:
            self._remote = connect(head, site.address, **options)
            work = self._work
        self._thread = threading.Thread(target=work, name=policy)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _word(self) -> NDArray[np.uint8]:
        return np.frombuffer(self._random.randbytes(self._random.choice((8, 250, 4000))), np.uint8)

    def _work(self) -> None:
        remote: Remote = self._remote
        while not self._stop.wait(self._random.random() * _PAUSE):
            word = self._word()
            began = time.monotonic()
            try:
                answer = remote(word, timeout=DEADLINE)
            except BaseException as error:
                self._ledger.failed(self.policy, error, began, time.monotonic())
            else:
                report = remote.last
                self._judge(word, answer, "nowhere" if report is None else report.source, began)
        remote.close()

    def _work_async(self) -> None:
        self._loop.run_until_complete(self._calls(self._async_remote))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _calls(self, remote: AsyncRemote) -> None:
        while not self._stop.is_set():
            await asyncio.sleep(self._random.random() * _PAUSE)
            word = self._word()
            began = time.monotonic()
            try:
                answer = await remote(word, timeout=DEADLINE)
            except Exception as error:
                self._ledger.failed(self.policy, error, began, time.monotonic())
            else:
                self._judge(word, answer, "edge", began)
        await remote.close()

    def _judge(self, word: NDArray[np.uint8], answer: Any, source: str, began: float) -> None:
        ended = time.monotonic()
        expected = digest(word.tobytes()) if source == "edge" else whole(word).tobytes()
        self.good += source == "edge"
        self._ledger.answered(self.policy, source, np.asarray(answer).tobytes() == expected, began, ended)


def run_site(kind: type[Site], faults: int, ledger: Ledger, folder: Path, seed: int) -> None:
    """One site, its devices, and faults at random moments, each waited for until every device hears the edge again."""
    site = kind(folder, seed)
    devices = [Device(policy, site, ledger, seed) for policy in ("raise", "local", "hedge", "asyncio")]
    try:
        for _ in range(faults):
            site.between(0.0, 0.15)
            site.fault()
            mended = time.monotonic()
            good = [device.good for device in devices]
            while any(device.good == before for device, before in zip(devices, good, strict=True)):
                if time.monotonic() - mended > _RECOVERY:
                    ledger.violations.append(f"no answer from the edge {_RECOVERY:g} s after the fault was mended")
                    return
                time.sleep(0.002)
            ledger.recoveries.append(time.monotonic() - mended)
    finally:
        for device in devices:
            device.stop()
        site.close()


def run_kind(name: str, faults: int, sites: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Bring a kind of fault about so many times, on several sites at once.

    Returns:
        The row of the results, and what must not have happened.
    """
    kind = KINDS[name]
    if name == "DNS change":
        sites = 1  # it takes the name server's place
    ledger = Ledger(kind.errors)
    over = threading.Event()
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(sites + 1) as pool:
        bystander = pool.submit(ledger.watch, over)
        works = []
        for index in range(sites):
            folder = Path(scratch) / f"site-{seed + index}"
            share = faults // sites + (index < faults % sites)
            works.append(pool.submit(run_site, kind, share, ledger, folder, seed + index))
        try:
            for work in works:
                work.result()
        finally:
            over.set()
        bystander.result()
    ledger.judge()
    recoveries = sorted(ledger.recoveries)
    row: dict[str, Any] = {
        "fault": name,
        "faults": len(recoveries),
        "calls": ledger.counts["calls"],
        "wrong_or_late": len(ledger.violations),
        "deadline_ms": round(DEADLINE * 1000),
        "latest_after_deadline_ms": round(1000 * max(ledger.overruns), 1),
        "longest_standstill_ms": round(1000 * max((to - since for since, to in ledger.stalls), default=0.0), 1),
        "recovery_p50_ms": round(1000 * statistics.median(recoveries)) if recoveries else None,
        "recovery_max_ms": round(1000 * recoveries[-1]) if recoveries else None,
    }
    row |= {key: value for key, value in sorted(ledger.counts.items()) if key != "calls"}
    return row, ledger.violations


def main() -> None:
    """Run every kind, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=200, help="faults of each kind")
    parser.add_argument("--sites", type=int, default=3, help="servers with four devices each, at once")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only this kind; no results are written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable()  # the devices say at every fault that the edge is gone
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for name in arguments.kind or KINDS:
        row, violations = run_kind(name, arguments.faults, arguments.sites, arguments.seed)
        print(row, flush=True)
        rows.append(row)
        bad += [f"{name}: {violation}" for violation in violations]
    for violation in bad[:40]:
        print("MUST NOT BE:", violation)
    if not arguments.kind:
        command = f"python -m benchmarks.faults --faults {arguments.faults} --sites {arguments.sites}"
        print(f"wrote {record('faults', rows, seed=arguments.seed, command=command).name}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
