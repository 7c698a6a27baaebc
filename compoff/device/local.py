"""The whole model on the device, for when the edge cannot answer: a callable of the user's, or an ONNX file.

Knows nothing of connections. What makes it answer instead of the edge is for ``remote``.
"""

from __future__ import annotations

import copy
import functools
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from compoff.device.answers import all_numpy
from compoff.device.binding import CallForm
from compoff.device.replacing import path_of_leaf, replaced
from compoff.device.runners.runner import fits
from compoff.device.runners.tensors import from_numpy, to_numpy
from compoff.errors import BackendError, FeatureError, LocalProtocolError
from compoff.onnx_session import described
from compoff.printable import first_line
from compoff.structure import CONSTANTS, flatten, importable, input_leaves, unflatten
from compoff.threads import work_without_lost_threads
from compoff.wire.replies import FULL, ReplyForm, ReplyKind, reduce_reply, restore_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from compoff.device.sender import Sender
    from compoff.manifest import TensorSpec
    from compoff.pixels import Pixels

__all__ = ["LocalModel", "OnnxModel", "whole_model", "whole_models"]

LocalModel: TypeAlias = "Callable[..., Any] | str | Path"
"""What a user gives as the whole model: something to call with the inputs, or the path of its ONNX file."""


def whole_model(local: LocalModel, head: Sender, form: ReplyForm = FULL) -> Callable[..., Any]:
    """The whole model as something to call with a remote's inputs.

    Args:
        local: A callable, or the path of an ONNX file; it takes what the model takes, also where the head takes pixels.
        head: A head of the same model, which knows how its outputs are nested.
        form: The form in which the edge's answers come, and so these.

    Returns:
        The callable.

    Raises:
        BackendError: The file cannot be read, or onnxruntime is not installed.
    """
    return whole_models(local, [head], form)[0]


