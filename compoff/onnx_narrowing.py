"""An ONNX head that computes only the channels that a quality sends: `Head(x, quality=0)` then costs less, too.

The program gets one more input, the index of the quality. The layer that symbols come from stands in branches, one for
each number of channels, that share its weights in the file; onnxruntime takes the weights of each apart when it loads.
"""

from __future__ import annotations

import importlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from compoff.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["QUALITY", "with_quality"]

QUALITY = "compoff_quality"
"""Name of the input that says which quality is wanted; any index beyond the last quality stands for all channels."""

_LAYERS = ("Conv", "Gemm")
_VALUE_BY_VALUE = ("Add", "Cast", "Clip", "QuantizeLinear", "Round")
_INTEGERS = "DequantizeLinear"
_ORDER = "Transpose"
_FINITE = ("ReduceSum", "Abs", "Less")


def with_quality(data: bytes, channels: Sequence[Sequence[int]]) -> bytes:
    """Let a program compute only the channels that are wanted.

    Args:
        data: The bytes of the ONNX program; its first outputs are symbols.
        channels: For each quality, from the fewest bytes to the most, the number of channels of each of these outputs.

    Returns:
        The bytes of a program with the input `QUALITY` behind its others; `data` itself where nothing can be saved.

    Raises:
        BackendError: onnx is not installed.

    Examples:
        >>> import numpy as np, onnx
        >>> from compoff.onnx_session import OnnxSession
        >>> value = lambda name, kind, shape: onnx.helper.make_tensor_value_info(name, kind, shape)
        >>> nodes = [onnx.helper.make_node("Gemm", ["x", "w"], ["z"]), onnx.helper.make_node("Round", ["z"], ["y"])]
        >>> ends = [[value("x", 1, ["batch", 4])], [value("y", 1, ["batch", 3])]]
        >>> weight = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
        >>> graph = onnx.helper.make_graph(nodes, "head", *ends, [weight])
        >>> model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
        >>> session = OnnxSession(with_quality(model.SerializeToString(), [[1], [2]]), "head")
        >>> x = np.ones((1, 4), np.float32)
        >>> [session.run([x, np.array(quality)])[0].shape for quality in range(3)]
        [(1, 1), (1, 2), (1, 3)]

    Source: this project.
    """
    onnx = _onnx()
    model = onnx.load_from_string(data)
    found = [_branches(onnx, model.graph, output) for output in list(model.graph.output)]
    chosen = [
        (branches, counts)
        for branches, counts in zip(found, zip(*channels, strict=True), strict=False)
        if branches is not None and min(counts) < branches.channels
    ]
    if not chosen:
        return data
    model.graph.input.append(onnx.helper.make_tensor_value_info(QUALITY, onnx.TensorProto.INT64, []))
    for branches, counts in chosen:
        branches.put(counts)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def _onnx() -> Any:
    try:
        onnx = importlib.import_module("onnx")
        importlib.import_module("onnx.checker")
    except ImportError as error:
        raise BackendError(f'ONNX needs more packages ({error}): pip install "compoff[onnx]"') from error
    return onnx


def _branches(onnx: Any, graph: Any, output: Any) -> _Branches | None:
    """What an output is computed by from its layer on; None where that is no layer with nothing but rounding behind."""
    made_by = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    finite: list[Any] = []
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    chain: list[Any] = []
    value = output.name
    while (node := made_by.get(value)) is not None:
        chain.insert(0, node)
        if node.op_type in _LAYERS:
            break
        scalars = all(name in fixed and len(fixed[name].dims) == 0 for name in node.input[1:])
        value = node.input[0]
        finite = _finite(graph, value)
        if node.op_type not in _VALUE_BY_VALUE or not scalars or readers[value] != 1 + bool(finite):
            return None
    if node is None:
        return None
    integers = {name: made_by[name] for name in node.input if name in made_by and made_by[name].op_type == _INTEGERS}
    weights = [name for one in node.input[1:] for name in (integers[one].input if one in integers else [one])]
    constant = all(name in fixed for name in (*weights, *(name for one in finite for name in one.input[1:])))
    return _Branches(onnx, graph, chain, finite, output, integers) if constant else None


def _finite(graph: Any, value: str) -> list[Any]:
    """The nodes that say of which samples all values are finite, up to an output; none where no such nodes stand."""
    nodes: list[Any] = []
    for kind in _FINITE:
        following = [node for node in graph.node if node.op_type == kind and node.input[0] == value]
        if len(following) != 1:
            return []
        nodes += following
        value = following[0].output[0]
    return nodes if any(output.name == value for output in graph.output) else []


