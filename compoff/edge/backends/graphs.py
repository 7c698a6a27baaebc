"""A tail's program in the form that compilers like best: a bounded batch, no convolution transposed in name only."""

from __future__ import annotations

import math
import operator
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from compoff.edge.backends.samples import sample_parts
from compoff.programs import to_tensor

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from compoff.manifest import Manifest

__all__ = ["batched_parts", "example_tensors", "prepared"]

_TRANSPOSED = {
    torch.ops.aten.conv_transpose1d.default: torch.ops.aten.conv1d.default,
    torch.ops.aten.conv_transpose2d.input: torch.ops.aten.conv2d.default,
}


def prepared(
    exported: ExportedProgram, manifest: Manifest, device: str = "cpu", *, decompose: bool = True
) -> ExportedProgram:
    """The same program, with a batch from one to the most that the tail takes.

    A transposed convolution of stride one is a convolution with the kernel turned round; compilers have far better code
    for the latter.

    Args:
        exported: The program.
        manifest: What the tail is.
        device: Where its weights are.
        decompose: Whether BatchNorm is to be the operator that returns a tuple; otherwise every operator but those on
            sizes returns a tensor.

    Returns:
        The program; the given one is not changed.
    """
    module = exported.module(check_guards=False)
    for node in list(module.graph.nodes):
        if node.target in _TRANSPOSED and _is_convolution(node):
            _turn_round(module.graph, node)
        elif node.target == torch.ops.aten._native_batch_norm_legit_no_training.default:
            _as_tensor(module.graph, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    shapes: list[dict[int, Any] | None] = [None for _ in batched_parts(manifest)]
    if manifest.max_batch > 1:
        batch = torch.export.Dim("batch", min=1, max=manifest.max_batch)
        shapes = [{0: batch} if batched else None for batched in batched_parts(manifest)]
    examples = example_tensors(manifest, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export
        again = torch.export.export(module, examples, dynamic_shapes=tuple(shapes), strict=False)
        return again.run_decompositions({}) if decompose else again


def example_tensors(manifest: Manifest, device: str) -> tuple[Tensor, ...]:
    """What a program may take, two samples of it.

    Args:
        manifest: What the tail is.
        device: Where they are to be.

    Returns:
        One tensor an input.
    """
    return tuple(to_tensor(part).to(device) for part in sample_parts(manifest, min(2, manifest.max_batch)))


def batched_parts(manifest: Manifest) -> list[bool]:
    """For each input of a program, whether its first axis is the batch.

    Args:
        manifest: What the tail is.

    Returns:
        One flag an input.
    """
    return [*(True for _ in manifest.codes), *(spec.batched for spec in manifest.sides)]


def _options(node: fx.Node) -> tuple[list[int], list[int], list[int], int, list[int]]:
    """Stride, padding, output padding, groups and dilation, as long as they are or not."""
    defaults: list[Any] = [1, 0, 0, 1, 1]
    given: list[Any] = list(node.args[3:])
    stride, padding, output_padding, groups, dilation = given + defaults[len(given) :]

    def listed(value: Any) -> list[int]:
        return [value] if isinstance(value, int) else list(value)

    return listed(stride), listed(padding), listed(output_padding), groups, listed(dilation)


def _is_convolution(node: fx.Node) -> bool:
    """Whether a transposed convolution is one of stride one, without further tricks."""
    stride, padding, output_padding, groups, dilation = _options(node)
    weight = _weight(node)
    if node.kwargs or weight is None or groups != 1 or {*stride, *dilation} != {1} or any(output_padding):
        return False
    return all(edge < size for edge, size in zip(_spread(padding, weight), weight.shape[2:], strict=True))


def _weight(node: fx.Node) -> Tensor | None:
    """The kernel, where it is a parameter of the program."""
    args: list[Any] = list(node.args)
    source = args[1]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    value: Any = node.graph.owning_module
    for name in str(source.target).split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, Tensor) else None


def _spread(padding: list[int], weight: Tensor) -> list[int]:
    """One number an axis; PyTorch takes a single one for all."""
    axes = weight.dim() - 2
    return padding * math.ceil(axes / len(padding))


def _turn_round(graph: fx.Graph, node: fx.Node) -> None:
    """Put the convolution in the place of the transposed one."""
    weight = _weight(node)
    assert weight is not None
    edges = [size - 1 - edge for size, edge in zip(weight.shape[2:], _spread(_options(node)[1], weight), strict=True)]
    args: list[Any] = [*node.args, None]
    target: Any = node.target
    axes = list(range(2, weight.dim()))
    with graph.inserting_before(node):
        kernel = graph.call_function(torch.ops.aten.transpose.int, (args[1], 0, 1))
        kernel = graph.call_function(torch.ops.aten.flip.default, (kernel, axes))
        ones = [1] * len(axes)
        plain = graph.call_function(_TRANSPOSED[target], (args[0], kernel, args[2], ones, edges))
    node.replace_all_uses_with(plain)
    graph.erase_node(node)


def _as_tensor(graph: fx.Graph, node: fx.Node) -> None:
    """Put BatchNorm as people write it in the place of one that returns statistics that nobody reads, too."""
    source, weight, bias, mean, variance, momentum, epsilon = node.args
    with graph.inserting_before(node):
        args = (source, weight, bias, mean, variance, False, momentum, epsilon, True)
        plain = graph.call_function(torch.ops.aten.batch_norm.default, args)
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(plain)
