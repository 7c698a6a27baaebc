"""The cut of a graph, on graphs small enough to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from compoff.cutting.capture import marker
from compoff.cutting.cut import cut_at
from compoff.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import GraphModule

TARGET = torch.ops.compoff.cut.default


class Function(nn.Module):
    """A function as a model, with one weight."""

    def __init__(self, function: Callable[..., Any], width: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 3.0))
        self.unused = nn.Parameter(torch.ones(1000))
        self.function = function

    def forward(self, x: Tensor, *others: Any) -> Any:
        return self.function(x, self.weight, *others)


def graph_of(function: Callable[..., Any], *others: Any, width: int = 4) -> GraphModule:
    inputs = (torch.randn(2, width), *others)
    shapes = torch.export.ShapesCollection()
    for value in inputs:
        if isinstance(value, Tensor):
            shapes[value] = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Function(function, width), inputs, dynamic_shapes=shapes, strict=False)
    return program.run_decompositions({}).module(check_guards=False)  # type: ignore[return-value]


def test_both_halves_together_are_the_whole() -> None:
    halves = cut_at(graph_of(lambda x, w: marker(x * w) + w), TARGET, "here")
    x = torch.randn(5, 4)
    (symbols,) = halves.head(x)
    assert torch.equal(symbols, x * 3.0)
    assert torch.equal(halves.tail(symbols)[0], x * 3.0 + 3.0)
    assert halves.batched == (True,)


def test_neither_half_needs_the_marker_or_weights_of_the_other() -> None:
    halves = cut_at(graph_of(lambda x, w: marker(x * w) + 1.0), TARGET, "here")
    for half in (halves.head, halves.tail):
        assert all(node.target is not TARGET for node in half.graph.nodes)
    assert [tuple(value.shape) for value in halves.head.state_dict().values()] == [(4,)]
    assert not halves.tail.state_dict()


def test_constants_stand_on_both_sides() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        table = torch.arange(4.0) * w
        return marker(x + table) - table

    halves = cut_at(graph_of(function), TARGET, "here")
    x = torch.randn(3, 4)
    torch.testing.assert_close(halves.tail(*halves.head(x))[0], x)


def test_sizes_of_the_batch_are_read_off_the_symbols() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        length = x.shape[0]
        ones = torch.ones(length, 4) * w
        return (marker(x * ones) + ones + torch.zeros(length * 2, 4)[:length]).reshape(length * 2, 2).reshape(length, 4)

    halves = cut_at(graph_of(function), TARGET, "here")
    for batch in (1, 2, 7):
        x = torch.randn(batch, 4)
        assert torch.equal(halves.tail(*halves.head(x))[0], x * 3.0 + 3.0)


def test_operators_in_place_do_not_reach_across() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        y = x * w
        symbols = marker(y)
        symbols.relu_()
        y.add_(1.0)
        return symbols

    halves = cut_at(graph_of(function), TARGET, "here")
    x = torch.randn(3, 4)
    assert torch.equal(halves.head(x)[0], x * 3.0)
    assert torch.equal(halves.tail(x)[0], x.relu())


def test_constants_among_the_inputs_are_no_inputs_of_the_head() -> None:
    halves = cut_at(graph_of(lambda x, w, flag, none: marker(x * w) * flag, 3, None), TARGET, "here")
    assert len([node for node in halves.head.graph.nodes if node.op == "placeholder"]) == 1
    assert torch.equal(halves.tail(torch.ones(2, 4))[0], torch.full((2, 4), 3.0))


def test_a_tensor_that_nobody_reads_stays_an_input_of_the_head() -> None:
    halves = cut_at(graph_of(lambda x, w, y: marker(x * w), torch.randn(2, 3)), TARGET, "here")
    assert halves.head(torch.ones(2, 4), torch.ones(2, 3))[0].shape == (2, 4)


def test_outputs_are_told_apart_by_their_batch() -> None:
    halves = cut_at(graph_of(lambda x, w: (marker(x), None, w * 2.0, 7, torch.ones(2))), TARGET, "here")
    assert halves.batched == (True, False, False)
    assert [tuple(value.shape) for value in halves.tail(torch.ones(5, 4))] == [(5, 4), (4,), (2,)]


def test_a_number_that_is_read_from_a_tensor_cannot_cross() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        mean = x.mean().item()
        return marker(x * w) * mean

    with pytest.raises(SplitError, match=r"would cross the cut at 'here': item \(SymFloat\)"):
        cut_at(graph_of(function, width=64), TARGET, "here")


def skip(x: Tensor, w: Tensor) -> Tensor:
    y = x * w
    return marker(y) + y


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (skip, r"1 more tensor\(s\) would cross the cut at 'here': mul"),
        (lambda x, w: marker(x * w) + x, r"would cross the cut at 'here': x .*32\], 128 bytes a sample"),
        (lambda x, w: marker((x * w).sum(1, keepdim=True)) + (x * w), "128 bytes a sample. Choose a split point"),
        (lambda x, w: (marker(x * w), x.mean(1)), "would cross the cut at 'here': x"),
        (lambda x, w: marker(x.chunk(2, 1)[0]) + x.chunk(2, 1)[1], "1 more tensor.* would cross .*: x"),
        (lambda x, w: (marker(x), x.shape[0]), "a number that depends on the batch"),
        (lambda x, w: marker(x).T, "where the batch is not the first axis"),
        (lambda x, w: marker(x).reshape(-1, 2), "where the batch is not the first axis"),
        (lambda x, w: marker(x.reshape(-1, 2)).reshape(-1, 4), "where the batch is still as it was"),
        (lambda x, w: x * w, "passed 0 times in the exported model; expected 1"),
        (lambda x, w: marker(x) + marker(x), "passed 2 times"),
        (lambda x, w: marker(x) + marker(x, 1), "passed 2 times"),
    ],
)
def test_what_cannot_be_cut_is_named(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        cut_at(graph_of(function, width=32), TARGET, "here")


def test_several_codes_cross_in_the_order_of_their_numbers() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        y = x * w
        return marker(y + 1.0, 1) - marker(y, 0)

    halves = cut_at(graph_of(function), TARGET, "here", count=2)
    x = torch.randn(3, 4)
    first, second = halves.head(x)
    assert torch.equal(first, x * 3.0)
    assert torch.equal(second, x * 3.0 + 1.0)
    torch.testing.assert_close(halves.tail(first, second)[0], torch.ones(3, 4))


def test_what_is_sent_as_it_is_comes_after_the_codes() -> None:
    halves = cut_at(graph_of(skip, width=32), TARGET, "here", send=True)
    x = torch.randn(3, 32)
    symbols, side = halves.head(x)
    assert halves.crossing == (True,)
    assert torch.equal(side, x * 3.0)
    torch.testing.assert_close(halves.tail(symbols, side)[0], x * 6.0)


def test_a_few_numbers_cross_as_they_are() -> None:
    halves = cut_at(graph_of(skip), TARGET, "here")  # 16 bytes a sample
    assert len(halves.head(torch.ones(2, 4))) == 2


def test_a_mask_crosses_in_place_of_what_follows_from_it() -> None:
    def function(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
        wide = (1.0 - mask[:, :, None].expand(-1, -1, 32).float()) * -1e4
        return marker(x * w + wide.sum(1)) + wide.sum(1)

    halves = cut_at(graph_of(function, torch.ones(2, 3, dtype=torch.bool), width=32), TARGET, "here")
    x, mask = torch.randn(5, 32), torch.rand(5, 3) > 0.5
    symbols, side = halves.head(x, mask)
    assert side.dtype is torch.bool
    assert torch.equal(side, mask)
    whole = Function(function, 32)
    torch.testing.assert_close(halves.tail(symbols, side)[0], whole(x, mask))


def test_what_only_has_the_shape_of_a_tensor_of_the_device_is_made_on_the_edge() -> None:
    def function(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = x * w
        ones, sevens = torch.ones_like(y), y.new_full((y.shape[0], 32), 7.0)
        made = ones + sevens + torch.zeros_like(x) + torch.full_like(x, 2.0) + y.new_ones(y.shape) + y.new_zeros(32)
        return marker(y) + made, torch.ones_like(y, dtype=torch.int64)

    halves = cut_at(graph_of(function, width=32), TARGET, "here")
    for batch in (1, 3):
        x = torch.randn(batch, 32)
        answer, whole = halves.tail(*halves.head(x))
        torch.testing.assert_close(answer, x * 3.0 + 11.0)
        assert torch.equal(whole, torch.ones(batch, 32, dtype=torch.int64))
        assert whole.dtype is torch.int64


def test_a_tensor_that_is_overwritten_whole_does_not_cross() -> None:
    def function(x: Tensor, w: Tensor) -> Tensor:
        y = x * w
        z = marker(y)
        y.copy_(z * 2.0)
        return z + y

    halves = cut_at(graph_of(function, width=32), TARGET, "here")
    x = torch.randn(3, 32)
    torch.testing.assert_close(halves.tail(*halves.head(x))[0], x * 9.0)


def test_a_side_tensor_whose_batch_has_a_symbol_of_its_own_is_batched() -> None:
    def function(x: Tensor, w: Tensor, mask: Tensor) -> Tensor:
        narrow = mask.reshape(mask.shape[0], 200, 3)[:, :, 0] > 0  # smaller than the mask, so it is what crosses
        return marker(x * w) * narrow.float().mean(1, keepdim=True)

    halves = cut_at(graph_of(function, torch.ones(2, 600, dtype=torch.long), width=32), TARGET, "here")
    assert halves.crossing == (True,)
    x, mask = torch.randn(5, 32), torch.randint(-1, 2, (5, 600))
    torch.testing.assert_close(halves.tail(*halves.head(x, mask))[0], Function(function, 32)(x, mask))
