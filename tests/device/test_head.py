"""Head: what it takes, what it refuses, and that it comes back from its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import compoff
from compoff.errors import ArtifactError, BackendError, FeatureError
from tests.small_artifacts import forge
from tests.small_networks import OptionalInputs, Plain, TwoInputs, tiny_decoder, tiny_encoder

ROOT = Path(__file__).parent.parent.parent


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


@pytest.fixture(scope="module")
def head() -> compoff.Head:
    torch.manual_seed(0)
    wrapped = compoff.wrap(Plain(), "block1", example_input=images(), channels=4, codec="deepcod")
    return compoff.export(wrapped, "block1", max_batch=16)[0]


@pytest.fixture(scope="module")
def two() -> compoff.Head:
    torch.manual_seed(0)
    wrapped = compoff.wrap(
        TwoInputs(), "block1", example_input=(images(), images()), encoder=tiny_encoder, decoder=tiny_decoder
    )
    return compoff.export(wrapped, "block1")[0]


def test_says_what_it_is(head: compoff.Head) -> None:
    assert head.split == "block1"
    assert len(head.artifact_id) == 32
    assert repr(head) == f"Head(Plain at 'block1', id {head.artifact_id.hex()[:8]})"


def test_payload_holds_the_symbols(head: compoff.Head) -> None:
    x = images(5)
    payload = head(x)
    assert (payload.batch_size, payload.artifact_id) == (5, head.artifact_id)
    (symbols,) = head.symbols(x)
    assert (symbols.dtype, symbols.shape) == (np.uint8, (5, 4, 2, 2))
    assert np.array_equal(head.payload_format.decode(bytes(payload)).symbols[0], symbols)


@pytest.mark.parametrize("coding", ["range", "huffman", "raw"])
def test_every_coding_carries_the_same_symbols(head: compoff.Head, coding: Any) -> None:
    x = images(3)
    assert np.array_equal(head.payload_format.decode(head(x, coding=coding)).symbols[0], head.symbols(x)[0])


def test_no_coding_is_the_shortest(head: compoff.Head) -> None:
    x = images(2)
    head.check(x, coding=None)
    assert bytes(head(x, coding=None)) == bytes(head(x, coding="range")) == bytes(head(x))


def test_the_only_quality_is_the_best(head: compoff.Head) -> None:
    x = images()
    assert head(x, quality=0) == head(x)
    for quality in (1, -1):
        with pytest.raises(FeatureError, match=f"there is no quality {quality}"):
            head(x, quality=quality)


def readonly(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def test_takes_tensors_and_arrays_of_any_layout(head: compoff.Head) -> None:
    x = images(3)
    expected = head.symbols(x)
    array = x.numpy()
    for same in (
        array,
        readonly(array.copy()),
        np.asfortranarray(array),
        array[::-1][::-1],
        x.to(memory_format=torch.channels_last),
        x.clone().requires_grad_(),
    ):
        assert np.array_equal(head.symbols(same)[0], expected[0])


def test_takes_a_field_of_records_of_odd_length(head: compoff.Head) -> None:
    x = images(3)
    records = np.zeros(3, [("time", "u1"), ("image", "f4", (3, 8, 8))])
    records["image"] = x.numpy()
    for count in (1, 3):
        assert np.array_equal(head.symbols(records["image"][:count])[0], head.symbols(x[:count])[0])


class Words(torch.nn.Module):
    """Looks up rows by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.body = torch.nn.Embedding(9, 8), torch.nn.Linear(8, 4)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.body(self.rows(numbers).relu())


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_number_that_stands_for_no_row_is_refused(runtime: Any) -> None:
    right = torch.tensor([[0, 8, 3]])
    wrapped = compoff.wrap(Words().eval(), "body", example_input=right.repeat(2, 1), codec="deepcod")
    head = compoff.export(wrapped, "body")[0]
    if runtime == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
        plain, head = head, head.compile("onnx")
        assert head(right) == plain(right)
    for wrong in (-1, -9, 9, 2**40):
        with pytest.raises(
            (FeatureError, BackendError), match=r"stands for nothing that the model has|out of data bounds"
        ):
            head(torch.tensor([[0, wrong, 3]]))


def test_leaves_its_input_alone(head: compoff.Head) -> None:
    x = images()
    before = x.clone()
    head(x)
    assert torch.equal(x, before)


def test_several_inputs_come_in_the_models_order(two: compoff.Head) -> None:
    x, y = images(3), images(3)
    assert not np.array_equal(two.symbols(x, y)[0], two.symbols(y, x)[0])
    assert two(x, y.numpy()).batch_size == 3


