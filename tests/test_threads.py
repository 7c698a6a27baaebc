"""PyTorch's threads in a forked child: they are not waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from compoff.programs import TorchProgram
from compoff.threads import has_lost_threads, work_without_lost_threads
from tests.wire.forking import in_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def test_only_the_thread_that_forked_has_lost_them() -> None:
    assert not has_lost_threads()
    assert in_child(has_lost_threads) == "True"


def test_the_parent_keeps_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    work_without_lost_threads()
    assert torch.get_num_threads() == before


def test_a_program_that_ran_before_a_fork_answers_in_the_child() -> None:
    # In a process of its own, which may have two threads.
    code = """
        import logging, os
        import numpy as np, torch
        from compoff.programs import TorchProgram
        from tests.wire.forking import in_child
        logging.basicConfig(format="%(message)s")
        torch.set_num_threads(2)
        exported = torch.export.export(torch.nn.Conv2d(8, 32, 3), (torch.zeros(8, 8, 32, 32),))
        program, x = TorchProgram(exported), [np.ones((8, 8, 32, 32), np.float32)]
        expected = program.run(x)[0]
        print(in_child(lambda: (np.allclose(program.run(x)[0], expected), program.run(x)[0].shape)))
        print(torch.get_num_threads())
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, env=environment
    )
    assert made.stdout.splitlines() == ["(True, (8, 32, 30, 30))", "2"], made.stderr
    assert made.stderr.count("computes in one thread") == 1


def test_one_thread_stays_one() -> None:
    exported = torch.export.export(torch.nn.ReLU(), (torch.zeros(3),))
    program = TorchProgram(exported)
    said = in_child(lambda: (program.run([np.ones(3, np.float32)])[0].tolist(), torch.get_num_threads()))
    assert said == "([1.0, 1.0, 1.0], 1)"
