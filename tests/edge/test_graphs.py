"""Programs prepared for compilers: the same values, a bounded batch, plain convolutions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from compoff.edge.backends.graphs import prepared
from compoff.manifest import CodeSpec
from tests.small_artifacts import MANIFEST


class Decoding(nn.Module):
    """Bytes through one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, symbols: Tensor) -> Tensor:
        return self.layer(symbols.float())


@pytest.mark.parametrize(
    ("layer", "turned"),
    [
        (nn.ConvTranspose2d(4, 3, 3), True),
        (nn.ConvTranspose2d(4, 3, 3, padding=1), True),
        (nn.ConvTranspose2d(4, 3, (1, 3), padding=(0, 2), bias=False), True),
        (nn.ConvTranspose1d(4, 3, 5, padding=2), True),
        (nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), False),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), False),
        (nn.ConvTranspose2d(4, 3, 3, dilation=2), False),
        (nn.Conv2d(4, 3, 3), False),
    ],
    ids=str,
)
@pytest.mark.parametrize("max_batch", [1, 7])
def test_values_stay_and_stride_one_becomes_a_convolution(layer: nn.Module, turned: bool, max_batch: int) -> None:
    shape = (4, 6) if isinstance(layer, nn.ConvTranspose1d) else (4, 6, 5)
    code = CodeSpec(shape, num_centers=255, qualities=(4,))
    manifest = dataclasses.replace(MANIFEST, codes=(code,), sides=(), max_batch=max_batch)
    example = torch.randint(255, (2, *shape), dtype=torch.uint8)
    free = ({0: torch.export.Dim.DYNAMIC},)
    before = torch.export.export(Decoding(layer).eval(), (example,), dynamic_shapes=free).run_decompositions({})
    names = [str(node.target) for node in before.graph.nodes]
    after = prepared(before, manifest)
    assert [str(node.target) for node in before.graph.nodes] == names
    transposed = [node for node in after.graph.nodes if "conv_transpose" in str(node.target)]
    assert bool(transposed) == (not turned and isinstance(layer, nn.ConvTranspose2d))
    bounds = [(int(one.lower), int(one.upper)) for one in after.range_constraints.values()]
    assert bounds == ([] if max_batch == 1 else [(1, max_batch)])
    for batch in {1, max_batch}:
        x = torch.randint(255, (batch, *shape), dtype=torch.uint8)
        expected = before.module(check_guards=False)(x)
        torch.testing.assert_close(after.module(check_guards=False)(x), expected, rtol=1e-4, atol=1e-3)
