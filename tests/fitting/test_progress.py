"""Bars of progress: drawn where they are asked for, and otherwise nothing is touched."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import torch
from torch import nn

import compoff
from compoff.fitting.progress import bar, each

if TYPE_CHECKING:
    import pytest

_SILENT = """
import multiprocessing, threading, torch, compoff
model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32))
compoff.fit(model, [torch.randn(8, 32)], steps=2)
compoff.finish(model, [torch.randn(8, 32)])
multiprocessing.set_start_method("spawn")  # raises where it is settled
print([thread.name for thread in threading.enumerate()])
"""


def test_a_fit_without_a_bar_starts_no_thread_and_leaves_the_start_method_open() -> None:
    answer = subprocess.run([sys.executable, "-c", _SILENT], capture_output=True, text=True, check=False)
    assert answer.stdout == "['MainThread']\n", answer.stderr


def test_every_stage_of_a_fit_has_a_bar(capfd: pytest.CaptureFixture[str]) -> None:
    model = compoff.wrap(nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32))
    compoff.fit(model, [torch.randn(8, 32)], steps=2, progress=True)
    drawn = capfd.readouterr().err
    for stage in ("compoff.calibrate input: 100%", "compoff.fit: 100%", "2/2", "loss=", "compoff.measure input: 100%"):
        assert stage in drawn
    compoff.finish(model, [torch.randn(8, 32)], validation=iter([torch.randn(8, 32)]), progress=True)
    assert "compoff.measure input: 100%" in capfd.readouterr().err


def test_a_bar_of_unknown_length_counts(capfd: pytest.CaptureFixture[str]) -> None:
    assert [*each(iter("abc"), "letters", "letter", shown=True)] == ["a", "b", "c"]
    assert "letters: 3letter" in capfd.readouterr().err
    with bar("hidden", 2, "one", shown=False) as done:
        done(None)
    assert not capfd.readouterr().err