def test_inputs_without_a_batch_and_constants() -> None:
    wrapped = compoff.wrap(OptionalInputs(), "block1", encoder=tiny_encoder, decoder=tiny_decoder).eval()
    wrapped(images(4), scale=torch.ones(8), double=True)
    head, tail = compoff.export(wrapped, "block1")
    x, scale = images(3), torch.rand(8)
    with wrapped.at("block1"):
        expected = wrapped(x, None, scale, double=True)
    for payload in (head(x, scale=scale), head(x, None, scale), head(x, None, scale, double=True)):
        torch.testing.assert_close(tail(payload), expected, rtol=0, atol=1e-5)
    with pytest.raises(FeatureError, match=r"input 1 has shape \(3, 8\); expected float32 of shape \(8,\)"):
        head(x, scale=torch.rand(3, 8))
    with pytest.raises(FeatureError, match="by position the model takes tensor 1 for 'mask', which is another"):
        head(x, scale)  # the model would multiply by it as its mask


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((), r"the head takes \(x: float32 of \(batch, 3, 8, 8\)\), .*; 'x' must be given"),
        ((images(), images()), "; 2 were given by position"),
        (("picture.png",), "input 0 is a str; expected a tensor or a numpy array"),
        (([1.0],), "input 0 is a list; expected a tensor"),
        (([images()],), "input 0 is a list; expected a tensor"),
        ((None,), "input 0 is a NoneType; expected a tensor"),
        ((images().double(),), r"input 0 is float64; expected float32 of shape \('batch', 3, 8, 8\): convert it"),
        ((images().to(torch.int64),), "input 0 is int64"),
        ((images().numpy().astype(">f4"),), "input 0 is >f4"),
        ((images().bfloat16(),), r"torch\.bfloat16.* numpy does not know"),
        ((images().to_sparse(),), r"torch\.sparse_coo.* numpy does not know"),
        ((images()[0],), r"input 0 has shape \(3, 8, 8\)"),
        ((torch.tensor(1.0),), r"input 0 has shape \(\)"),
        ((torch.randn(2, 3, 8, 9),), r"input 0 has shape \(2, 3, 8, 9\)"),
        ((images(0),), r"the batch holds \[0\] samples; expected .* from 1 to 16"),
        ((np.ma.masked_invalid(images().numpy()),), r"input 0 is a masked array, .*; give array\.filled"),
        ((images(17),), r"the batch holds \[17\] samples"),
    ],
)
def test_unusable_inputs_say_why(head: compoff.Head, inputs: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(FeatureError, match=reason):
        head(*inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_no_symbol_stands_for_is_refused(head: compoff.Head, value: float) -> None:
    x = images()
    x[1].flatten()[3] = value
    with pytest.raises(compoff.FeatureError, match="NaN or infinity"):
        head(x)


def test_inputs_of_different_batches_are_refused(two: compoff.Head) -> None:
    with pytest.raises(FeatureError, match=r"the batch holds \[2, 3\] samples; expected the same number in"):
        two(images(2), images(3))


def test_comes_back_from_its_folder(head: compoff.Head, tmp_path: Path) -> None:
    head.save(tmp_path / "head")
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [
        "head.pt2",
        "manifest.yaml",
        "tables.safetensors",
    ]
    x = images(3)
    for folder in (tmp_path, str(tmp_path / "head")):
        again = compoff.Head.load(folder)
        assert again.manifest == head.manifest
        assert bytes(again(x)) == bytes(head(x))
    again.save(tmp_path / "again")
    for path in (tmp_path / "head").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


SPEC = {"shape": [3, 8, 8], "dtype": "float32", "batched": True}


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [SPEC, {**SPEC, "shape": [3, 8, 8]}],
        [{**SPEC, "shape": [3, 8, 9]}],
        [{**SPEC, "shape": [3, 8]}],
        [{**SPEC, "dtype": "int64"}],
        [{**SPEC, "batched": False}],
    ],
)
def test_a_manifest_of_other_inputs_than_the_programs_is_refused(
    head: compoff.Head, tmp_path: Path, inputs: list[dict[str, Any]]
) -> None:
    head.save(tmp_path)
    forge(tmp_path, lambda content: content.update(inputs=[SPEC], call={}))
    x = images()
    assert compoff.Head.load(tmp_path)(x) == head(x)
    forge(tmp_path, lambda content: content.update(inputs=inputs))
    with pytest.raises(ArtifactError, match=r"head\.pt2 takes .*, the manifest says .*; export again"):
        compoff.Head.load(tmp_path)


def test_300_flipped_bytes_are_found(head: compoff.Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    random = np.random.default_rng(0)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        for place in random.integers(len(data), size=100).tolist():
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
            with pytest.raises(ArtifactError, match=path.name):
                compoff.Head.load(tmp_path)
        path.write_bytes(data)
    assert compoff.Head.load(tmp_path).manifest == head.manifest


def test_a_tail_is_no_head(head: compoff.Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    with pytest.raises(ArtifactError, match="kind is 'head', expected 'tail'"):
        compoff.Tail.load(tmp_path)


LOAD_WITHOUT_TORCH = """
import importlib.util, sys
sys.modules["torch"] = None
import numpy as np
from compoff.device.head import Head
from compoff.errors import BackendError
try:
    Head.load(sys.argv[1])
except BackendError as error:
    print(error)
"""


def test_without_torch_the_missing_runtime_is_named(head: compoff.Head, tmp_path: Path) -> None:
    head.save(tmp_path)
    command = [sys.executable, "-c", LOAD_WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "needs torch, which is not installed" in done.stdout


@pytest.mark.parametrize("module", ["compoff.device.head", "compoff.artifact", "compoff.structure"])
def test_imports_no_torch(module: str) -> None:
    program = f"import sys; import {module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


LOAD_WITHOUT_THE_MODEL = """
import sys
for name in ("tests", "compoff.codec", "compoff.cutting", "compoff.wrapping", "compoff.wrapped", "compoff.gates"):
    sys.modules[name] = None
import numpy as np
import torch, compoff
head, tail = compoff.Head.load(sys.argv[1]), compoff.Tail.load(sys.argv[1])
x = np.load(sys.argv[1] + "/x.npy")
np.save(sys.argv[1] + "/y.npy", tail(bytes(head(x))).numpy())
"""


def test_runs_where_the_models_class_cannot_be_imported(tmp_path: Path) -> None:
    wrapped = compoff.wrap(Plain(), "block1", example_input=images(), codec="deepcod").eval()
    head, tail = compoff.export(wrapped, "block1")
    head.save(tmp_path / "head")
    tail.save(tmp_path / "tail")
    x = images(3)
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, "-W", "error", "-c", LOAD_WITHOUT_THE_MODEL, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    with wrapped.at("block1"), torch.no_grad():
        expected = wrapped(x)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "y.npy")), expected, rtol=0, atol=1e-5)
