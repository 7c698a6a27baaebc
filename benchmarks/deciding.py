"""What choosing split point and quality for the link is worth: calls over links of several speeds, and a changing one.

One network with codecs at three split points is served by a second process; between device and server lies a cable of
a set rate and latency. Each way goes over each link: every split point alone at the lowest quality that keeps the
agreement asked for, and a remote whose goal is that agreement, which knows nothing of the link. Images are those of
the test set, one a call; the agreement is counted on the answers that came back.

    python -m benchmarks.deciding --data DATA
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import compoff
from benchmarks.cable import Cable
from benchmarks.record import record
from benchmarks.tasks import load_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from torch import Tensor

    from benchmarks.tasks import Task

__all__ = ["main"]

MODEL, SPLITS = "cifar10-resnet56", ("input", "layer2", "layer3")
KEEP = 0.95  # agreement asked for
# Name, bytes a second in each direction, seconds one way.
LINKS = (
    ("narrowband", 2_000, 0.050),
    ("2G", 10_000, 0.040),
    ("3G", 60_000, 0.030),
    ("LTE", 500_000, 0.015),
    ("Wi-Fi", 5_000_000, 0.002),
)
CHANGES = ("LTE", "narrowband", "LTE")
_STATES = Path(__file__).resolve().parent / "states"  # not committed
_SETTLED = 1.25  # times the median of a link's last calls


def exported(task: Task, images: Tensor, steps: int) -> Path:
    """The folder with a head and a tail for each split point, fitted once and kept.

    Qualities are measured on images that no call takes.
    """
    folder = _STATES / f"deciding.{steps}"
    if (folder / "whole").exists():
        return folder
    model = compoff.wrap(task.net, list(SPLITS), example_input=task.test[:2])
    compoff.fit(model, task.train, steps=steps, validation=[*task.test[-500:].split(100)], progress=False)
    for split in SPLITS:
        head, tail = compoff.export(model.eval(), split)
        head.compile("onnx", batches=[images]).save(folder / split / "head")
        tail.save(folder / split / "tail")
    (folder / "whole").touch()
    return folder


def run_server(folder: Path, pipe: Connection) -> None:
    """Serve the tails in a folder until the pipe says stop."""
    torch.set_num_threads(1)
    with compoff.serve([compoff.Tail.load(folder / split) for split in SPLITS]) as server:
        pipe.send(server.address)
        pipe.recv()


def measured(call: Callable[[Tensor], Any], images: Tensor, answers: Tensor) -> tuple[list[float], float]:
    """Seconds of one call an image, and the share of answers that are the network's own."""
    times: list[float] = []
    same = 0
    for image, answer in zip(images, answers, strict=True):
        start = time.perf_counter()
        scores = call(image[None])
        times.append(time.perf_counter() - start)
        same += int(scores.argmax(1) == answer)
    return times, same / len(images)


def cheapest(head: compoff.Head) -> int | None:
    """The lowest quality of a head that keeps what is asked for."""
    curve = head.manifest.report["curve"]
    return next((index for index, point in enumerate(curve) if (point["agreement"] or 0) >= KEEP), None)


def row(link: tuple[str, int, float], way: str, times: list[float], kept: float, ways: Counter[Any]) -> dict[str, Any]:
    """One row of the results."""
    (split, quality), _ = ways.most_common(1)[0]
    return {
        "link": link[0],
        "bytes_per_second": link[1],
        "round_trip_ms": 2000 * link[2],
        "way": way,
        "calls": len(times),
        "median_ms": 1000 * statistics.median(times),
        "p90_ms": 1000 * statistics.quantiles(times, n=10)[-1],
        "agreement": kept,
        "split": split,
        "quality": quality,
    }


def over(
    link: tuple[str, int, float], heads: list[compoff.Head], address: str, images: Tensor, answers: Tensor
) -> list[dict[str, Any]]:
    """Every way over one link; the remote with a goal begins without knowing it."""
    rows: list[dict[str, Any]] = []
    with Cable(address) as cable:
        cable.rate, cable.latency = link[1], link[2]
        for head in heads:
            quality = cheapest(head)
            if quality is None:
                continue
            with head.connect(cable.address, timeout=30) as remote:
                remote(images[:1], quality=quality)
                times, kept = measured(lambda x, q=quality, r=remote: r(x, quality=q), images, answers)
            rows.append(row(link, head.split, times, kept, Counter({(head.split, quality): 1})))
        with compoff.connect(heads, cable.address, timeout=30, goal=compoff.Goal(agreement=KEEP)) as remote:
            times, kept = measured(remote, images, answers)
            ways = Counter((report.split, report.quality) for report in remote.stats.recent)
        rows.append(row(link, "goal", times, kept, ways))
    return rows


def changing(heads: list[compoff.Head], address: str, images: Tensor, answers: Tensor) -> list[dict[str, Any]]:
    """One remote over a link that changes under it, and how many calls it takes to settle."""
    rows: list[dict[str, Any]] = []
    known = {link[0]: link for link in LINKS}
    with (
        Cable(address) as cable,
        compoff.connect(heads, cable.address, timeout=30, goal=compoff.Goal(seconds=0.15)) as remote,
    ):
        for index, name in enumerate(CHANGES):
            cable.rate, cable.latency = known[name][1:]
            times, kept = measured(remote, images, answers)
            ways = Counter((report.split, report.quality) for report in remote.stats.recent[-len(images) // 2 :])
            steady = statistics.median(times[len(times) // 2 :])
            unsettled = [at for at, seconds in enumerate(times) if seconds > _SETTLED * steady and at < len(times) // 2]
            way = f"goal of 150 ms, change {index}" if index else "goal of 150 ms"
            found = row(known[name], way, times, kept, ways)
            settled = unsettled[-1] + 1 if unsettled else 0
            rows.append({**found, "settled_after_calls": settled, "slowest_ms": 1000 * max(times)})
    return rows


def main() -> None:
    """Fit, serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--calls", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    task = load_task(MODEL, Path(args.data), batch=64)
    images = task.test[: args.calls]
    with torch.no_grad():
        answers = task.net(images).argmax(1)
    folder = exported(task, images, args.steps)
    heads = [compoff.Head.load(folder / split, runtime="onnx", threads=1) for split in SPLITS]
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(folder, theirs), daemon=True)
    process.start()
    address = pipe.recv()
    rows = [found for link in LINKS for found in over(link, heads, address, images, answers)]
    rows += changing(heads, address, images, answers)
    pipe.send("stop")
    process.join(30)
    for found in rows:
        print(found)
    options = "" if (args.steps, args.calls) == (150, 60) else f" --steps {args.steps} --calls {args.calls}"
    print(record("deciding", rows, seed=0, command=f"python -m benchmarks.deciding --data DATA{options}"))


if __name__ == "__main__":
    main()
