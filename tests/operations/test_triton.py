"""A tail in Triton's model repository, read back by Triton's own schema."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import ArtifactError, BackendError
from compoff.operations.triton import _config, _with_outputs, export_triton, output_names
from tests.small_artifacts import MANIFEST
from tests.small_networks import tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from compoff.manifest import Manifest


@pytest.fixture(scope="module")
def schema() -> Any:
    """Triton's ModelConfig; from its file, since the package around it needs gRPC."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs Triton's schema: pip install --no-deps tritonclient")
    path = f"{package.submodule_search_locations[0]}/grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(text: str, schema: Any) -> Any:
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


class Two(nn.Module):
    """Two outputs, one of them without axes beside the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.out(torch.relu(self.stem(x)))
        return y, y.argmax(1)


@pytest.fixture(scope="module")
def pair() -> tuple[compoff.Head, compoff.Tail]:
    torch.manual_seed(0)
    model = compoff.wrap(
        Two().eval(), "out", example_input=torch.zeros(2, 8), encoder=tiny_encoder, decoder=tiny_decoder
    )
    head, tail = compoff.export(model, "out", max_batch=16)
    return head, tail.compile("onnx")


def test_the_repository_says_what_the_program_takes_and_gives(
    pair: tuple[compoff.Head, compoff.Tail], schema: Any, tmp_path: Path
) -> None:
    head, tail = pair
    folder = export_triton(tail, tmp_path / "models")
    assert folder == tmp_path / "models" / "Two-out"
    config = parsed((folder / "config.pbtxt").read_text(), schema)
    assert (config.name, config.platform, config.max_batch_size) == ("Two-out", "onnxruntime_onnx", 16)
    assert config.HasField("dynamic_batching")
    assert config.parameters["compoff_artifact_id"].string_value == tail.artifact_id.hex()
    assert [schema.DataType.Name(one.data_type) for one in config.input] == ["TYPE_UINT8"]
    assert tuple(config.input[0].dims) == tail.manifest.codes[0].latent_shape
    assert [schema.DataType.Name(one.data_type) for one in config.output] == ["TYPE_FP32", "TYPE_INT64"]
    assert [list(one.dims) for one in config.output] == [[3], [1]]
    assert config.output[1].HasField("reshape")
    assert list(config.output[1].reshape.shape) == []

    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    payload = head(torch.randn(5, 8))
    given = dict(zip([one.name for one in config.input], tail.tensors(tail.decode(bytes(payload))), strict=True))
    found = session.run([one.name for one in config.output], given)
    for one, expected in zip(found, tail(payload), strict=True):
        np.testing.assert_allclose(one, expected.numpy(), atol=1e-5)


class Named(nn.Module):
    """Outputs by name, one of which others are made from."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.out(self.stem(x)))
        return {"logits": y.softmax(1), "embedding": y, "best": y.argmax(1)}


def test_outputs_are_called_as_the_model_calls_them(schema: Any, tmp_path: Path) -> None:
    model = compoff.wrap(
        Named().eval(), "out", example_input=torch.zeros(2, 8), encoder=tiny_encoder, decoder=tiny_decoder
    )
    head, tail = compoff.export(model, "out", max_batch=16)
    folder = export_triton(tail, tmp_path)
    config = parsed((folder / "config.pbtxt").read_text(), schema)
    assert [one.name for one in config.output] == ["logits", "embedding", "best"]
    program = onnx.load(folder / "1" / "model.onnx")
    onnx.checker.check_model(program, full_check=True)
    assert [one.name for one in program.graph.output] == ["logits", "embedding", "best"]
    assert [one.name for one in program.graph.input] == [one.name for one in config.input]
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    payload = head(torch.randn(5, 8))
    given = dict(zip([one.name for one in config.input], tail.tensors(tail.decode(bytes(payload))), strict=True))
    for name, expected in tail(payload).items():
        np.testing.assert_allclose(session.run([name], given)[0], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "names"),
    [
        ({"dict": [["b", {"leaf": 1}], ["a", {"leaf": 0}]]}, ["a", "b"]),
        ({"namedtuple": {"class": "m:C", "fields": [["a", {"leaf": 0}], ["b", {"leaf": 1}]], "empty": []}}, ["a", "b"]),
        ({"dict": [["a", {"leaf": 0}], ["on", {"value": True}], ["b", {"leaf": 1}]]}, ["a", "b"]),
        ({"dict": [[0, {"leaf": 0}], [1, {"leaf": 1}]]}, []),
        ({"dict": [['a"', {"leaf": 0}], ["b", {"leaf": 1}]]}, []),
        ({"dict": [["a", {"leaf": 0}], ["b", {"tuple": [{"leaf": 1}]}]]}, []),
        ({"tuple": [{"leaf": 0}, {"leaf": 1}]}, []),
        ({}, []),
    ],
)
def test_names_that_a_model_has_for_its_outputs(structure: dict[str, Any], names: list[str]) -> None:
    outputs = MANIFEST.outputs * 2
    assert output_names(dataclasses.replace(MANIFEST, kind="tail", outputs=outputs, structure=structure)) == names


