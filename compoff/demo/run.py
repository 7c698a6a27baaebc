"""run_demo(): train, fit, export, serve in a second process, run every test image every way, show what it costs.

The order of things and what is said meanwhile; each step is another file's.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compoff.checks import check_whole
from compoff.demo.edge import edge_process
from compoff.demo.extras import check_extras
from compoff.demo.links import FORMULA, LINKS
from compoff.demo.machine import describe_machine, describe_versions
from compoff.demo.measure import CALL_SECONDS, Way, compoff_call, local_call, measure, picture_call
from compoff.demo.pictures import FORMS
from compoff.demo.tasks import CIFAR_SCHEDULE, DIGITS_SCHEDULE, Batches, load_task
from compoff.demo.whole import picture_id, save_whole
from compoff.device.connecting import connect
from compoff.errors import ArtifactError, FitError
from compoff.exporting import export
from compoff.fitting import FitReport, fit
from compoff.wire.client import open_client
from compoff.wrapping import wrap

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from rich.console import Console
    from rich.status import Status

    from compoff.demo.measure import Row
    from compoff.demo.tasks import Schedule, SplitPlan, Task
    from compoff.device.head import Head
    from compoff.edge.tail import Tail
    from compoff.fitting import SplitReport

__all__ = ["run_demo"]


@dataclass(frozen=True)
class _Fitted:
    """One split point, ready to ship."""

    plan: SplitPlan
    head: Head
    tail: Tail
    report: SplitReport
    seconds: float


def run_demo(
    data: Path | None,
    out: Path | None,
    *,
    seed: int = 0,
    threads: int | None = None,
    console: Console,
    schedule: Schedule | None = None,
) -> dict[str, Any]:
    """Show on real images what each way of answering costs, and print one table.

    Args:
        data: Folder of CIFAR-10 and the pretrained ResNet-56; None for scikit-learn's handwritten digits.
        out: Folder for ``report.html`` and ``results.json``; None for none.
        seed: Seed of everything random.
        threads: Threads that PyTorch may use for fitting; None for one on the digits, PyTorch's own choice otherwise.
        console: Where to print.
        schedule: How long everything may take; None for the demonstration's own.

    Returns:
        What ``results.json`` holds: rows, links, fits, hardware, versions, seed, command.

    Raises:
        BackendError: A package of ``compoff[demo]`` is not installed.
        ArtifactError: A file is not in `data`, or `out` cannot be written to.
        FitError: There is no such seed.
        WireError: The second process or its socket failed.

    Source: this project.
    """
    check_extras()
    _check_seed(seed)
    _make_folder(out)
    plan = schedule or (DIGITS_SCHEDULE if data is None else CIFAR_SCHEDULE)
    begin = time.monotonic()
    with _threads(threads if threads is not None or data is not None else 1):
        with console.status("reading the images, training the network" if data is None else "reading the images"):
            task = load_task(data, plan, seed)
        _say(console, begin, "network and images are ready")
        fitted: list[_Fitted] = []
        for split in plan.splits:
            with console.status(f"fitting the codec at '{split.split}', {split.steps} steps, no labels"):
                fitted.append(_fit(task, split, plan.batch, seed))
            _say(console, begin, f"fitted and exported at '{split.split}', {fitted[-1].report.bytes:.0f} B a payload")
        rows = _measured(task, fitted, plan, console)
    _say(console, begin, "measured")
    results = _results(task, rows, fitted, seed, data, out, time.monotonic() - begin)
    _show(results, fitted, console, out)
    return results


def _check_seed(seed: int) -> None:
    """Refuse what is no seed for scikit-learn, whose range is the narrowest."""
    check_whole("seed", seed, FitError, least=0)
    if seed >= 1 << 32:
        raise FitError(f"seed is {seed}; expected a whole number of at most {(1 << 32) - 1}")


def _make_folder(out: Path | None) -> None:
    """The folder for the results: asked for now, not after minutes."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{out} cannot be made ({error.strerror}); give --out a folder that can be written to"
        ) from error


