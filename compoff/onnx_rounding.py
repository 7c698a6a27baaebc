"""Weights of an ONNX program rounded to integers so that what the layers give changes least.

Rounded one by one to the nearest, the errors of a layer's weights add up where its inputs are alike, as the pixels of a
picture are. Here each weight's error is made good by the weights that are not rounded yet, as the inputs of the layer
allow. The integers and their scales are of the same form, and cost the device the same.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from compoff.onnx_session import OnnxSession
from compoff.onnx_steps import attributes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["nearest_outputs", "round_weights"]

_SAMPLES = 64  # of the inputs; more change nothing that was measured
_AT_ONCE = 8  # samples whose layers' inputs are held at a time
_ROWS = 16_384  # that are looked at of one layer's inputs
_MOST_INPUTS = 8192  # of one output; what wider layers have is rounded to the nearest
_DAMPING = 0.01  # of the mean of the diagonal
_BLOCK = 64  # weights whose errors are passed on together


@dataclass(frozen=True)
class _Layer:
    """One layer with weights: its input, its weights as ``(groups, outputs, inputs)``, and the way back."""

    node: Any
    weight: Floats
    axis: int

    @property
    def groups(self) -> int:
        return attributes_of(self.node).get("group", 1)

    def rows(self) -> Floats:
        """The weights of each output in a row, by groups."""
        outputs_first = np.moveaxis(self.weight, self.axis, 0)
        return outputs_first.reshape(self.groups, len(outputs_first) // self.groups, -1)

    def shaped(self, rows: Floats) -> Floats:
        """The rows as the weights are stored."""
        first = np.moveaxis(self.weight, self.axis, 0).shape
        return np.ascontiguousarray(np.moveaxis(rows.reshape(first), 0, self.axis))


def round_weights(
    model: Any, samples: Sequence[Sequence[NDArray[Any]]], largest: int, quant_type: Any
) -> dict[str, list[dict[str, Any]]]:
    """Round the weights of a program's layers, in place, to whole multiples of a scale for each output channel.

    Args:
        model: The program, an ``onnx.ModelProto``.
        samples: Inputs as the device will see them, one sequence of arrays a batch.
        largest: Largest integer that a weight may become.
        quant_type: The integers, as onnxruntime calls them.

    Returns:
        For each weight that was rounded the scales to store it with, as onnxruntime's quantizer takes them.

    Source: Frantar et al., GPTQ (ICLR 2023), Sec. 3.
    """
    helper = importlib.import_module("onnx.numpy_helper")
    stored = {one.name: one for one in model.graph.initializer}
    layers = list(_layers(model.graph, {name: helper.to_array(one) for name, one in stored.items()}))
    moments = _moments(model, layers, samples) if layers else {}
    found: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        name, moment = layer.node.input[1], moments.get(layer.node.name)
        if moment is None:
            continue
        rows = layer.rows()
        scale = np.maximum(np.abs(rows).max(2) / largest, np.finfo(np.float32).tiny).astype(np.float32)
        rounded = nearest_outputs(rows, scale, moment, largest)
        stored[name].CopyFrom(helper.from_array(layer.shaped(rounded * scale[..., None]), name))
        zero, kind = np.array(0, np.int8), {"quant_type": quant_type, "axis": layer.axis}
        found[name] = [{**kind, "scale": one, "zero_point": zero} for one in scale.ravel()]
    return found


def nearest_outputs(rows: Floats, scale: Floats, moment: NDArray[Any], largest: int) -> Floats:
    """Whole numbers for weights, so that their products with inputs like those seen change least.

    Args:
        rows: The weights.
        scale: What a whole number of each output stands for.
        moment: Mean products of the inputs with each other.
        largest: Largest whole number.

    Returns:
        The whole numbers.

    Shapes:
        rows and result ``(groups, outputs, inputs)``; scale ``(groups, outputs)``; moment ``(groups, inputs, inputs)``.

    Examples:
        Two inputs that are always alike: what is rounded off one weight, the other one makes good.

        >>> rows, scale = np.array([[[0.4, 0.4]]], np.float32), np.ones((1, 1), np.float32)
        >>> nearest_outputs(rows, scale, np.ones((1, 2, 2)), 7).tolist()
        [[[0.0, 1.0]]]

    Source: Frantar et al., GPTQ (ICLR 2023), Algorithm 1.
    """
    order = np.argsort(-np.einsum("gkk->k", moment), kind="stable")  # what counts most has the most to follow it
    left = (rows / scale[..., None]).astype(np.float64)[..., order]
    moment = moment[:, order[:, None], order].astype(np.float64)
    mean = np.einsum("gkk->g", moment)[:, None, None] / len(order)
    moment += np.eye(len(order)) * np.where(mean > 0, _DAMPING * mean, 1.0)
    passed = cast("NDArray[np.float64]", np.linalg.cholesky(np.linalg.inv(moment)).transpose(0, 2, 1))
    whole = np.empty_like(left)
    for begin in range(0, len(order), _BLOCK):
        end = min(begin + _BLOCK, len(order))
        errors = np.empty_like(left[..., begin:end])
        for k in range(begin, end):
            whole[..., k] = np.clip(np.rint(left[..., k]), -largest, largest)
            errors[..., k - begin] = (left[..., k] - whole[..., k]) / passed[:, None, k, k]
            left[..., k:end] -= errors[..., k - begin, None] * passed[:, None, k, k:end]
        left[..., end:] -= errors @ passed[:, begin:end, end:]
    result = np.empty(rows.shape, np.float32)
    result[..., order] = whole
    return result


def _layers(graph: Any, values: dict[str, NDArray[Any]]) -> Iterator[_Layer]:
    """The layers whose weights are constants of their own, and not too wide."""
    used = [name for node in graph.node for name in node.input]
    for node in graph.node:
        weight = values.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or weight.dtype != np.float32 or used.count(node.input[1]) > 1:
            continue
        attributes = attributes_of(node)
        if node.op_type == "Conv" and attributes.get("auto_pad", b"NOTSET") == b"NOTSET":
            layer = _Layer(node, weight, 0)
        elif node.op_type == "MatMul" and weight.ndim == 2:
            layer = _Layer(node, weight, 1)
        elif node.op_type == "Gemm" and not attributes.get("transA"):
            layer = _Layer(node, weight, 0 if attributes.get("transB") else 1)
        else:
            continue
        if layer.rows().shape[2] <= _MOST_INPUTS:
            yield layer


def _moments(
    model: Any, layers: Sequence[_Layer], samples: Sequence[Sequence[NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Mean products of each layer's inputs with each other, ``(groups, inputs, inputs)``, by the name of its node."""
    helper = importlib.import_module("onnx.helper")
    watched = type(model)()
    watched.CopyFrom(model)
    named = {value.name for value in (*model.graph.input, *model.graph.output)}
    inner = sorted({layer.node.input[0] for layer in layers} - named)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    given = [value.name for value in watched.graph.output]
    session = OnnxSession(watched.SerializeToString(), "the program with its inner values")
    rng = np.random.default_rng(0)
    totals: dict[str, NDArray[Any]] = {}
    for batch in _slices(session, samples):
        seen = {**dict(zip(session.names, batch, strict=True)), **dict(zip(given, session.run(batch), strict=True))}
        for layer in layers:
            rows = _input_rows(layer, seen[layer.node.input[0]], rng)
            products = cast("Floats", rows.transpose(0, 2, 1) @ rows)
            totals[layer.node.name] = totals.get(layer.node.name, 0.0) + products
    return totals


