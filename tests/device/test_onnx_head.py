"""A head in onnxruntime: the same payloads, int8 within its bounds, and no program that is another head's."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import compoff
from compoff.artifact import write_folder
from compoff.device.runners.onnx import OWNER, OnnxRunner
from compoff.device.runners.torch import TorchRunner
from compoff.errors import ArtifactError, BackendError, FeatureError
from compoff.onnx_export import to_onnx
from compoff.operations.inspecting import describe, show
from compoff.programs import TorchProgram
from tests.golden_head import GOLDEN, golden_head, golden_inputs, golden_payloads, golden_tail

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def plain() -> compoff.Head:
    return golden_head()


@pytest.fixture(scope="module")
def head(plain: compoff.Head) -> compoff.Head:
    return plain.compile("onnx", threads=1)


@pytest.fixture
def folder(head: compoff.Head, tmp_path: Path) -> Path:
    head.save(tmp_path)
    return tmp_path


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """What a loader gives: inputs and labels."""
    return [(torch.from_numpy(golden_inputs(8)), torch.zeros(8)) for _ in range(count)]


def test_golden_payloads_in_torch(plain: compoff.Head) -> None:
    assert golden_payloads(plain) == GOLDEN


def test_golden_payloads_in_onnxruntime(head: compoff.Head) -> None:
    assert golden_payloads(head) == GOLDEN


def test_compiling_leaves_the_head_as_it_was(plain: compoff.Head, head: compoff.Head) -> None:
    assert isinstance(plain.runner, TorchRunner)
    assert isinstance(head.runner, OnnxRunner)
    assert head.artifact_id == plain.artifact_id
    assert head.manifest.report["onnx"] == {"precision": "fp32", "symbols": 1.0, "deviation": 0.0, "samples": 4}
    assert "onnxruntime" in head.manifest.versions


def test_tensors_in_and_the_tail_understands(head: compoff.Head) -> None:
    x = golden_inputs(2)
    payload = head(torch.from_numpy(x))
    assert payload == head(x)
    assert golden_tail()(payload)["sums"].shape == (2, 4)


def test_loads_with_what_it_was_saved_with(plain: compoff.Head, folder: Path) -> None:
    loaded = compoff.Head.load(folder)
    assert isinstance(loaded.runner, OnnxRunner)
    assert isinstance(compoff.Head.load(folder, runtime="onnx", threads=1).runner, OnnxRunner)
    assert isinstance(compoff.Head.load(folder, runtime="torch").runner, TorchRunner)
    x = golden_inputs(3)
    assert loaded(x) == plain(x)
    assert sorted(loaded.runner.files) == ["head.onnx", "head.pt2"]


def test_a_device_needs_no_program_of_torch(plain: compoff.Head, head: compoff.Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    head.save(tmp_path, torch=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.onnx", "manifest.yaml", "tables.safetensors"]
    loaded, x = compoff.Head.load(tmp_path), golden_inputs(3)
    assert loaded(x) == head(x)
    loaded.save(tmp_path / "again", torch=False)
    assert compoff.Head.load(tmp_path / "again")(x) == head(x)
    with pytest.raises(BackendError, match="holds no program for torch"):
        compoff.Head.load(tmp_path, runtime="torch")
    with pytest.raises(BackendError, match=r"no program for another runtime; save what compile\('onnx'\) gives"):
        plain.save(tmp_path / "none", torch=False)
    with pytest.raises(BackendError, match="torch is 'no'"):
        head.save(tmp_path / "none", torch="no")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_a_head_of_torch_alone_has_no_onnx_program(plain: compoff.Head, tmp_path: Path) -> None:
    plain.save(tmp_path)
    assert isinstance(compoff.Head.load(tmp_path).runner, TorchRunner)
    with pytest.raises(BackendError, match=r"holds no program for onnx, but for torch; .*compile\('onnx'\)"):
        compoff.Head.load(tmp_path, runtime="onnx")


def test_a_loaded_head_compiles_again(folder: Path) -> None:
    again = compoff.Head.load(folder).compile("onnx")
    assert bytes(again(golden_inputs(1))).hex() == GOLDEN["range"][1]


def test_choices_that_are_none(plain: compoff.Head, folder: Path) -> None:
    wrong: Any = "tflite"
    with pytest.raises(BackendError, match="no runtime 'tflite'"):
        compoff.Head.load(folder, runtime=wrong)
    with pytest.raises(BackendError, match="no runtime 'tflite' to compile for"):
        plain.compile(wrong)
    with pytest.raises(BackendError, match="no precision 'tflite'"):
        plain.compile("onnx", precision=wrong)
    with pytest.raises(BackendError, match="executorch has fp32 and its own threads"):
        plain.compile("executorch", precision="int8")
    with pytest.raises(BackendError, match=r"torch\.set_num_threads"):
        compoff.Head.load(folder, runtime="torch", threads=1)


def test_int8_says_how_often_it_agrees(plain: compoff.Head, tmp_path: Path) -> None:
    small = plain.compile("onnx", precision="int8", batches=batches())
    figures = small.manifest.report["onnx"]
    assert figures["precision"] == "int8"
    assert figures["samples"] == 16
    x = golden_inputs(8)
    ours, theirs = small.symbols(x)[0], plain.symbols(x)[0]
    assert figures["symbols"] == pytest.approx(float(np.mean(ours == theirs)))
    assert 0.8 <= figures["symbols"] < 1.0, "if every symbol agrees, this compared fp32 with itself"
    small.save(tmp_path)
    assert compoff.Head.load(tmp_path)(x) == small(x)
    (told,) = describe(tmp_path)
    assert told["compiled"] == {"onnx": figures}
    show([told], Console(file=(shown := io.StringIO()), width=200))
    assert f"int8, {100 * figures['symbols']:.2f} % of the symbols are PyTorch's" in shown.getvalue()
    assert golden_tail()(small(x))["sums"].shape == (8, 4)


def test_what_is_saved_is_what_was_compiled_last(plain: compoff.Head, tmp_path: Path) -> None:
    def integers(head: compoff.Head) -> tuple[str, bool]:
        return head.manifest.report["onnx"]["precision"], b"QuantizeLinear" in head.runner.files["head.onnx"]

    small = plain.compile("onnx").compile("onnx", precision="int8", batches=batches())
    small.save(tmp_path / "small")
    again = compoff.Head.load(tmp_path / "small")
    assert integers(small) == integers(again) == ("int8", True)
    whole = again.compile("onnx")
    whole.save(tmp_path / "whole")
    assert integers(whole) == integers(compoff.Head.load(tmp_path / "whole")) == ("fp32", False)


def test_int8_needs_batches_and_agreement(plain: compoff.Head) -> None:
    with pytest.raises(BackendError, match="pass batches"):
        plain.compile("onnx", precision="int8")
    with pytest.raises(BackendError, match="pass batches"):
        plain.compile("onnx", precision="int8", batches=[])
    with pytest.raises(BackendError, match=r"in int8 under onnx only .* expected at least 100"):
        plain.compile("onnx", precision="int8", batches=batches(), least_agreement=1.0)
    with pytest.raises(FeatureError, match="input 0 is float64"):
        plain.compile("onnx", batches=[golden_inputs(2).astype(np.float64)])
    for one in (golden_inputs(2), torch.from_numpy(golden_inputs(2)), {"x": golden_inputs(2)}):
        with pytest.raises(FeatureError, match=r"batches is a \w+, one batch; expected several: put it in a list"):
            plain.compile("onnx", batches=one)


def test_batches_of_every_form_and_no_more_than_enough(plain: compoff.Head) -> None:
    positional = {"list": [{"leaf": 0}, {"value": None}]}  # as transformers have it: forward(x, labels=None)
    call = {"parameters": ["x", "labels"], "call": {"list": [positional, {"dict": []}]}}
    named = compoff.Head(replace(plain.manifest, call=call, max_batch=512), plain.tables, plain.runner)
    some, labels = torch.from_numpy(golden_inputs(50)), torch.zeros(50)
    forms: list[Any] = [some, some.numpy(), (some, labels), ((some,), labels), {"x": some, "labels": labels}]
    forms += [((), {"x": some}), (((), {"x": some}), labels), ((some,), {"labels": labels})]

    def endless() -> Any:
        while True:
            yield from forms

    compiled = named.compile("onnx", batches=endless())
    assert compiled.manifest.report["onnx"]["samples"] == 550


def test_a_batch_of_more_samples_than_a_payload_holds_is_compared_in_pieces(plain: compoff.Head) -> None:
    narrow = compoff.Head(replace(plain.manifest, max_batch=8), plain.tables, plain.runner)
    compiled = narrow.compile("onnx", batches=[golden_inputs(19)])
    assert compiled.manifest.report["onnx"]["samples"] == 19
    assert narrow.compile("onnx", batches=[golden_inputs(2000)]).manifest.report["onnx"]["samples"] == 512
    with pytest.raises(FeatureError, match=r"the batch holds \[0\] samples; .* in every input, at least 1"):
        narrow.compile("onnx", batches=[golden_inputs(8)[:0]])
    with pytest.raises(FeatureError, match=r"\[9\] samples; .* from 1 to 8: send fewer .* with max_batch=9"):
        narrow(golden_inputs(9))


def test_a_program_of_an_earlier_export_is_not_taken_for_this_ones(plain: compoff.Head, folder: Path) -> None:
    other = compoff.Head(replace(plain.manifest, artifact_id="ab" * 32), plain.tables, plain.runner)
    other.save(folder)
    assert isinstance(compoff.Head.load(folder).runner, TorchRunner)
    with pytest.raises(BackendError, match="holds no program for onnx"):
        compoff.Head.load(folder, runtime="onnx")


@pytest.mark.parametrize("name", ["head.onnx", "head.pt2"])
def test_a_changed_program_is_refused(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=rf"{re.escape(name)}: its SHA-256"):
        compoff.Head.load(folder)


def forged(head: compoff.Head, program: bytes, path: Path) -> Path:
    """A folder whose manifest agrees with a program that does not belong there."""
    write_folder(path, head.manifest, head.tables, {"head.onnx": program})
    return path


def test_a_damaged_program_under_a_right_hash_is_refused(head: compoff.Head, tmp_path: Path) -> None:
    program = head.runner.files["head.onnx"]
    with pytest.raises(BackendError, match=r"cannot load .*head\.onnx"):
        compoff.Head.load(forged(head, program[: len(program) // 2], tmp_path))


def test_another_exports_program_is_refused(head: compoff.Head, tmp_path: Path) -> None:
    other = replace(head.manifest, artifact_id="ab" * 32)
    stranger = compoff.Head(
        other, head.tables, TorchRunner(TorchProgram.load(head.runner.files["head.pt2"], "head.pt2"))
    )
    program = stranger.compile("onnx").runner.files["head.onnx"]
    with pytest.raises(BackendError, match=r"is the program of export abababab, and this head is of export c0ffee01"):
        compoff.Head.load(forged(head, program, tmp_path))


def test_a_program_of_another_shape_is_refused(head: compoff.Head, tmp_path: Path) -> None:
    free = ({0: torch.export.Dim.DYNAMIC},)
    exported = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=free)
    owner = {OWNER: head.manifest.artifact_id}
    program = to_onnx(TorchProgram(exported), "relu", [[golden_inputs(1)]], metadata=owner)[0]
    with pytest.raises(BackendError, match=r"gives .*float32.* the manifest says .*uint8"):
        compoff.Head.load(forged(head, program, tmp_path))


def test_without_the_torch_program_there_is_nothing_to_compile(head: compoff.Head, tmp_path: Path) -> None:
    forged(head, head.runner.files["head.onnx"], tmp_path)
    loaded = compoff.Head.load(tmp_path)
    assert bytes(loaded(golden_inputs(1))).hex() == GOLDEN["range"][1]
    with pytest.raises(BackendError, match=r"no head\.pt2 to compile"):
        loaded.compile("onnx")
    with pytest.raises(BackendError, match="holds no program for torch"):
        compoff.Head.load(tmp_path, runtime="torch")


class Tokens(torch.nn.Module):
    """Attends to the tokens that a mask of whole numbers names; those of a type are embedded beside."""

    def __init__(self, types: int) -> None:
        super().__init__()
        self.words, self.types = torch.nn.Embedding(9, 16), torch.nn.Embedding(types, 16)
        self.block, self.later = (torch.nn.TransformerEncoderLayer(16, 2, 16, batch_first=True) for _ in range(2))
        self.rest = torch.nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        x = self.block(self.words(ids) + self.types(types), src_key_padding_mask=mask == 0)
        x = self.later(x, src_key_padding_mask=mask == 0)
        return self.rest((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize("types", [2, 1])  # with one, as RoBERTa has it, its index is 0 beside a mask that must not be
def test_inputs_that_are_made_up_hide_no_tokens(types: int) -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 9, (2, 5)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    given = ids, mask, torch.zeros_like(ids)
    head, _ = compoff.export(compoff.wrap(Tokens(types), "later", example_input=given), "later")
    compiled = head.compile("onnx")
    assert compiled.manifest.report["onnx"] == {"precision": "fp32", "symbols": 1.0, "deviation": 0.0, "samples": 4}
    assert compiled(*given) == head(*given)


def test_a_model_that_takes_nothing_that_is_made_up_asks_for_batches(
    plain: compoff.Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("expected 5 tokens")

    monkeypatch.setattr(TorchProgram, "run", refuse)
    with pytest.raises(
        BackendError, match=r"takes none of the inputs .*RuntimeError: expected 5 tokens\); give .*batches="
    ):
        plain.compile("onnx")


class Difference(torch.nn.Module):
    """Sends past the split what two nearly equal convolutions differ by: less than a step of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.other = torch.nn.Conv2d(3, 8, 3, padding=1)
        with torch.no_grad():
            self.other.weight.copy_(self.one.weight + 1e-3 * torch.randn(8, 3, 3, 3))
            self.other.bias.copy_(self.one.bias)
        self.block = torch.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.one(x)) - torch.relu(self.other(x))
        return self.block(torch.relu(self.one(x))) + 100 * torch.sin(skip)


def test_what_is_sent_as_it_is_must_not_be_lost_in_integers() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 12, 12)
    model = compoff.wrap(Difference().eval(), "block", example_input=x, skips="send", codec="deepcod")
    head, _ = compoff.export(model, "block")
    assert [spec.dtype for spec in head.manifest.sides] == ["float32"]
    head.compile("onnx", batches=[x])
    with pytest.raises(BackendError, match=r"in int8 .* a tensor that is sent as it is differs .* precision='fp32'"):
        head.compile("onnx", precision="int8", batches=[x], least_agreement=0.0)
