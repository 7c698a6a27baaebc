"""Exported programs in which nothing is written in place: what a cut through a graph takes for granted."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import DispatchKey, Tensor
from torch._ops import OpOverload
from torch.fx import Node

from compoff.cutting.graph_flow import same_form

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph

__all__ = ["functional"]

_aten = torch.ops.aten
_DROPOUTS = (_aten.dropout.default, _aten.feature_dropout.default, _aten.alpha_dropout.default)
_PLAIN = ("operator", "math")  # modules whose functions write nothing
_FRESH = (
    _aten.linear.default,
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.batch_norm.default,
    _aten.layer_norm.default,
    _aten.group_norm.default,
)
_ACTIVATIONS = ("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "leaky_relu", "elu")
# Those whose form that only computes takes the same arguments under the same name.
_IN_PLACE = (*_ACTIVATIONS, "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max", "add", "sub", "mul", "div")
# They ask a tensor for its sizes or its type alone, which a second trace shows and a cut has to know.
_MEASURES = (
    _aten.expand_as.default,
    _aten.view_as.default,
    _aten.reshape_as.default,
    _aten.type_as.default,
    _aten.to.other,
)
_TRAINING = ("training", "train", "use_input_stats")  # arguments with which an operator keeps statistics


def functional(program: ExportedProgram) -> ExportedProgram:
    """Let nothing in a program write in place.

    PyTorch traces the whole program anew for that, which takes as long as all the rest of an export. So it is asked
    only where what is written may be seen under another name: an activation in place and a sum in place write to a
    tensor of their own, and the decoded feature takes the place of the encoded one.

    Args:
        program: What `torch.export.export` returned; changed: what does nothing is taken out.

    Returns:
        The program, or another that computes the same.

    Examples:
        >>> import torch
        >>> layers = [torch.nn.Linear(3, 3), torch.nn.Dropout(), torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 2)]
        >>> program = torch.export.export(torch.nn.Sequential(*layers).eval(), (torch.zeros(2, 3),))
        >>> [str(node.target) for node in functional(program).graph.nodes if node.op == "call_function"]
        ['aten.linear.default', 'aten.relu.default', 'aten.linear.default']

    Source: this project.
    """
    if any(node.target in _MEASURES for node in program.graph.nodes):
        return program.run_decompositions({})
    before = copy.deepcopy(program.graph)
    _drop_nothings(program.graph)
    _settle_writes(program.graph)
    if any(_may_write(node) for node in program.graph.nodes):
        # What was settled is right only where nothing else writes: who shares memory with whom is not as it was.
        program.graph_module.graph = before
        return program.run_decompositions({})
    program.graph_module.recompile()
    return program


def _drop_nothings(graph: Graph) -> None:
    """Take out what computes nothing: the dropout of eval mode, conversions to the type that is there, and checks.

    Dropout would become a copy, and stand for random numbers that nobody draws. What converts says then that it copies.
    """
    outputs = set(graph.output_node().all_input_nodes)  # known by their names elsewhere
    for node in list(graph.nodes):
        if node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node not in outputs and _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif _converts(node) and not _does_nothing(node):
            node.target, node.args, node.kwargs = _aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}


def _converts(node: Node) -> bool:
    """Whether a node changes the type of a tensor, or returns it as it is where it has the type."""
    return node.target is _aten.to.dtype and len(node.args) == 2 and not node.kwargs


def _does_nothing(node: Node) -> bool:
    """Whether a node returns the tensor that it was given."""
    if node.target in _DROPOUTS:
        return node.args[2:] == (False,)
    return _converts(node) and same_form(node.args[0], node)


def _settle_writes(graph: Graph) -> None:
    """Where a tensor is overwritten whole, let those who read it afterwards read what it was overwritten with."""
    places, output = {node: place for place, node in enumerate(graph.nodes)}, graph.output_node()
    for node in list(graph.nodes):
        overwritten = node.args[0] if _writes(node) and node.args else None
        if not (isinstance(overwritten, Node) and _is_own(overwritten)):
            continue
        readers = {user for user in overwritten.users if places[user] > places[node]}
        if output in readers or output in node.users:  # which knows them by their names
            continue
        views = {view for user in set(overwritten.users) - readers - {node} for view in _views(user)}
        if any(places[user] > places[node] for view in views for user in view.users):
            continue
        result = _source(node, places) if node.target is _aten.copy_.default else _computed(graph, node)
        if result is None:
            continue
        places.setdefault(result, places[node])
        for reader in readers:
            reader.replace_input_with(overwritten, result)
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _source(node: Node, places: dict[Node, int]) -> Node | None:
    """The tensor that is copied into another, if nobody reads or writes it afterwards: it is the other from then on."""
    overwritten, source = node.args[:2]
    if len(node.args) != 2 or not isinstance(source, Node) or not same_form(overwritten, source):
        return None
    value = source.meta["val"]
    if value.is_complex() or any(str(stride) == "0" for stride in value.stride()):  # elements may share memory
        return None
    root = source
    while not _is_own(root):
        given = [one for one in root.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]
        if root.op != "call_function" or len(given) != 1:
            return None
        root = given[0]
    group = {root}.union(*(_views(user, but=node) for user in root.users))
    return None if any(places[user] > places[node] for one in group for user in one.users) else source


def _computed(graph: Graph, node: Node) -> Node | None:
    """The result of the operator that computes what a node computes in place."""
    operator = _operator(node)
    name = operator._schema.name.removeprefix("aten::").removesuffix("_")
    if name not in _IN_PLACE:
        return None
    plain: Any = getattr(getattr(_aten, name), operator._overloadname)
    for one in node.all_input_nodes:
        value, written = one.meta.get("val"), cast("Node", node.args[0]).meta.get("val")
        if not (isinstance(value, Tensor) and isinstance(written, Tensor)):
            return None
        # Nothing may be promoted or laid out otherwise: a tensor that is written to keeps its type and its strides.
        if value.dtype != written.dtype or not value.is_floating_point():
            return None
        if value.dim() == written.dim() and not _same_layout(one, node.args[0]):
            return None
    with graph.inserting_before(node):
        made = graph.call_function(plain, node.args, node.kwargs)
    made.meta = dict(node.meta)
    return made


def _same_layout(one: Any, other: Any) -> bool:
    """Whether two nodes are tensors of the same sizes, type and strides, none of whose elements share memory."""
    if not same_form(one, other):
        return False
    strides = [[str(stride) for stride in node.meta["val"].stride()] for node in (one, other)]
    return strides[0] == strides[1] and "0" not in strides[0]


def _views(node: Node, but: Node | None = None) -> set[Node]:
    """A node and those after it that may share memory with what it was given; none if it shares none itself.

    What comes by way of `but` is left out.
    """
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found and one is not but and not _is_own(one):
            found.add(one)
            waiting += one.users
    return found


def _is_own(node: Node) -> bool:
    """Whether a tensor's memory is shared with nothing that it was made from."""
    operator = _operator(node)
    if operator is None or any(returned.alias_info is not None for returned in operator._schema.returns):
        return False
    # What is made of other operators may return what it was given, and does not say so.
    return operator in _FRESH or not operator.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd)


def _may_write(node: Node) -> bool:
    """Whether a node writes to what it is given, or may."""
    if node.op != "call_function":
        return False
    operator = _operator(node)
    if operator is None:  # arithmetic of sizes, or a part of the model with a graph of its own
        module, name = (getattr(node.target, part, None) or "" for part in ("__module__", "__name__"))
        return module.lstrip("_") not in _PLAIN and not name.startswith("sym_")
    given = dict(zip((argument.name for argument in operator._schema.arguments), node.args, strict=False))
    given |= node.kwargs
    # Running statistics are written, though the operator does not say so.
    return _writes(node) or any(given.get(name) for name in _TRAINING)


def _writes(node: Node) -> bool:
    """Whether a node calls an operator that says that it writes."""
    operator = _operator(node)
    return operator is not None and operator._schema.is_mutable


def _operator(node: Node) -> Any:
    """The operator of PyTorch's that a node calls; None for anything else."""
    is_one = node.op == "call_function" and isinstance(node.target, OpOverload)
    return cast("Any", node.target) if is_one else None
