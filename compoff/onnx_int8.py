"""An ONNX program in 8-bit integers, calibrated on the user's own inputs. Knows nothing of what its outputs mean.

Weights are symmetric, per channel and of seven bits, activations unsigned: what runs fast on x86 and on ARM, and what
x86 without VNNI, which adds in 16 bits, computes without overflow. Everything behind the last layer with weights stays
as it is: there, an encoder's values become symbols. Where they do so by rounding to whole steps, the last layer gives
the whole steps itself: its integers are rounded once, not to 256 levels of its own first.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compoff.errors import BackendError
from compoff.onnx_finite import say_what_is_finite
from compoff.onnx_pixels import normalizing_nodes, whole_pixels
from compoff.onnx_rounding import round_weights
from compoff.onnx_session import OnnxSession
from compoff.onnx_stem import fold_stems
from compoff.onnx_steps import attributes_of, names_read, remove_unread, take_in_scales, whole_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["quantized"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LARGEST_WEIGHT = 64
_QUANTIZED = (*_WEIGHTED, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Pad", "Relu")


def quantized(
    data: bytes,
    name: str,
    samples: Sequence[Sequence[NDArray[Any]]],
    *,
    outputs: int | None = None,
    codes: int = 0,
) -> bytes:
    """Turn the layers of a program into 8-bit integers.

    Args:
        data: The bytes of the ONNX program in floating point.
        name: What to call it in messages.
        samples: Inputs to calibrate on, one sequence of arrays a batch.
        outputs: Number of the outputs to keep, the first ones; None for all.
        codes: Number of the outputs that are symbols, the first ones. Where it is not certain that what they come from
            is finite, the program says so in as many outputs more.

    Returns:
        The bytes of the program in integers, with the metadata of `data`.

    Raises:
        BackendError: onnx or onnxruntime is not installed, there are no samples or these are all one value, or no layer
            can be quantized.

    Examples:
        >>> import numpy as np, torch
        >>> from compoff.onnx_export import to_onnx
        >>> from compoff.programs import TorchProgram
        >>> model, batch = torch.nn.Conv2d(3, 16, 3), [np.random.rand(4, 3, 16, 16).astype(np.float32)]
        >>> exported = torch.export.export(model, (torch.zeros(4, 3, 16, 16),))
        >>> data, _ = to_onnx(TorchProgram(exported), "convolution", [batch])
        >>> integers = quantized(data, "convolution", [batch])
        >>> error = OnnxSession(integers, "integers").run(batch)[0] - OnnxSession(data, "floats").run(batch)[0]
        >>> bool(0 < np.abs(error).max() < 0.05)
        True
    """
    if not samples:
        raise BackendError(f"int8 has to be calibrated on inputs as the device will see them: pass batches for {name}")
    _require_variety(samples, name)
    onnx, quantization = _packages()
    model = onnx.load_from_string(data)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    _leave_out(model.graph, list(model.graph.output)[outputs:] if outputs is not None else [])
    take_in_scales(model.graph)
    fold_stems(model)
    steps, pixels = whole_steps(model.graph), whole_pixels(model.graph)
    names = OnnxSession(data, name).names
    logger, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        try:
            logger.setLevel(logging.ERROR)  # it says on the root logger what else one might do
            integers = round_weights(model, samples, _LARGEST_WEIGHT, quantization.QuantType.QInt8)
            whole = {one.layer.output[0]: [one.scale(quantization.QuantType.QUInt8)] for one in steps}
            whole |= {one.name: [one.scale(quantization.QuantType.QUInt8)] for one in pixels}
            quantization.quantize_static(
                model,
                path,
                _reader(quantization, names, samples),
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_exclude=_kept_in_floats(model.graph) + normalizing_nodes(model.graph),
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                # By the moving average, one odd batch does not set the scale of all.
                extra_options={"CalibMovingAverage": True, "TensorQuantOverrides": {**integers, **whole}},
            )
        except Exception as error:  # many types for one fact
            raise BackendError(f"{name} cannot be quantized ({type(error).__name__}: {error}); use fp32") from error
        finally:
            logger.setLevel(level)
        made = onnx.load(str(path))
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise BackendError(f"{name} has no layer that can be quantized; use fp32")
    for one in (*steps, *pixels):
        one.shorten(made.graph)
    say_what_is_finite(made.graph, codes)
    del made.metadata_props[:]
    for key, value in kept.items():
        made.metadata_props.add(key=key, value=value)
    return made.SerializeToString(deterministic=True)


def _require_variety(samples: Sequence[Sequence[NDArray[Any]]], name: str) -> None:
    """Refuse samples of zeros and the like, on which all agrees and nothing is learned of what real inputs need."""
    index = max(range(len(samples[0])), key=lambda place: samples[0][place].size)  # a small one may be constant
    arrays: list[Any] = [batch[index] for batch in samples]
    first = arrays[0].flat[0]
    if all((array == first).all() for array in arrays):
        raise BackendError(
            f"int8 has to be calibrated on inputs as the device will see them, and all that was given as input {index} "
            f"of {name} is {first}; pass batches of real inputs, or use fp32"
        )


def _packages() -> tuple[Any, Any]:
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime.quantization")
    except ImportError as error:
        raise BackendError(f'int8 needs more packages ({error}): pip install "compoff[onnx]"') from error


def _joined_products(joint: Any, nodes: Sequence[Any]) -> list[str]:
    """Names of products of matrices and of what puts them side by side, where it does so with nothing but such."""
    products = [node.name for node in nodes if node is not None and node.op_type == "MatMul"]
    return [*products, joint.name] if len(products) == len(nodes) > 1 else []


def _reader(quantization: Any, names: Sequence[str], samples: Sequence[Sequence[NDArray[Any]]]) -> Any:
    """The samples as onnxruntime wants to be given them: an object of a class of its own."""
    feeds: Iterator[dict[str, NDArray[Any]]] = iter([dict(zip(names, batch, strict=True)) for batch in samples])

    def get_next(_: object) -> dict[str, NDArray[Any]] | None:
        return next(feeds, None)

    return type("Reader", (quantization.CalibrationDataReader,), {"get_next": get_next})()


def _leave_out(graph: Any, outputs: Sequence[Any]) -> None:
    """Take outputs out of a graph, with what is computed for them alone."""
    for output in outputs:
        graph.output.remove(output)
    while outputs:
        read = set(names_read(graph))
        idle = [node for node in graph.node if read.isdisjoint(node.output)]
        for node in idle:
            graph.node.remove(node)
        if not idle:
            remove_unread(graph)
            return


def _kept_in_floats(graph: Any) -> list[str]:
    """Names of the nodes between the outputs and the first layers with weights before them, and of some others.

    Those are transposed convolutions in groups, of whose channels onnxruntime counts one group's; products with weights
    on the left, of which it takes the other side for the weights, as those of an encoder's waves; the products that mix
    channels on each wave, whose levels would be those of 2,048 numbers together; and what is computed from weights
    alone.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    found = [
        node.name for node in graph.node if node.op_type == "ConvTranspose" and attributes_of(node).get("group", 1) > 1
    ]
    fixed = {tensor.name for tensor in graph.initializer}
    for node in graph.node:  # in the order in which they are computed
        if node.input and fixed.issuperset(node.input):
            fixed.update(node.output)
            found.append(node.name)
        elif node.op_type == "MatMul" and node.input[0] in fixed:
            found.append(node.name)
        elif node.op_type == "Concat":
            found += _joined_products(node, [made_by.get(name) for name in node.input])
    waiting = [made_by[value.name] for value in graph.output if value.name in made_by]
    while waiting:
        node = waiting.pop()
        if node.op_type not in _WEIGHTED and node.name not in found:
            found.append(node.name)
            waiting += [made_by[name] for name in node.input if name in made_by]
    return found