def whole_models(local: LocalModel, heads: Sequence[Sender], form: ReplyForm = FULL) -> list[Callable[..., Any]]:
    """The whole model as something to call with what each head is called with: one may take pixels, another not.

    Args:
        local: As for `whole_model`.
        heads: Heads of the same model.
        form: As for `whole_model`.

    Returns:
        A callable for each head.

    Raises:
        BackendError: As for `whole_model`.
    """
    if not callable(local) and not isinstance(local, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
        given = type(local).__name__
        raise LocalProtocolError(f"local is a {given}; expected something to call, or the path of an ONNX file")
    if isinstance(local, (str, Path)):
        first = OnnxModel(Path(local), heads[0])
        return [_for_head(first.beside(head), head, form) for head in heads]
    model = _callable(local)
    return [_for_head(model, head, form) for head in heads]


def _for_head(model: Callable[..., Any], head: Sender, form: ReplyForm) -> Callable[..., Any]:
    """A model that takes what the model takes, as what a head takes calls for it."""
    if head.manifest.pixels is not None:
        model = _given_pixels(model, head, head.manifest.pixels)
    if form.kind in (ReplyKind.FULL, ReplyKind.FP32, ReplyKind.FP16):  # these come back in the model's own dtypes
        return model
    return lambda *inputs, **keywords: _reduced(model(*inputs, **keywords), (inputs, keywords), head, form)


def _callable(local: Callable[..., Any]) -> Callable[..., Any]:
    # A model of PyTorch would record every operation for a backward pass that never comes.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(local, torch.nn.Module):
        _refuse_training(local)
        # Its answer is to have the dtypes of the edge's, whatever autocast is on around the call.
        no_autocast = importlib.import_module("compoff.autocast").no_autocast
        return torch.no_grad()(no_autocast()(_taking_numpy(local, torch)))
    return local


def _refuse_training(model: Any) -> None:
    if model.training:
        raise LocalProtocolError(
            "local is a model in training mode, which would answer by its batch and change with every call; give "
            "local=model.eval(), and a copy of a model that is still trained"
        )


def _taking_numpy(model: Any, torch: Any) -> Callable[..., Any]:
    """A model of PyTorch that takes and gives what a remote does, wherever it is: arrays for arrays, or on the CPU."""
    pytree = importlib.import_module("torch.utils._pytree")
    map_tensors = importlib.import_module("compoff.trees").map_tensors

    def call(*inputs: Any, **keywords: Any) -> Any:
        work_without_lost_threads()
        _refuse_training(model)  # the user's loop may have turned to training since it was given
        given, plain = (inputs, keywords), all_numpy((inputs, keywords))
        if plain:
            given = pytree.tree_map_only(np.ndarray, from_numpy, given)
        first = next(model.parameters(), None)
        if first is not None:
            given = map_tensors(given, functools.partial(torch.Tensor.to, device=first.device))
        output = model(*given[0], **given[1])
        return map_tensors(output, to_numpy if plain else torch.Tensor.cpu)

    return call


def _given_pixels(model: Callable[..., Any], head: Sender, pixels: Pixels) -> Callable[..., Any]:
    """A model to call with pixels, which it then gets normalized."""
    form = CallForm(head.manifest.call, head.manifest.taken) if head.manifest.call else None

    def call(*inputs: Any, **keywords: Any) -> Any:
        values = list(input_leaves(inputs)) if form is None else form.bind(inputs, keywords)
        picture, index = values[pixels.input], pixels.input
        plain = isinstance(picture, np.ndarray)
        array: Any = cast("object", picture) if plain else head.runner.to_numpy(picture)
        normalized: Any = pixels.normalized(array).astype(head.manifest.inputs[pixels.input].dtype, copy=False)
        found = normalized if plain else head.runner.from_numpy(normalized)
        path = (0, *(path_of_leaf(inputs, index) or ())) if form is None else form.path(index, inputs, keywords)
        inputs, keywords = replaced((inputs, keywords), path, found)
        return model(*inputs, **keywords)

    return call


def _reduced(output: Any, inputs: Any, head: Sender, form: ReplyForm) -> Any:
    """What is left of an output in the form that the edge's answers come in."""

    def array(value: Any) -> Any:
        return cast("object", value) if isinstance(value, np.ndarray) else head.runner.to_numpy(value)

    leaves, _ = flatten(output, lambda value: array(value) is not None)
    plain = all_numpy(inputs)

    def convert(value: Any) -> Any:
        return value if plain else head.runner.from_numpy(value)

    outputs = head.manifest.outputs
    reduced = restore_leaves(form, reduce_reply(form, [array(leaf) for leaf in leaves]), outputs, convert)
    return unflatten(head.manifest.structure, reduced, importable)


class OnnxModel:
    """A model in ONNX, called with what a remote is called with and answering in the same form.

    Args:
        path: The file.
        head: A head of the same model.

    Raises:
        BackendError: The file cannot be read or is of another model, or onnxruntime is not installed.
    """

    def __init__(self, path: Path, head: Sender) -> None:
        try:
            onnxruntime: Any = importlib.import_module("onnxruntime")  # an extra, without annotations
        except ModuleNotFoundError as error:
            raise BackendError('a local model in ONNX needs onnxruntime: pip install "compoff[onnx]"') from error
        self._head = head
        if not path.is_file():
            raise BackendError(f"local is '{path}', and there is no such file; give the ONNX file of the whole model")
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, made at run time
            reason = first_line(error)
            raise BackendError(f"onnxruntime cannot read '{path}': {reason}; export the whole model again") from error
        self._names: list[str] = [one.name for one in self._session.get_inputs()]
        self._path = path

    def beside(self, head: Sender) -> OnnxModel:
        """The same session for another head.

        Args:
            head: A head of the same model.

        Raises:
            BackendError: The file is of another model.
        """
        given, expected = list(map(described, self._session.get_outputs())), head.manifest.outputs
        if head.manifest.structure and len(given) != len(expected):
            raise BackendError(
                f"'{self._path}' returns {len(given)} tensors, and the model of this head returns {len(expected)}; "
                "export that model"
            )
        for index, (spec, one) in enumerate(zip(expected, given, strict=False)):
            self._require(spec, one.shape, one.dtype, index)
        other = copy.copy(self)
        other._head = head
        return other

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the whole model.

        Args:
            *inputs: What the remote was called with; flags and numbers are constants of the file.
            **keywords: The same, by the names that the file has.

        Returns:
            What the remote would have returned.

        Raises:
            FeatureError: Other inputs than the file has, or it fails on them.
        """
        named = {name: value for name, value in keywords.items() if not isinstance(value, CONSTANTS)}
        values = [value for value in input_leaves(inputs) if not isinstance(value, CONSTANTS)]
        names = [name for name in self._names if name not in named]
        if len(values) != len(names) or not named.keys() <= set(self._names):
            told = f"{len(values)} inputs were given, and by name {', '.join(named) or 'none'}"
            raise FeatureError(f"{told}; the local ONNX model takes {self._names}")
        arrays: dict[str, Any] = {
            name: cast("object", value) if isinstance(value, np.ndarray) else self._head.runner.to_numpy(value)
            for name, value in {**dict(zip(names, values, strict=True)), **named}.items()
        }
        try:
            outputs: Sequence[Any] = self._session.run(None, arrays)
        except Exception as error:  # its own classes, made at run time
            raise FeatureError(f"the local ONNX model takes no such inputs: {first_line(error)}") from error
        self._check_answer(outputs, {len(array) for array in arrays.values() if np.ndim(array)})
        plain = all_numpy((inputs, keywords))
        leaves = [output if plain else self._head.runner.from_numpy(output) for output in outputs]
        structure = self._head.manifest.structure
        if not structure:  # it is known only once the edge has answered, and the file knows of tensors only
            return leaves[0] if len(leaves) == 1 else tuple(leaves)
        return unflatten(structure, leaves, importable)

    def _check_answer(self, outputs: Sequence[NDArray[Any]], samples: set[int]) -> None:
        """Refuse an answer that is not the model's, whose file leaves sizes free."""
        for index, (spec, output) in enumerate(zip(self._head.manifest.outputs, outputs, strict=False)):
            self._require(spec, output.shape, str(output.dtype), index)
            if spec.batched and len(output) not in samples:
                told = f"'{self._path}' answers {sorted(samples)} samples with {len(output)} in tensor {index}"
                raise BackendError(f"{told}; export the whole model with a free batch")

    def _require(self, spec: TensorSpec, shape: Sequence[int | None], dtype: str, index: int) -> None:
        """Refuse a tensor that the head's model does not return; the batch may be any, as it may be in the file."""
        free = (None, *shape[1:]) if spec.batched and shape else shape
        if dtype != spec.dtype or not fits(spec.sized("batch"), free):
            raise BackendError(
                f"'{self._path}' returns {dtype} of shape {tuple(shape)} as tensor {index}, and the model of this head "
                f"returns {spec.dtype} of shape {spec.sized('batch')}; export that model"
            )
