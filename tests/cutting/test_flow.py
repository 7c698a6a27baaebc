"""What crosses a moment of a run, and what is sent in its place: flows written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compoff.cutting.flow import Flow, Operator, Value, bytes_per_sample

FLOAT, TOKEN, MASK = torch.float32, torch.int64, torch.bool


def flow(inputs: dict[int, tuple[int, torch.dtype]], *operators: tuple[tuple[int, ...], int]) -> Flow:
    """Each operator reads some values and makes one of so many elements a sample; the last value is the output."""
    values = [Value(number, (2, size), dtype, -1, depends=True) for number, (size, dtype) in inputs.items()]
    ran: list[Operator] = []
    for index, (reads, size) in enumerate(operators):
        ran.append(Operator(index, "aten::add", reads, (len(values),)))
        values.append(Value(len(values), (2, size), FLOAT, index, depends=True))
    return Flow(ran, values, [*inputs], [len(values) - 1])


def changed(found: Flow, index: int, **fields: Any) -> Flow:
    """The same with another operator in the place of one."""
    one = found.operators[index]
    found.operators[index] = Operator(**{**vars(one), **fields})
    return found


def test_what_the_first_operator_behind_the_cut_reads_crosses() -> None:
    both = flow({0: (8, FLOAT)}, ((0,), 8), ((0,), 4), ((1, 2), 4))
    assert [both.crossing(moment) for moment in range(4)] == [[0], [0, 1], [1, 2], [3]]
    assert both.crossing(2, {1}) == [2], "the other is given anyway"


def test_what_the_program_looks_at_behind_the_cut_crosses_although_no_output_is_made_of_it() -> None:
    unseen, looked_at = (flow({0: (8, FLOAT)}, ((0,), 8), ((0,), 4), ((2,), 1), ((1,), 3)) for _ in range(2))
    assert unseen.crossing(2) == [1]
    assert changed(looked_at, 2, name="aten::item").crossing(2) == [1, 2]


def test_a_mask_is_sent_in_the_place_of_what_follows_from_it() -> None:
    masked = flow({0: (4096, MASK), 1: (8, FLOAT)}, ((0,), 200), ((2, 1), 8))
    assert masked.cheaper_inputs(2) == {0}, "512 bytes in the place of 800"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (flow({0: (4096, FLOAT)}, ((0,), 4096)), "the input is long itself"),
        (flow({0: (4096, TOKEN)}, ((0,), 100)), "8192 bytes are more than 400"),
        (changed(flow({0: (4096, MASK)}, ((0,), 4096)), 0, repeats=False), "it would be another the second time"),
        (changed(flow({0: (4096, MASK)}, ((0,), 4096)), 0, macs=10), "it is all that the model computes"),
    ],
)
def test_a_value_is_sent_itself_where_its_inputs_are_no_better(found: Flow, why: str) -> None:
    assert found.cheaper_inputs(1) is None, why


@pytest.mark.parametrize(("dtype", "plain", "packed"), [(MASK, 16, 2), (TOKEN, 128, 32), (torch.uint8, 16, 16)])
def test_integers_are_packed(dtype: torch.dtype, plain: int, packed: int) -> None:
    value = Value(0, (2, 16), dtype, -1, depends=True)
    assert (bytes_per_sample(value), bytes_per_sample(value, packed=True)) == (plain, packed)