def _slices(session: OnnxSession, samples: Sequence[Sequence[NDArray[Any]]]) -> Iterator[list[NDArray[Any]]]:
    """The first samples, a few at a time."""
    batched = [one.shape[:1] == (None,) for one in session.inputs]
    done = 0
    for batch in samples:
        size = max((len(array) for array, whole in zip(batch, batched, strict=True) if whole), default=1)
        for begin in range(0, size if any(batched) else 1, _AT_ONCE):
            if done >= _SAMPLES:
                return
            done += min(_AT_ONCE, size - begin)
            yield [one[begin : begin + _AT_ONCE] if whole else one for one, whole in zip(batch, batched, strict=True)]


def _input_rows(layer: _Layer, values: NDArray[Any], rng: np.random.Generator) -> Floats:
    """What some outputs of a layer are computed from, ``(groups, rows, inputs)``."""
    most = _ROWS * _AT_ONCE // _SAMPLES
    if layer.node.op_type != "Conv":
        rows = values.reshape(1, -1, values.shape[-1])
        return rows[:, rng.choice(rows.shape[1], min(most, rows.shape[1]), replace=False)]
    attributes, space = attributes_of(layer.node), layer.weight.ndim - 2
    dilations, strides = attributes.get("dilations", [1] * space), attributes.get("strides", [1] * space)
    pads = attributes.get("pads", [0] * 2 * space)
    padded = np.pad(values, [(0, 0), (0, 0), *zip(pads[:space], pads[space:], strict=True)])
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(layer.weight.shape[2:], dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(2, 2 + space)))
    steps = [slice(None, None, step) for step in (1, 1, *strides, *dilations)]
    windows = np.moveaxis(windows[tuple(steps)], 1, 1 + space)  # batch, output's places, channel, window
    places = [rng.integers(0, size, most) for size in windows.shape[: 1 + space]]
    rows: Any = windows[tuple(places)]
    return rows.reshape(most, layer.groups, -1).swapaxes(0, 1)
