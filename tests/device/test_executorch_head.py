"""A head under ExecuTorch: the same payloads, and no program that is damaged or another head's.

Skips without executorch, which is not among what the tests install: pip install "compoff[executorch]".
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import compoff
from compoff.artifact import write_folder
from compoff.errors import BackendError
from tests.golden_head import GOLDEN, golden_head, golden_inputs, golden_payloads

if TYPE_CHECKING:
    from pathlib import Path

needs_executorch = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="executorch is not installed"
)


@pytest.fixture(scope="module")
def head() -> compoff.Head:
    return golden_head().compile("executorch")


@needs_executorch
def test_golden_payloads_in_executorch(head: compoff.Head) -> None:
    assert golden_payloads(head) == GOLDEN
    assert head.manifest.report["executorch"]["symbols"] == 1.0
    assert "executorch" in head.manifest.versions


@needs_executorch
def test_comes_back_from_its_folder(head: compoff.Head, tmp_path: Path) -> None:
    head.compile("onnx").save(tmp_path)
    assert list(compoff.Head.load(tmp_path).runner.files) == ["head.onnx", "head.pte", "head.pt2"]
    loaded = compoff.Head.load(tmp_path, runtime="executorch")
    assert next(iter(loaded.runner.files)) == "head.pte"
    assert bytes(loaded(golden_inputs(3))).hex() == GOLDEN["range"][3]


@needs_executorch
def test_damaged_and_foreign_programs_are_refused(head: compoff.Head, tmp_path: Path) -> None:
    program = head.runner.files["head.pte"]
    for number, data in enumerate((program[: len(program) // 2], b"", b"nothing of the kind" * 9)):
        write_folder(tmp_path / str(number), head.manifest, head.tables, {"head.pte": data})
        with pytest.raises(BackendError, match="ExecuTorch cannot load"):
            compoff.Head.load(tmp_path / str(number))
    other = replace(head.manifest, artifact_id="ab" * 32)
    write_folder(tmp_path / "other", other, head.tables, {"head.pte": program})
    with pytest.raises(BackendError, match="is the program of export c0ffee01, and this head is of export abababab"):
        compoff.Head.load(tmp_path / "other")


@needs_executorch
def test_a_program_that_fails_says_so(head: compoff.Head) -> None:
    with pytest.raises(BackendError, match=r"ExecuTorch failed in head\.pte"):
        head.runner.run([np.zeros((1, 3, 9, 9), np.float32)])


def test_without_executorch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("executorch", "executorch.exir", "executorch.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    plain = golden_head()
    with pytest.raises(BackendError, match=r"compoff\[executorch\]"):
        plain.compile("executorch")
    write_folder(tmp_path, plain.manifest, plain.tables, {"head.pte": b"some program"})
    with pytest.raises(BackendError, match="needs executorch, which is not installed"):
        compoff.Head.load(tmp_path)
