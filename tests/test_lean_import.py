"""Importing compoff costs nothing, and a device without torch can import all that it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "yaml",
    "safetensors",
    "constriction",
    "typer",
    "rich",
    "matplotlib",
    "sklearn",
    "onnxruntime",
)
WITHOUT_TORCH = (
    "compoff",
    "compoff.artifact",
    "compoff.coding",
    "compoff.device",
    "compoff.errors",
    "compoff.structure",
    "compoff.wire",
)


def run(program: str) -> str:
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_importing_compoff_imports_nothing_heavy() -> None:
    assert run(f"import sys, compoff; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_listing_the_public_names_imports_nothing_heavy() -> None:
    assert run(f"import sys, compoff; dir(compoff); print([name for name in {HEAVY} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_where_torch_is_not_installed(module: str) -> None:
    # None in sys.modules makes every "import torch" raise ImportError.
    assert run(f"import sys; sys.modules['torch'] = None; import {module}; print('imported')") == "imported"


def test_modules_of_the_reference_are_there_at_once_and_others_are_not() -> None:
    code = "import compoff; compoff.errors.CompoffError; compoff.coding.huffman; compoff.codec.Geometry; compoff.wrapp"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "module 'compoff' has no attribute 'wrapp'" in answer.stderr
