"""Every example runs to its end, as a user would start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_EXAMPLES = sorted(path.name for path in (_ROOT / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert _EXAMPLES


@pytest.mark.parametrize("name", _EXAMPLES)
def test_example_runs(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [sys.executable, str(_ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
