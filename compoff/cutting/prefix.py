"""The head alone, for a model whose part behind the cut cannot be exported; and the decoders as a program.

The model is left by an exception at the moment of the cut, so that nothing behind it is ever looked at. The tail of
such a model is the model itself, run by the edge (`compoff.edge.backends.module`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from compoff.codec import Bottleneck
from compoff.cutting.capture import explained, folded, free_batch, program_of
from compoff.cutting.cut import head_of
from compoff.cutting.functional import functional
from compoff.cutting.graph_flow import has_batch
from compoff.cutting.inputs import ExampleInputs
from compoff.cutting.proof import check_sizes, prove, require_finite
from compoff.cutting.watching import frozen
from compoff.hooks import stop_listening, traced
from compoff.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.export import ExportedProgram

    from compoff.codec.layout import Layout
    from compoff.cutting.sites import Site
    from compoff.gates import Gate

__all__ = ["Prefix", "capture_prefix"]


@dataclass(frozen=True)
class Prefix:
    """The part before the cut as a program, and the decoders that stand behind it.

    Args:
        head: Inputs to the symbols of each code, then the side tensors, then for each code which samples are finite.
        decoders: Symbols of each code to the features as the model has them.
        sides: The side tensors at the example inputs, and for each whether its first axis is the batch.
    """

    head: ExportedProgram
    decoders: ExportedProgram
    sides: tuple[tuple[Tensor, bool], ...]


class _AtCut(Exception):
    """Leaves the model at the cut with what crosses; not an error."""

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.parts = parts


class _UpToCut(nn.Module):
    """A model that returns what crosses."""

    def __init__(self, base: nn.Module, gate: Gate, bottlenecks: Sequence[Bottleneck], sides: int) -> None:
        super().__init__()
        # Hidden from torch.export, which keeps account of the modules it is in and does not expect to leave them so.
        self.__dict__.update(base=base, gate=gate, coders=tuple(bottlenecks), sides=sides)

    # Two containers: what is taken by name alone has no place that torch.export knows among keywords of any name.
    def forward(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Tensor, ...]:
        base, gate, coders, sides = (self.__dict__[name] for name in ("base", "gate", "coders", "sides"))

        def leave(features: list[Tensor]) -> list[Tensor]:
            coded = [
                coder.encode_checked(y.to(coder.quantizer.centers.dtype))
                for coder, y in zip(coders, features, strict=True)
            ]
            raise _AtCut([one for one, _ in coded] + gate.sides(sides) + [finite for _, finite in coded])

        before = gate.replace
        gate.replace = leave
        try:
            base(*args, **keywords)
        except _AtCut as cut:
            return tuple(cut.parts)
        finally:
            gate.replace = before
            stop_listening(base)
        raise RuntimeError("the model returned without passing the split point")


class _Decoders(nn.Module):
    """Symbols to features."""

    def __init__(
        self,
        bottlenecks: Sequence[Bottleneck],
        layouts: Sequence[Layout],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[torch.dtype],
    ) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleList(bottlenecks)
        self.forms = list(zip(layouts, shapes, dtypes, strict=True))

    def forward(self, *symbols: Tensor) -> tuple[Tensor, ...]:
        decoded: list[Tensor] = []
        for bottleneck, one, (layout, shape, dtype) in zip(self.bottlenecks, symbols, self.forms, strict=True):
            assert isinstance(bottleneck, Bottleneck)
            decoded.append(layout.unpack(bottleneck.decode(one), shape).to(dtype))
        return tuple(decoded)


def capture_prefix(base: nn.Module, gate: Gate, site: Site, example: ExampleInputs, *, most: int) -> Prefix:
    """Export what runs before the cut, and the decoders.

    Args:
        base: The model with its hooks.
        gate: The gate of the split point.
        site: The split point.
        example: Example inputs, of two samples.
        most: Largest number of samples in a batch.

    Returns:
        Both programs, on the CPU.

    Raises:
        SplitError: What runs before the cut cannot be exported either; the message says where.

    Source: this project.
    """
    bottlenecks = [folded(bottleneck) for bottleneck in gate.bottlenecks]
    with frozen(base), quiet("torch", contextlib.redirect_stderr):
        module = _UpToCut(base, gate, bottlenecks, len(site.sides))

        def export() -> nn.Module:
            with traced(base):
                program = torch.export.export(
                    module, (example.args, example.keywords), dynamic_shapes=free_batch(example), strict=False
                )
                check_sizes(program, most, site.path)
                return functional(program).module(check_guards=False)

        with explained(f"what runs before '{site.path}' in {type(base).__name__} cannot be exported", export):
            graph = export()
        assert isinstance(graph, torch.fx.GraphModule)
        output = next(node for node in graph.graph.nodes if node.op == "output")
        results = [leaf for leaf in pytree.tree_leaves(output.args[0]) if isinstance(leaf, Node)]
        half = head_of(graph, results)
        parts: tuple[Tensor, ...] = half(*example.tensors)
        count = len(bottlenecks)

        def run(given: ExampleInputs) -> tuple[tuple[Tensor, ...], tuple[()]]:
            crossed = module(given.args, given.keywords)
            require_finite(crossed[-count:])
            return crossed[:count], ()

        prove(site.path, example, run, half, source=graph, most=most)
        flags = tuple(has_batch(result) for result in results[count:-count])
        head = program_of(half, example, site.path)
        shapes = [feature.shape for feature in site.features]
        dtypes = [feature.dtype for feature in site.features]
        decoders = program_of(
            _Decoders(bottlenecks, gate.layouts, shapes, dtypes),
            ExampleInputs(parts[:count], batched=(True,) * count),
            site.path,
        )
    return Prefix(head, decoders, tuple(zip(parts[count:-count], flags, strict=True)))
