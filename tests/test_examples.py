"""Every example runs to its end, as a user would start it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
# As `python FILE` does, after torchvision has been made importable beside a CPU build of torch: Lightning imports it.
_RUN = """
import runpy, sys
if "lightning" in sys.argv[1]:
    from benchmarks.zoo.library_shim import import_torchvision
    import_torchvision()
runpy.run_path(sys.argv[1], run_name="__main__")
"""
_EXAMPLES = sorted(path.name for path in (_ROOT / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert _EXAMPLES


@pytest.mark.parametrize("name", _EXAMPLES)
def test_example_runs(name: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(_ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", ["accelerate_script.py", "lightning_script.py"])
def test_a_script_of_another_library_has_three_lines_more(name: str) -> None:
    lines = (_ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()
    added = [line for line in lines if line.endswith("# +")]
    assert len(added) == 3
    rest = [line for line in lines if line not in added and "compoff" in line]
    assert rest == ["from compoff.demo.networks import DigitsNet"]  # the script's own model
