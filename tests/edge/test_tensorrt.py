"""TensorRT: what can be known of it without a GPU, and where there is one, its answers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.edge.backends.engine import Engine
from compoff.edge.backends.graphs import prepared
from compoff.edge.backends.samples import sample_parts
from compoff.edge.backends.tensorrt import TensorrtBackend, narrowed
from compoff.errors import BackendError
from compoff.programs import TorchProgram
from tests.small_networks import tiny_decoder, tiny_encoder

ROOT = Path(__file__).parent.parent.parent
INSTALLED = importlib.util.find_spec("torch_tensorrt") is not None
ON_GPU = pytest.mark.skipif(bool(TensorrtBackend.missing()), reason="needs torch_tensorrt, TensorRT and a GPU")


def export(seed: int = 0, size: int = 8, max_batch: int = 16) -> tuple[compoff.Head, compoff.Tail]:
    torch.manual_seed(seed)
    layers = [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(1),
    ]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * size * size, 5)).eval()
    model = compoff.wrap(
        net, "1", example_input=torch.zeros(2, 3, size, size), encoder=tiny_encoder, decoder=tiny_decoder
    )
    return compoff.export(model, "1", max_batch=max_batch)


@pytest.mark.skipif(not INSTALLED, reason="needs torch_tensorrt: pip install --no-deps torch-tensorrt dllist")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-in is for machines without a GPU")
def test_dry_run_covers_every_operator_in_one_engine_in_half_precision() -> None:
    command = [sys.executable, str(Path(__file__).parent / "tensorrt_dry_run.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=_with_root())
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert list(results) == ["deepcod", "transform"]
    for result in results.values():
        assert result["coverage"] == 100.0
        assert len(result["input"]) == 1
        assert result["input"][0].startswith("((min=1, max=64), ")
        assert result["input"][0].endswith("@uint8")
        assert result["dtype"] == "torch.float16"
        assert 0 < result["deviation"] < 0.01


def _with_root() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def narrowed_program(tail: compoff.Tail) -> tuple[Any, bool]:
    exported = TorchProgram.load(tail.backend.files["tail.pt2"], "tail.pt2").exported
    exported = prepared(exported, tail.manifest, decompose=False)
    return exported, narrowed(exported)


@pytest.mark.parametrize("max_batch", [1, 16])
def test_the_prepared_program_takes_every_batch_and_names_no_size(max_batch: int) -> None:
    tail = export(max_batch=max_batch)[1]
    exported, right = narrowed_program(tail)
    assert right
    assert [(low.lower, low.upper) for low in exported.range_constraints.values()] == [(1, max_batch)][: max_batch - 1]
    assert not [node for node in exported.graph.nodes if "sym_size" in str(node.target)]
    module = exported.module(check_guards=False)
    for batch in {1, max_batch}:
        parts = sample_parts(tail.manifest, batch)
        (expected,), (found,) = tail.backend.run(parts), module(*map(torch.from_numpy, parts))
        assert found.shape == expected.shape
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_whole_numbers_behind_the_cut_keep_full_precision() -> None:
    example = (torch.zeros(2, 8), torch.zeros(2, 3, dtype=torch.int64))
    model = compoff.wrap(Lookup(), "trunk", example_input=example, encoder=tiny_encoder, decoder=tiny_decoder)
    tail = compoff.export(model, "trunk")[1]
    assert [spec.dtype for spec in tail.manifest.sides] == ["int64"]
    exported, right = narrowed_program(tail)
    assert not right
    parts = sample_parts(tail.manifest, 3)
    (expected,) = tail.backend.run(parts)
    found = exported.module(check_guards=False)(*map(torch.from_numpy, parts))[0]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-5)


class Lookup(nn.Module):
    """Whole numbers that are read behind the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.trunk, self.words = nn.Linear(8, 8), nn.Linear(8, 4), nn.Embedding(9, 4)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.trunk(torch.relu(self.stem(x))) + self.words(ids).sum(1)


@pytest.mark.skipif(not TensorrtBackend.missing(), reason="TensorRT is here")
def test_without_tensorrt_the_error_says_what_is_missing(tmp_path: Path) -> None:
    tail = export()[1]
    tail.save(tmp_path)
    for device in ("cpu", None):
        with pytest.raises(BackendError, match=r"'tensorrt' cannot be used.*(not installed|no CUDA device)"):
            tail.compile("tensorrt", device=device)
    with pytest.raises(BackendError, match=r"not installed|no CUDA device"):
        compoff.Tail.load(tmp_path, backend="tensorrt")


def test_the_default_device_is_none_of_an_engine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(__version__="none", runtime=SimpleNamespace(enable_cudagraphs=contextlib.nullcontext))
    monkeypatch.setattr("compoff.edge.backends.tensorrt._torch_tensorrt", lambda: runtime)
    tail = export()[1]
    source, parts = tail.backend.files["tail.pt2"], sample_parts(tail.manifest, 2)
    with torch.device("meta"):
        backend = TensorrtBackend(Engine("tensorrt", {}, source, source), tail.manifest, "cpu")
    np.testing.assert_array_equal(backend.run(parts)[0], tail.backend.run(parts)[0])


def test_only_weights_of_the_same_shapes_are_taken_over() -> None:
    old, new = (
        compoff.export(
            compoff.wrap(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), "1", example_input=x, channels=channels), "1"
        )[1]
        for x, channels in ((torch.zeros(2, 8), 4), (torch.zeros(2, 8), 5))
    )
    with pytest.raises(BackendError, match=r"compiled for symbols of \[\(4,\)\], and this tail takes \[\(5,\)\]"):
        new.compile("tensorrt", like=old)


def test_only_tensorrt_takes_over_weights() -> None:
    tail = export()[1]
    with pytest.raises(BackendError, match="only an engine of TensorRT takes over other weights"):
        tail.compile("inductor", like=tail)


@ON_GPU
def test_answers_on_a_gpu_as_pytorch_does_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    head, tail = export()
    fast = tail.compile("tensorrt")
    fast.save(tmp_path)
    again = compoff.Tail.load(tmp_path, device="cuda", backend="tensorrt")
    assert "engine for this machine" in again.choice.reason
    for batch in (1, 8, 3, 16, 1):
        payload = head(torch.randn(batch, 3, 8, 8))
        expected = tail(payload)
        for one in (fast, again):
            assert one(payload).dtype == expected.dtype
            torch.testing.assert_close(one(payload), expected, rtol=0.05, atol=0.05)


@ON_GPU
def test_an_engine_takes_over_the_weights_of_another_fit() -> None:
    (_, old), (head, tail) = export(0), export(1)
    fast = tail.compile("tensorrt", like=old.compile("tensorrt"))
    payload = head(torch.randn(4, 3, 8, 8))
    torch.testing.assert_close(fast(payload), tail(payload), rtol=0.05, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_inductor_on_a_gpu_runs_as_cuda_graphs(tmp_path: Path) -> None:
    head, tail = export()
    fast = tail.compile("inductor", device="cuda")
    fast.save(tmp_path)
    again = compoff.Tail.load(tmp_path, device="cuda", backend="inductor")
    for batch in (1, 8, 3, 16, 1, 8):
        payload = head(torch.randn(batch, 3, 8, 8))
        for one in (fast, again):
            torch.testing.assert_close(one(payload), tail(payload), rtol=1e-2, atol=1e-3)
