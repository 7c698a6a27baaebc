"""Exported programs in which nothing is written in place: what a cut through a graph takes for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import DispatchKey
from torch._ops import OpOverload

from compoff.cutting.graph_flow import same_form

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

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
_TRAINING = ("training", "train", "use_input_stats")  # arguments with which an operator keeps statistics


def functional(program: ExportedProgram) -> ExportedProgram:
    """Let nothing in a program write in place.

    PyTorch traces the whole program anew for that, which takes twice as long as the export itself. So it is asked only
    where something may write besides the decoded feature, which takes the place of the encoded one.

    Args:
        program: What `torch.export.export` returned; changed: dropout that does nothing is taken out.

    Returns:
        The program, or another that computes the same.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 2)).eval()
        >>> program = functional(torch.export.export(net, (torch.zeros(2, 3),)))
        >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        ['aten.relu.default', 'aten.linear.default']

    Source: this project.
    """
    _drop_dropout(program.graph)
    _settle_copies(program.graph)
    program.graph_module.recompile()
    if any(_may_write(node) for node in program.graph.nodes):
        return program.run_decompositions({})
    return program


def _drop_dropout(graph: Graph) -> None:
    """Take out the dropout of eval mode: it would become a copy, and stand for random numbers that nobody draws."""
    outputs = set(graph.output_node().all_input_nodes)  # known by their names elsewhere
    for node in list(graph.nodes):
        if node.target in _DROPOUTS and node.args[2:] == (False,) and node not in outputs:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _settle_copies(graph: Graph) -> None:
    """Where a tensor is overwritten whole, let those who read it afterwards read what it was overwritten with."""
    places, output = {node: place for place, node in enumerate(graph.nodes)}, graph.output_node()
    for node in list(graph.nodes):
        if node.target is not _aten.copy_.default or len(node.args) != 2:
            continue
        overwritten, source = node.args
        if not (same_form(overwritten, source) and _is_own(overwritten)):
            continue
        readers = {user for user in overwritten.users if places[user] > places[node]}
        if output in readers or output in node.users:  # which knows them by their names
            continue
        views = {view for user in set(overwritten.users) - readers - {node} for view in _views(user)}
        if any(places[user] > places[node] for view in views for user in view.users):
            continue
        for reader in readers:
            reader.replace_input_with(overwritten, source)
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _views(node: Node) -> set[Node]:
    """A node and those after it that may share memory with what it was given; none if it shares none itself."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in found and not _is_own(one):
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
    return operator._schema.is_mutable or any(given.get(name) for name in _TRAINING)


def _operator(node: Node) -> Any:
    """The operator of PyTorch's that a node calls; None for anything else."""
    is_one = node.op == "call_function" and isinstance(node.target, OpOverload)
    return cast("Any", node.target) if is_one else None