def test_a_name_that_the_program_has_for_something_else_is_left_alone() -> None:
    helper = onnx.helper
    value = functools.partial(helper.make_tensor_value_info, elem_type=1, shape=[1])
    branch = helper.make_graph([helper.make_node("Neg", ["y"], ["inner"])], "branch", [], [value("inner")])
    nodes = [
        helper.make_node("Neg", ["x"], ["y"]),
        helper.make_node("If", ["on"], ["z"], then_branch=branch, else_branch=branch),
    ]
    on = helper.make_tensor_value_info("on", 9, [])
    data = helper.make_model(helper.make_graph(nodes, "g", [value("x"), on], [value("y"), value("z")]))
    for names in (["x", "b"], ["a", "on"], ["a"], []):
        assert _with_outputs(data.SerializeToString(), names) == data.SerializeToString()
    for names, inner in ((["a", "z"], "inner"), (["z", "y"], "inner"), (["inner", "inner_0"], "inner_1")):
        renamed = onnx.load_from_string(_with_outputs(data.SerializeToString(), names))
        assert [one.name for one in renamed.graph.output] == names
        node = renamed.graph.node[1].attribute[0].g.node[0]
        assert ([*node.input], [*node.output]) == ([names[0]], [inner])


def config_of(manifest: Manifest, schema: Any, backend: str = "onnx") -> Any:
    inputs = [f"in{index}" for index in range(len(manifest.codes) + len(manifest.sides))]
    outputs = [f"out{index}" for index in range(len(manifest.outputs))]
    return parsed(_config(manifest, "name", backend, inputs, outputs), schema)


def test_what_has_no_batch_leaves_all_axes_to_the_model(schema: Any) -> None:
    sides = (*MANIFEST.sides, dataclasses.replace(MANIFEST.sides[0], shape=(4, 4), dtype="float64", batched=False))
    config = config_of(dataclasses.replace(MANIFEST, kind="tail", sides=sides), schema, "inductor")
    assert (config.platform, config.max_batch_size) == ("torch_aoti", 0)
    assert not config.HasField("dynamic_batching")
    assert [list(one.dims) for one in config.input] == [[-1, 2, 4, 4], [-1, 1, 9], [-1, 1, 8], [4, 4]]
    names = [schema.DataType.Name(one.data_type) for one in config.input]
    assert names == ["TYPE_UINT8", "TYPE_UINT8", "TYPE_BOOL", "TYPE_FP64"]
    assert list(config.output[0].dims) == [-1, 10]


def test_a_model_that_cannot_be_written_whole_is_not_there(
    pair: tuple[compoff.Head, compoff.Tail], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path, *__: object, **___: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(ArtifactError, match=r"No space left on device.; make room"):
            export_triton(pair[1], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert export_triton(pair[1], tmp_path).is_dir()


def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    pair: tuple[compoff.Head, compoff.Tail], tmp_path: Path
) -> None:
    tail = pair[1]
    for name in ("../up", "a b", ".", "x" * 200, 'quo"te'):
        with pytest.raises(ArtifactError, match="cannot be the name of a model"):
            export_triton(tail, tmp_path / "models", name=name)
    (tmp_path / "models" / "taken").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="is there already"):
        export_triton(tail, tmp_path / "models", name="taken")

    for backend in ("eager", "auto", ["onnx"]):
        with pytest.raises(BackendError, match=r"there is no backend .* for Triton; expected onnx, inductor"):
            export_triton(tail, tmp_path / "models", backend=backend)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="5 cannot be the name of a model"):
        export_triton(tail, tmp_path / "models", name=5)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="repository is None; expected a path"):
        export_triton(tail, None)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ArtifactError, match=r"file' is a file; give the folder of Triton's models"):
        export_triton(tail, tmp_path / "file")

    running: Any = SimpleNamespace(files={})
    with pytest.raises(BackendError, match="only a program can go to Triton"):
        export_triton(compoff.Tail(tail.manifest, tail.tables, running), tmp_path / "models")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["taken"]