class _Branches:
    """The nodes from a layer to its symbols, and what puts a choice of such nodes in their place.

    Args:
        onnx: The package.
        graph: The graph that they stand in.
        chain: The nodes, the layer first.
        finite: The nodes that say which samples are finite, from the layer's values to an output; may be none.
        output: The symbols.
        integers: The nodes before the layer that turn integers into its inputs, by what they give.
    """

    def __init__(
        self, onnx: Any, graph: Any, chain: list[Any], finite: list[Any], output: Any, integers: dict[str, Any]
    ) -> None:
        self.onnx = onnx
        self.helper = onnx.helper
        self.graph = graph
        self.chain = chain
        self.finite = finite
        self.output = output
        others = [one for one in graph.output if finite and one.name == finite[-1].output[0]]
        self.kinds = [one.type.tensor_type.elem_type for one in (output, *others)]
        self.results = [one.name for one in (output, *others)]
        self.integers = integers
        made_by = {name: node for node in graph.node for name in node.output}
        given = (node.input[0] for node in integers.values())
        self.orders = {name: made_by[name] for name in given if name in made_by and made_by[name].op_type == _ORDER}
        layer = chain[0]
        transposed = any(entry.name == "transB" and entry.i for entry in layer.attribute)
        self.axis = 0 if layer.op_type == "Conv" or transposed else 1
        self.dims = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        weight = integers[layer.input[1]].input[0] if layer.input[1] in integers else layer.input[1]
        self.channels = int(self.dims[weight][self.axis])

    def put(self, counts: Sequence[int]) -> None:
        """Let the quality choose among chains of so many channels, and of all of them beyond the last quality."""
        wanted = [*counts, self.channels]
        starts = [index for index, count in enumerate(wanted) if index == 0 or count != wanted[index - 1]]
        place = list(self.graph.node).index(self.chain[0])
        for node in (*self.chain, *self.finite):
            self.graph.node.remove(node)
        for node in reversed(self._choice([(start, wanted[start]) for start in starts], self.results)):
            self.graph.node.insert(place, node)
        self._tidy()
        self.output.type.tensor_type.shape.dim[1].dim_param = f"{self.output.name}_channels"  # in the number's place

    def _tidy(self) -> None:
        """Leave out what stood before the layer and is in the branches now."""
        for before in (self.integers, self.orders):
            read = {name for node in _everywhere(self.graph) for name in node.input}
            for value, node in before.items():
                if value not in read:
                    self.graph.node.remove(node)

    def _choice(self, ways: list[tuple[int, int]], results: list[str]) -> list[Any]:
        """Nodes that compute the chain of the way that the quality is in: a way goes from its first quality on."""
        if len(ways) == 1:
            return self._way(ways[0][1], results)
        middle = len(ways) // 2
        start, parts = ways[middle][0], (ways[:middle], ways[middle:])
        names = [[f"{name}_{part[0][0]}_{part[-1][0]}" for name in self.results] for part in parts]
        below, above = (self._graph(self._choice(part, made), made) for part, made in zip(parts, names, strict=True))
        condition = f"{results[0]}_below"
        return [
            self.helper.make_node("Less", [QUALITY, self._number(start, scalar=True)], [condition]),
            self.helper.make_node("If", [condition], results, then_branch=below, else_branch=above),
        ]

    def _way(self, count: int, results: list[str]) -> list[Any]:
        """The chain with so many channels."""
        layer, result = self.chain[0], results[0]
        nodes: list[Any] = []
        inputs = [self._given(layer.input[0], result, nodes)]
        for name, axis in zip(layer.input[1:], (self.axis, 0), strict=False):
            inputs.append(self._given(name, result, nodes, count, axis))
        nodes.append(_copied(layer, inputs, f"{result}_{layer.output[0]}"))
        values = nodes[-1].output[0]
        for made, rest in zip(results, (self.chain[1:], self.finite), strict=False):
            given = values
            for node in rest:
                nodes.append(_copied(node, [given, *node.input[1:]], f"{made}_{node.output[0]}"))
                given = nodes[-1].output[0]
            nodes[-1].output[0] = made
        return nodes

    def _given(self, name: str, result: str, nodes: list[Any], count: int = 0, axis: int = 0) -> str:
        """An input of the layer in a branch: a weight's first channels, integers turned into numbers there."""
        if name in self.integers:
            node = self.integers[name]
            inputs = [self._first(one, result, nodes, count, axis) for one in node.input]
            if inputs[0] in self.orders:  # onnxruntime takes it away beside its layer, and nowhere else
                order = self.orders[inputs[0]]
                nodes.append(_copied(order, order.input, f"{result}_{inputs[0]}"))
                inputs[0] = nodes[-1].output[0]
            nodes.append(_copied(node, inputs, f"{result}_{name}"))
            return nodes[-1].output[0]
        return self._first(name, result, nodes, count, axis)

    def _first(self, name: str, result: str, nodes: list[Any], count: int, axis: int) -> str:
        """The first channels of a weight; what has no channels, as it is."""
        dims = self.dims.get(name, [])
        if not count or not dims:
            return name
        limits = [self._number(0), self._number(count), self._number(axis if len(dims) > 1 else 0)]
        nodes.append(self.helper.make_node("Slice", [name, *limits], [f"{result}_{name}"]))
        return nodes[-1].output[0]

    def _graph(self, nodes: list[Any], results: list[str]) -> Any:
        values = [self.helper.make_empty_tensor_value_info(result) for result in results]
        for value, kind in zip(values, self.kinds, strict=True):
            value.type.tensor_type.elem_type = kind
        return self.helper.make_graph(nodes, results[0], [], values)

    def _number(self, value: int, *, scalar: bool = False) -> str:
        """Name of a whole number that nodes may read."""
        name = f"compoff_{'scalar' if scalar else 'number'}_{value}"
        if all(tensor.name != name for tensor in self.graph.initializer):
            kind, dims = self.onnx.TensorProto.INT64, [] if scalar else [1]
            self.graph.initializer.append(self.helper.make_tensor(name, kind, dims, [value]))
        return name


def _copied(node: Any, inputs: Sequence[str], output: str) -> Any:
    """The same node between other values."""
    copied = type(node)()
    copied.CopyFrom(node)
    del copied.input[:], copied.output[:]
    copied.input.extend(inputs)
    copied.output.append(output)
    copied.name = f"{output}_{node.op_type}"
    return copied


def _everywhere(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of those inside its nodes."""
    for node in graph.node:
        yield node
        for entry in node.attribute:
            if entry.HasField("g"):
                yield from _everywhere(entry.g)
