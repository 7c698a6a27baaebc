"""A tail as a model of NVIDIA's Triton Inference Server: a repository with the program and its config.pbtxt.

Triton gets what the tail's program gets, symbols and side tensors; whoever asks it decodes payloads first, with
`Tail.decode` and `Tail.tensors`. Knows the form of the repository and nothing of what the program computes.
"""

from __future__ import annotations

import importlib
import re
import secrets
import shutil
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from compoff.checks import check_path, reaching
from compoff.edge.backends.eager import PROGRAM
from compoff.errors import ArtifactError, BackendError
from compoff.structure import entry_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from compoff.edge.tail import Tail
    from compoff.manifest import Manifest, TensorSpec

__all__ = ["export_triton", "output_names"]

_Backend: TypeAlias = Literal["onnx", "inductor"]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_OUTPUT = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,99}")
_FLOATS = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}
_PLATFORMS = {"onnx": ("onnxruntime_onnx", "model.onnx"), "inductor": ("torch_aoti", "model.pt2")}


def export_triton(tail: Tail, repository: str | Path, *, name: str = "", backend: _Backend = "onnx") -> Path:
    """Write a tail into a model repository.

    In ONNX the outputs are called as the model calls them, where it returns a dict or an object with fields of tensors.

    Args:
        tail: The tail; one that is compiled for `backend` is taken as it is, another is compiled.
        repository: The folder of models; made if need be.
        name: What Triton calls the model; model and split point unless told.
        backend: ``"onnx"`` for Triton's ONNX Runtime, which also runs it on GPUs; ``"inductor"`` for its PyTorch
            backend, which needs the same version of torch and the processor that it was compiled on.

    Returns:
        The model's folder.

    Raises:
        BackendError: There is no such backend, the tail cannot be compiled, or its outputs are known only once it has
            answered.
        ArtifactError: `name` cannot be a folder's, there is such a model already, or it cannot be written, as where
            `repository` is no folder; nothing of it is there then.

    Source: the model repository and ``ModelConfig`` of Triton Inference Server.
    """
    if backend not in get_args(_Backend):
        raise BackendError(f"there is no backend {backend!r:.80} for Triton; expected {', '.join(get_args(_Backend))}")
    place = check_path("repository", repository, ArtifactError)
    name = name or re.sub(r"[^A-Za-z0-9_.-]", "_", f"{tail.manifest.model}-{tail.split}")
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:  # pyright: ignore[reportUnnecessaryIsInstance] - a user's mistake all the same
        raise ArtifactError(f"{name!r:.80} cannot be the name of a model; use letters, digits, '_', '-' and '.'")
    if PROGRAM not in tail.backend.files:
        raise BackendError(f"the tail of {tail.manifest.model} runs the model itself; only a program can go to Triton")
    folder = place / name
    with reaching(folder, ArtifactError):
        if place.exists() and not place.is_dir():
            raise ArtifactError(f"'{place}' is a file; give the folder of Triton's models")
        taken = folder.exists()
    if taken:
        raise ArtifactError(f"'{folder}' is there already; give another name, or take it away first")
    if tail.choice.backend != backend:
        tail = tail.compile(backend)
    data = tail.backend.files[f"engine.{backend}.bin"]
    if backend == "onnx":
        data = _with_outputs(data, output_names(tail.manifest))
    config = _config(tail.manifest, name, backend, *_names(data, tail.manifest, backend))
    # A server that watches the repository sees whole models only.
    draft = place / f".{name}.{secrets.token_hex(4)}.part"
    try:
        (draft / "1").mkdir(parents=True)
        (draft / "1" / _PLATFORMS[backend][1]).write_bytes(data)
        (draft / "config.pbtxt").write_text(config, encoding="utf-8")
        draft.rename(folder)
    except OSError as error:
        raise ArtifactError(
            f"the model cannot be written in '{place}' ({error.strerror or error}); make room, or give another folder"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def output_names(manifest: Manifest) -> list[str]:
    """What the model itself calls its outputs.

    Args:
        manifest: What the tail is.

    Returns:
        A name for each tensor, in order; none at all where not every one has a key or a field of its own at the top,
        or where one could not stand in Triton's files.

    Examples:
        >>> from dataclasses import replace
        >>> from compoff.manifest import Manifest, TensorSpec
        >>> outputs = (TensorSpec((10,), "float32"), TensorSpec((32,), "float32"))
        >>> structure = {"dict": [["logits", {"leaf": 0}], ["embedding", {"leaf": 1}]]}
        >>> manifest = Manifest("tail", "", "layer1", "Net", (), outputs, structure, (), (), 8)
        >>> output_names(manifest), output_names(replace(manifest, structure={"leaf": 0}))
        (['logits', 'embedding'], [])
    """
    kind, content = entry_of(manifest.structure)
    fields: Any = content if kind == "dict" else []
    if kind in ("namedtuple", "dataclass", "mapping"):
        fields = content["fields"]
    named: dict[int, Any] = {part["leaf"]: key for key, part in fields if "leaf" in part}
    names = [named.get(index) for index in range(len(manifest.outputs))]
    right = len({*names}) == len(names) and all(isinstance(one, str) and _OUTPUT.fullmatch(one) for one in names)
    return cast("list[str]", names) if right else []


def _with_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """A program in ONNX whose outputs have other names; as it was where its inputs or weights have these."""
    model: Any = importlib.import_module("onnx").load_from_string(data)
    found = [one.name for one in model.graph.output]
    kept = {one.name for one in (*model.graph.input, *model.graph.initializer)}
    if len(names) != len(found) or len({*found}) < len(found) or kept & {*found, *names}:
        return data
    new = dict(zip(found, names, strict=True))
    taken = {name for graph in _graphs(model.graph) for name in _values(graph)}
    for name in sorted(({*names} & taken) - {*found}):  # a value within has it, and gives way
        new[name] = next(one for one in (f"{name}_{index}" for index in count()) if one not in {*taken, *names})
    for graph in _graphs(model.graph):
        for one in (*graph.input, *graph.initializer, *graph.output, *graph.value_info):
            one.name = new.get(one.name, one.name)
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
    return model.SerializeToString(deterministic=True)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those within it, which see its values by their names."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    yield from _graphs(inner)


def _values(graph: Any) -> Iterator[str]:
    for one in (*graph.input, *graph.initializer, *graph.output, *graph.value_info):
        yield one.name
    for node in graph.node:
        yield from (*node.input, *node.output)


def _names(data: bytes, manifest: Manifest, backend: str) -> tuple[list[str], list[str]]:
    """What inputs and outputs are called: as the graph calls them, or by the convention of Triton's PyTorch backend."""
    if backend == "onnx":
        graph: Any = importlib.import_module("onnx").load_from_string(data).graph
        return [one.name for one in graph.input], [one.name for one in graph.output]
    inputs = range(len(manifest.codes) + len(manifest.sides))
    return [f"INPUT__{index}" for index in inputs], [f"OUTPUT__{index}" for index in range(len(manifest.outputs))]


def _config(manifest: Manifest, name: str, backend: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """The text of config.pbtxt."""
    batched = all(spec.batched for spec in (*manifest.sides, *manifest.outputs))
    given = [(code.latent_shape, "uint8", True) for code in manifest.codes] + [*map(_plain, manifest.sides)]
    found = [*map(_plain, manifest.outputs)]
    lines = [
        f"# Tail of {manifest.model} behind '{manifest.split}', written by compoff.".replace("\n", " "),
        f'name: "{name}"',
        f'platform: "{_PLATFORMS[backend][0]}"',
        f"max_batch_size: {manifest.max_batch if batched else 0}",
        *(_tensor("input", one, *spec, free=not batched) for one, spec in zip(inputs, given, strict=True)),
        *(_tensor("output", one, *spec, free=not batched) for one, spec in zip(outputs, found, strict=True)),
        *(["dynamic_batching { }"] if batched and manifest.max_batch > 1 else []),
        f'parameters {{ key: "compoff_artifact_id" value {{ string_value: "{manifest.artifact_id}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def _plain(spec: TensorSpec) -> tuple[tuple[int, ...], str, bool]:
    return spec.shape, spec.dtype, spec.batched


def _tensor(kind: str, name: str, shape: tuple[int, ...], dtype: str, batched: bool, *, free: bool) -> str:
    """One input or output; `free` where Triton leaves the batch axis to the model."""
    sizes = [-1, *shape] if free and batched else list(shape)
    reshape = "" if sizes else " reshape: { shape: [ ] }"  # Triton has no tensors without axes
    return f'{kind} [ {{ name: "{name}" data_type: TYPE_{_triton(dtype)} dims: {sizes or [1]}{reshape} }} ]'


def _triton(dtype: str) -> str:
    """A dtype as Triton names it."""
    return _FLOATS.get(dtype, dtype.upper())
