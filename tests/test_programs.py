"""Exported programs as bytes, and run on arrays."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compoff.errors import ArtifactError, BackendError
from compoff.programs import TorchProgram


class Several(nn.Module):
    """Two outputs of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))

    def forward(self, x: Tensor) -> Any:
        return x * self.weight, x > 0


def exported() -> torch.export.ExportedProgram:
    example = torch.zeros(2, 3)
    return torch.export.export(Several(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def test_runs_on_arrays_at_any_batch() -> None:
    program = TorchProgram(exported())
    for batch in (1, 2, 5):
        product, positive = program.run([np.full((batch, 3), 2.0, np.float32)])
        assert product.tolist() == [[0.0, 2.0, 4.0]] * batch
        assert positive.dtype == np.bool_
        assert positive.all()


class Constant(torch.nn.Module):
    """Returns a buffer of its own beside what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        return x + 1, self.anchors, self.anchors[1:]


def test_what_the_caller_does_to_an_answer_does_not_reach_the_program() -> None:
    program = TorchProgram(torch.export.export(Constant(), (torch.zeros(2),)))
    for array in program.run([np.zeros(2, np.float32)]):
        array[:] = 9
    assert [array.tolist() for array in program.run([np.zeros(2, np.float32)])] == [[1, 1], [0, 1, 2, 3], [1, 2, 3]]


def test_one_output_is_a_list_of_one() -> None:
    program = TorchProgram(torch.export.export(nn.ReLU(), (torch.zeros(3),)))
    (only,) = program.run([np.array([-1, 0, 1], np.float32)])
    assert only.tolist() == [0.0, 0.0, 1.0]


class Code(nn.Module):
    """Symbols with a layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(2, 8, 1)

    def forward(self, x: Tensor) -> Any:
        return (self.layer(x).round().clamp(-3, 3) + 3).to(torch.uint8)


def test_running_fewer_channels_says_nothing_of_pytorchs_own_deprecations() -> None:
    program = TorchProgram(torch.export.export(Code(), (torch.zeros(2, 2, 4),)).run_decompositions({}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (part,) = program.run([np.ones((2, 2, 4), np.float32)], (3,))
    assert part.shape == (2, 3, 4)


def test_arrays_that_cannot_be_written_to_are_taken_and_left_alone() -> None:
    array = np.ones((2, 3), np.float32)
    array.flags.writeable = False
    assert TorchProgram(exported()).run([array])[0].tolist() == [[0.0, 1.0, 2.0]] * 2
    assert array.all()


def test_threads_may_load_at_the_same_time() -> None:
    data = TorchProgram(exported()).to_bytes()
    with ThreadPoolExecutor(8) as pool:
        programs = list(pool.map(lambda _: TorchProgram.load(data, "x.pt2"), range(16)))
    for program in programs:
        assert program.run([np.ones((1, 3), np.float32)])[0].tolist() == [[0.0, 1.0, 2.0]]


def test_needs_no_gradients() -> None:
    assert not torch.is_inference_mode_enabled()
    result = TorchProgram(exported()).run([np.ones((2, 3), np.float32)])
    assert isinstance(result[0], np.ndarray)
    assert not torch.is_inference_mode_enabled()


def test_bytes_hold_the_same_program() -> None:
    program = TorchProgram(exported())
    data = program.to_bytes()
    assert data[:2] == b"PK"
    again = TorchProgram.load(data, "program.pt2")
    assert again.to_bytes() is data
    array = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for ours, theirs in zip(program.run([array]), again.run([array]), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a program" * 100, bytes(10_000)])
def test_bytes_that_are_no_program_are_errors_of_ours(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"folder/head\.pt2: torch 2\S+ cannot load this program"):
        TorchProgram.load(data, "folder/head.pt2")


def test_a_module_that_pytorch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: object) -> None:
        raise ModuleNotFoundError("No module named 'sympy'", name="sympy")

    monkeypatch.setattr(torch.export, "load", load)
    with pytest.raises(BackendError, match="PyTorch needs sympy, which is missing here; install it"):
        TorchProgram.load(b"", "folder/head.pt2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(BackendError, match=f"cannot run on device '{device}'"):
        TorchProgram(exported(), device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_on_another_device_and_saves_for_the_cpu() -> None:
    here, there = TorchProgram(exported()), TorchProgram(exported(), device="cuda")
    array = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert np.allclose(here.run([array])[0], there.run([array])[0])
    assert np.array_equal(TorchProgram.load(there.to_bytes(), "again").run([array])[0], here.run([array])[0])


def test_the_default_device_is_none_of_a_file_s() -> None:
    data = TorchProgram(torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))).to_bytes()
    with torch.device("meta"):
        program = TorchProgram.load(data, "head.pt2")
        assert program.run([np.ones((1, 3), np.float32)])[0].shape == (1, 2)
    assert program.to_bytes() == data