@contextlib.contextmanager
def _threads(count: int | None) -> Generator[None]:
    """Let PyTorch use this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say(console: Console, begin: float, text: str) -> None:
    console.print(f"{time.monotonic() - begin:5.0f} s  {text}", highlight=False, markup=False)


def _fit(task: Task, plan: SplitPlan, batch: int, seed: int) -> _Fitted:
    """Wrap, fit and export at one split point, and hand the network back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = Batches(task.train, batch, mirror=task.pixels.ndim == 4)
        model = wrap(task.net, plan.split, example_input=task.test[:2])
        try:
            report = fit(model, batches, steps=plan.steps, target_bytes=plan.target_bytes, seed=seed, progress=False)
            head, tail = export(model.eval(), plan.split)
        finally:
            model.unwrap()
    return _Fitted(plan, head, tail, report.splits[plan.split], report.seconds)


def _measured(task: Task, fitted: Sequence[_Fitted], schedule: Schedule, console: Console) -> list[Row]:
    """Every test image through every way, the edge in a second process; both with one thread."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(1))
        status = stack.enter_context(console.status("starting the second process"))
        with tempfile.TemporaryDirectory(prefix="compoff-demo-") as folder:
            digest = save_whole(task, Path(folder, "network"))
            folders = [Path(folder, "network")]
            for number, part in enumerate(fitted):
                folders.append(Path(folder, f"tail{number}"))
                part.tail.save(folders[-1])
            address = stack.enter_context(edge_process(folders))
        ids = [picture_id(form, digest) for form in FORMS]
        client = stack.enter_context(open_client(address, ids))
        remote = stack.enter_context(connect([part.head for part in fitted], address, timeout=CALL_SECONDS))
        ways = [
            Way("local", "stay on device", local_call(task)),
            Way("raw", "send raw uint8", picture_call(task, client, FORMS.index("raw"), "raw")),
            Way("png", "send PNG", picture_call(task, client, FORMS.index("png"), "png")),
        ]
        for quality in schedule.jpeg_qualities:
            call = picture_call(task, client, FORMS.index("jpeg"), "jpeg", quality)
            ways.append(Way("jpeg", f"send JPEG {quality}", call, quality=quality))
        for part in fitted:
            split = part.plan.split
            ways.append(Way("compoff", f"compoff {split}", compoff_call(task, remote, split), split=split))
        return _rows(task, ways, status)


def _rows(task: Task, ways: Sequence[Way], status: Status) -> list[Row]:
    """One row a way."""
    with torch.inference_mode():
        parts = [task.net(task.test[start : start + 100]) for start in range(0, len(task.test), 100)]
    reference = [int(scores.argmax()) for part in parts for scores in part]
    rows: list[Row] = []
    for way in ways:
        status.update(f"{way.label}: {len(task.labels)} images, one by one")
        rows.append(measure(way, task.labels, reference))
    return rows


def _results(
    task: Task,
    rows: Sequence[Row],
    fitted: Sequence[_Fitted],
    seed: int,
    data: Path | None,
    out: Path | None,
    seconds: float,
) -> dict[str, Any]:
    """What ``results.json`` holds; no host names and no paths."""
    options = (" --data FOLDER" if data is not None else "") + (" --out DIR" if out is not None else "")
    return {
        "task": task.name,
        "title": task.title,
        "note": task.note,
        "command": f"compoff demo{options} --seed {seed}",
        "seed": seed,
        "seconds": round(seconds, 1),
        "hardware": describe_machine(),
        "versions": describe_versions(),
        "formula": FORMULA,
        "links": [asdict(link) for link in LINKS],
        "rows": [row.to_dict() for row in rows],
        "fits": {
            part.plan.split: {**asdict(part.plan), "seconds": round(part.seconds, 1), **part.report.figures()}
            for part in fitted
        },
    }


def _show(results: dict[str, Any], fitted: Sequence[_Fitted], console: Console, out: Path | None) -> None:
    """Print the table, write the files."""
    from compoff.demo.report import write_report  # these need the demo's extras
    from compoff.demo.table import print_table

    print_table(results, console)
    if out is None:
        return
    seconds = sum(part.seconds for part in fitted)
    splits = {part.plan.split: part.report for part in fitted}
    steps = max((part.plan.steps for part in fitted), default=0)
    write_report(results, FitReport(splits, steps, seconds, 0, held_out=False), out)
    console.print(f"wrote {out / 'report.html'} and {out / 'results.json'}", highlight=False, markup=False)
