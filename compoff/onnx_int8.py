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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.errors import BackendError
from compoff.onnx_rounding import round_weights
from compoff.onnx_session import OnnxSession

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["quantized"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LARGEST_WEIGHT = 64
_QUANTIZED = (*_WEIGHTED, "Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool", "Pad", "Relu")


def quantized(data: bytes, name: str, samples: Sequence[Sequence[NDArray[Any]]]) -> bytes:
    """Turn the layers of a program into 8-bit integers.

    Args:
        data: The bytes of the ONNX program in floating point.
        name: What to call it in messages.
        samples: Inputs to calibrate on, one sequence of arrays a batch.

    Returns:
        The bytes of the program in integers, with the metadata of `data`.

    Raises:
        BackendError: onnx or onnxruntime is not installed, there are no samples, or no layer can be quantized.

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
    onnx, quantization = _packages()
    model = onnx.load_from_string(data)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    steps = _whole_steps(model.graph)
    names = OnnxSession(data, name).names
    logger, level = logging.getLogger(), logging.getLogger().level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        try:
            logger.setLevel(logging.ERROR)  # it says on the root logger what else one might do
            integers = round_weights(model, samples, _LARGEST_WEIGHT, quantization.QuantType.QInt8)
            whole = {one.layer.output[0]: [one.scale(quantization.QuantType.QUInt8)] for one in steps}
            quantization.quantize_static(
                model,
                path,
                _reader(quantization, names, samples),
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_exclude=_behind_the_last_layer(model.graph),
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
    for one in steps:
        one.shorten(made.graph)
    del made.metadata_props[:]
    for key, value in kept.items():
        made.metadata_props.add(key=key, value=value)
    return made.SerializeToString(deterministic=True)


def _packages() -> tuple[Any, Any]:
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime.quantization")
    except ImportError as error:
        raise BackendError(f'int8 needs more packages ({error}): pip install "compoff[onnx]"') from error


def _reader(quantization: Any, names: Sequence[str], samples: Sequence[Sequence[NDArray[Any]]]) -> Any:
    """The samples as onnxruntime wants to be given them: an object of a class of its own."""
    feeds: Iterator[dict[str, NDArray[Any]]] = iter([dict(zip(names, batch, strict=True)) for batch in samples])

    def get_next(_: object) -> dict[str, NDArray[Any]] | None:
        return next(feeds, None)

    return type("Reader", (quantization.CalibrationDataReader,), {"get_next": get_next})()


def _behind_the_last_layer(graph: Any) -> list[str]:
    """Names of the nodes between the outputs and the first layers with weights before them."""
    made_by = {output: node for node in graph.node for output in node.output}
    found: list[str] = []
    waiting = [made_by[value.name] for value in graph.output if value.name in made_by]
    while waiting:
        node = waiting.pop()
        if node.op_type not in _WEIGHTED and node.name not in found:
            found.append(node.name)
            waiting += [made_by[name] for name in node.input if name in made_by]
    return found


@dataclass(frozen=True)
class _WholeSteps:
    """A layer whose values are rounded, clamped, shifted, and cast to bytes: symbols, one step apart.

    Args:
        layer: The layer.
        rest: The nodes behind it, in their order; the last one's output are the symbols.
        lowest: Least value after rounding.
        highest: Greatest value after rounding.
        shift: What is added to make symbols.
    """

    layer: Any
    rest: tuple[Any, ...]
    lowest: int
    highest: int
    shift: int

    def scale(self, quant_type: Any) -> dict[str, Any]:
        """How the layer's output is stored: one step is one, and zero is where the symbols have it."""
        zero = np.array(self.shift, np.uint8)
        return {"quant_type": quant_type, "scale": np.array(1, np.float32), "zero_point": zero}

    def shorten(self, graph: Any) -> None:
        """Take the quantized layer's integers for the symbols; all that is left to do is to clamp them."""
        onnx = importlib.import_module("onnx")
        value = self.layer.output[0]
        integers = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == value)
        symbols = self.rest[-1].output[0]
        bounds = [f"{symbols}_lowest", f"{symbols}_highest"]
        for bound, value in zip(bounds, (self.lowest, self.highest), strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value + self.shift, np.uint8), bound))
        spared = {node.name for node in self.rest}
        kept = [node for node in graph.node if node.name not in spared and integers.output[0] not in node.input]
        del graph.node[:]
        graph.node.extend([*kept, onnx.helper.make_node("Clip", [integers.output[0], *bounds], [symbols])])


def _whole_steps(graph: Any) -> list[_WholeSteps]:
    """The layers whose values become symbols by rounding alone."""
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    constants = {one.name: to_array(one) for one in graph.initializer}
    readers: dict[str, list[Any]] = {one.name: [one] for one in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[_WholeSteps] = []
    for layer in graph.node:
        rest = _chain(layer, ("Round", "Clip", "Add", "Cast"), readers) if layer.op_type in _WEIGHTED else None
        if rest is None:
            continue
        bounds = [constants.get(name) for name in (*rest[1].input[1:3], *rest[2].input[1:])]
        if any(value is None or value.size != 1 or float(value) % 1 for value in bounds):
            continue
        lowest, highest, shift = (int(value) for value in bounds if value is not None)
        if lowest + shift >= 0 and highest + shift <= np.iinfo(np.uint8).max:
            found.append(_WholeSteps(layer, rest, lowest, highest, shift))
    return found


def _chain(node: Any, types: Sequence[str], readers: dict[str, list[Any]]) -> tuple[Any, ...] | None:
    """The nodes of these types behind a node, each the only reader of the one before; None where others stand there."""
    chain: list[Any] = []
    for kind in types:
        following = readers.get(node.output[0], [])
        if len(following) != 1 or getattr(following[0], "op_type", "output") != kind:
            return None
        if following[0].input[0] != node.output[0]:
            return None
        node = following[0]
        chain.append(node)
    return tuple(chain)
