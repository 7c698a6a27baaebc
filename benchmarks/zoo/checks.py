"""What is measured on one architecture at one split point, through compoff's public face.

Shared by the benchmark, which takes the models as they are, and the tests, which take the small instances.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import compoff
from benchmarks.zoo.snapshot import Snapshot
from benchmarks.zoo.stranger import tensors_of
from compoff.codec import Bottleneck
from compoff.cutting.capture import capture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from benchmarks.zoo.architecture import Architecture, Inputs

__all__ = ["BATCHES", "TOLERANCE", "Export", "Mounted", "difference", "mount", "run_strangers"]

BATCHES = (2, 3, 1)
"""Sizes of the batches that head and tail are run with; they are exported with the first."""

TOLERANCE = 1e-5
"""Largest difference that still counts as the same answer."""

_STRANGER = Path(__file__).with_name("stranger.py")


def difference(left: Any, right: Any) -> float:
    """Largest absolute difference between the tensors of two outputs.

    Args:
        left: One output.
        right: The other.

    Returns:
        The difference; infinity where number, shape or dtype of the tensors differ, or one of them is not a number.
    """
    ours, theirs = tensors_of(left), tensors_of(right)
    if [(value.shape, value.dtype) for value in ours] != [(value.shape, value.dtype) for value in theirs]:
        return math.inf
    pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.numel()]
    gaps = [float((one.detach().double() - other.detach().double()).abs().max()) for one, other in pairs]
    return max((gap if math.isfinite(gap) else math.inf for gap in gaps), default=0.0)


class Unchanged(Bottleneck):
    """A bottleneck that changes nothing: what differs with it in place is the cut's doing."""

    def encode(self, y: Tensor) -> Tensor:
        """Hand the feature on in place of symbols."""
        return y

    def encode_checked(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and whether it is finite."""
        return self.encode(y), y.isfinite().flatten(1).all(1)

    def decode(self, symbols: Tensor) -> Tensor:
        """Hand it on again."""
        return symbols


@dataclass
class Mounted:
    """A model wrapped at one split point, and what it was before.

    Args:
        architecture: Where it comes from.
        split: The split point.
        reduced: Whether it is the small instance.
        model: The model.
        before: The model before it was wrapped.
        expected: What the model answered before, batch by batch.
        wrapped: The model, wrapped.
    """

    architecture: Architecture
    split: str
    reduced: bool
    model: nn.Module
    before: Snapshot
    expected: list[Any]
    wrapped: compoff.Wrapped

    def batch(self, size: int) -> Inputs:
        """One batch; the same each time."""
        return self.architecture.inputs(reduced=self.reduced, batch=size, seed=size)

    def teacher_gap(self) -> float:
        """Largest difference that wrapping makes to the model with no bottleneck on, over all batches."""
        return max(self._gap(size, answer) for size, answer in zip(BATCHES, self.expected, strict=True))

    def bypass_gap(self) -> float:
        """The same inside `at` with the bottleneck bypassed."""
        with self.wrapped.eval().at(self.split, bypass=True):
            return self.teacher_gap()

    def _gap(self, size: int, answer: Any) -> float:
        with torch.no_grad():
            return difference(_called(self.wrapped, self.batch(size)), answer)

    def student(self, size: int) -> Any:
        """What the wrapped model answers with its bottleneck on."""
        with self.wrapped.eval().at(self.split), torch.no_grad():
            return _called(self.wrapped, self.batch(size))

    def program_gap(self) -> float:
        """Largest difference of the two programs, bottlenecks bypassed, to the model before it was wrapped."""
        gate, example = self.wrapped.gate(self.split), self.wrapped.example_inputs()
        bottlenecks = gate.bottlenecks
        gate.bottlenecks = tuple(Unchanged(bottleneck.geometry) for bottleneck in bottlenecks)
        try:
            programs = capture(
                self.model, gate, self.split, example, most=max(BATCHES), send=self.architecture.skips == "send"
            )
        finally:
            gate.bottlenecks = bottlenecks
        head, tail = (program.module(check_guards=False) for program in (programs.head, programs.tail))
        gaps: list[float] = []
        for size, answer in zip(BATCHES, self.expected, strict=True):
            inputs = self.batch(size)
            call = inspect.signature(self.model.forward).bind(*inputs.args, **inputs.kwargs)
            call.apply_defaults()
            with torch.no_grad():
                sent = head(*tensors_of([call.args, call.kwargs]))[: len(bottlenecks) + len(programs.sides)]
                gaps.append(difference(tail(*sent), answer))
        return max(gaps)

    def gradients_missing(self) -> list[str]:
        """Parameters of the encoders that no gradient reaches from the model's own output; none where all is well."""
        self.wrapped.train().zero_grad()
        with self.wrapped.at(self.split):
            answers = tensors_of(_called(self.wrapped, self.batch(BATCHES[1])))
        # Random weights: the plain sum of a softmax or of a normalized vector would have no gradient.
        terms = [(answer * torch.randn_like(answer)).sum() for answer in answers if answer.requires_grad]
        torch.stack(terms).sum().backward()
        encoders = [(name, module) for name, module in self.wrapped.bottlenecks.named_modules() if _is_encoder(name)]
        named = [(f"{path}.{name}", value) for path, module in encoders for name, value in module.named_parameters()]
        missing = [name for name, value in named if value.grad is None or not value.grad.any()]
        self.wrapped.zero_grad()
        return missing if named else ["(there is no encoder)"]

    def export(self, folder: Path) -> Export:
        """Write head and tail, with the calls to run them on, for `run_strangers`.

        Args:
            folder: Where to.

        Returns:
            What was written.
        """
        factory = self.architecture.tail_factory(reduced=self.reduced)
        given = {"tail_factory": factory, "max_batch": self.architecture.max_batch}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        head, tail = compoff.export(self.wrapped, self.split, **options)
        head.save(folder / "head")
        tail.save(folder / "tail")
        calls = [self.batch(size) for size in BATCHES]
        torch.save([(call.args, call.kwargs) for call in calls], folder / "inputs.pt")
        answers = [self.student(size) for size in BATCHES]
        return Export(folder, head, tail, calls, answers, head_only=factory is not None)

    def unwrap(self) -> list[str]:
        """Unwrap; whatever is different from before."""
        self.wrapped.unwrap()
        return self.before.changes(self.model)


@dataclass
class Export:
    """Head and tail of one cut, on disk and in memory.

    Args:
        folder: Where they lie.
        head: The head.
        tail: The tail.
        calls: What they are run on.
        expected: What the student answers to these.
        head_only: Whether the tail needs the model's own code.
    """

    folder: Path
    head: compoff.Head
    tail: compoff.Tail
    calls: list[Inputs]
    expected: list[Any]
    head_only: bool = False

    def gap(self) -> float:
        """Largest difference between the student and head, bytes and tail in this process, over all batches."""
        answers = [self.tail(bytes(self.head(*call.args, **call.kwargs))) for call in self.calls]
        return max(difference(ours, theirs) for ours, theirs in zip(answers, self.expected, strict=True))

    def socket_gap(self) -> float:
        """The same over a socket; infinity where an answer is not nested as the model's own."""
        gaps: list[float] = []
        with self.tail.serve("127.0.0.1:0") as server, self.head.connect(server.address, timeout=60) as remote:
            for call, expected in zip(self.calls, self.expected, strict=True):
                answer = remote(*call.args, **call.kwargs)
                gaps.append(difference(answer, expected) if type(answer) is type(expected) else math.inf)
        return max(gaps)

    def job(self) -> dict[str, Any]:
        """What `run_strangers` is to do."""
        paths = {"folder": self.folder, "inputs": self.folder / "inputs.pt", "outputs": self.folder / "outputs.pt"}
        return {**{name: str(path) for name, path in paths.items()}, "head_only": self.head_only}

    def stranger_gap(self) -> float:
        """Largest difference to what the process without the model's library answered; after `run_strangers`."""
        found = torch.load(self.folder / "outputs.pt", weights_only=True)
        answers = found["answers"]
        if self.head_only:
            answers = [self.tail(payload) for payload in found["payloads"]]
        return max(difference(ours, theirs) for ours, theirs in zip(answers, self.expected, strict=True))


def mount(architecture: Architecture, split: str, model: nn.Module, *, reduced: bool) -> Mounted:
    """Wrap a model at one split point.

    Args:
        architecture: Where the model comes from.
        split: The split point.
        model: The model, as `Architecture.build` made it.
        reduced: Whether it is the small instance.

    Returns:
        The wrapped model beside what it was.
    """
    before = Snapshot.of(model)
    batches = [architecture.inputs(reduced=reduced, batch=size, seed=size) for size in BATCHES]
    with torch.no_grad():
        expected = [_called(model, inputs) for inputs in batches]
    example = (batches[0].args, batches[0].kwargs) if batches[0].kwargs else batches[0].args
    how: dict[str, Any] = {"skips": architecture.skips, "codec": architecture.codec}
    wrapped = compoff.wrap(model, [split], example_input=example, **how)
    return Mounted(architecture, split, reduced, model, before, expected, wrapped)


def run_strangers(exports: Sequence[Export], folder: Path) -> list[dict[str, Any]]:
    """Run heads and tails in one process that can import none of the models' libraries.

    Args:
        exports: What to run.
        folder: Where the list of jobs is written.

    Returns:
        For each, ``bytes`` of its payloads and ``error``, empty where there was none.

    Raises:
        RuntimeError: The process failed, or one of the libraries got loaded after all.
    """
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps([export.job() for export in exports]), encoding="utf-8")
    command = [sys.executable, "-I", "-W", "ignore", str(_STRANGER), str(jobs)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums in another order would differ in their last bits
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    if done.returncode:
        raise RuntimeError(f"the process without libraries failed: {done.stderr[-2000:]}")
    report = json.loads(done.stdout.splitlines()[-1])
    if report["loaded"]:
        raise RuntimeError(f"the process without libraries has loaded {', '.join(report['loaded'])}")
    return report["results"]


def _is_encoder(name: str) -> bool:
    """Whether a module of the bottlenecks, by its name, is one's encoder and no part of it."""
    return name.endswith(".encoder")


def _called(model: nn.Module, inputs: Inputs) -> Any:
    return model(*inputs.args, **inputs.kwargs)
