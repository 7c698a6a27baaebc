"""That nothing writes in place after `functional`, and that what is computed stays the same, whichever way it went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from compoff.cutting.functional import functional

if TYPE_CHECKING:
    from collections.abc import Callable

X = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    return torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)


def written(program: torch.export.ExportedProgram) -> list[str]:
    operators = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    return [str(operator) for operator in operators if operator._schema.is_mutable]


def overwritten(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(y.sin() + 1)
    return y + 1


def seen_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    row = y[0]
    y.copy_(x + 10)
    return row + 1


def seen_through_an_unsaid_view(x: Tensor) -> Tensor:
    y = x * 2
    same = torch.atleast_2d(y)  # returns what it was given, and its schema does not say so
    y.copy_(x + 10)
    return same + 1


def read_before(x: Tensor) -> Tensor:
    y = x * 2
    before = y.exp()
    y.copy_(x + 10)
    return before + y


def returned(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(x + 10)
    return y


def copied_twice(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(x + 10)
    y.copy_(y * 3)
    return y - 1


def of_another_type(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_((x + 0.6).to(torch.float16))
    return y + 1


def a_part(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1].copy_(x[:, 0])
    return y + 1


def a_row_for_all(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(x[0])
    return y + 1


def copied_from_what_is_read_later(x: Tensor) -> Tensor:
    y, source = x * 2, x + 10
    y.copy_(source)
    y.add_(1)
    return y * source


def copied_from_what_is_changed_later(x: Tensor) -> Tensor:
    y, source = x * 2, x + 10
    row = source[0]
    y.copy_(source)
    row.add_(1)
    return y * 3


def copied_from_an_input(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(x)
    y.add_(1)
    return y * 3


def copied_from_one_row_for_all(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(x[:1].exp().expand(x.shape[0], 3) * 1.0)
    y.copy_(x.sum(1, keepdim=True).expand(x.shape[0], 3))
    y[:, 1] = 100.0
    return y + 1


def copied_from_another_layout(x: Tensor) -> Tensor:
    y = x[:, None] * torch.ones(1, 2, 1)
    y.copy_((y.transpose(1, 2) + 1).exp().transpose(1, 2))
    y.reshape(x.shape[0], -1)[:, 0] = 1000.0
    return y + 1


def seen_through_a_conversion_to_the_same_type(x: Tensor) -> Tensor:
    y = (x * 2).argmax(1)
    view, same = y.view(-1, 1), y.long()
    view.add_(1000)
    return same


def copied_from_one_row_and_seen_flat(x: Tensor) -> Tensor:
    y = x * 2
    y.copy_(x.sum(1, keepdim=True).expand(x.shape[0], 3))
    return y.view(-1) * 1


def copied_from_a_conjugate(x: Tensor) -> Tensor:
    y = torch.complex(x, x) * 2
    y.copy_(torch.complex(x, -x).exp().conj())
    return torch.view_as_real(y) * 1


def as_large_as_another(x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True).expand_as(x.relu()) + (x * 2).view(-1).view_as(x)


def powers_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.pow_(2)
    return y + 1


def compared_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.gt_(0)
    return y / 2


def subtracted_from_itself(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 1.5
    y.copy_(y)
    y.sub_(y, alpha=2)
    y[:, 0] = 1.25
    with torch.no_grad():
        y.copy_(y[:1] * 1)
    return y, y * 2


def activated_in_place(x: Tensor) -> Tensor:
    y = x * 2
    before = y.cos()
    y.relu_()
    z = y.add_(before, alpha=3).clamp_(max=4.0)
    return torch.cat([z, y, before])


def a_sum_in_place_of_another_type(x: Tensor) -> Tensor:
    y = x * 2
    y += x.double() / 3
    return y * 3


def of_whole_numbers(x: Tensor) -> Tensor:
    y = x.to(torch.int64) * 2
    y.mul_(3)
    return y + x


def drawn(x: Tensor) -> Tensor:
    y = x * 2
    y.bernoulli_(1.0)
    return y + x


def turned_in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.t_()
    return y.sum(1) + 1


def added_in_place(x: Tensor) -> Tensor:
    y = x * 2
    half = y.view(-1)
    y += 1
    return half * 2


@pytest.mark.parametrize(
    ("function", "directly"),
    [
        (overwritten, True),
        (read_before, True),
        (copied_twice, True),
        (copied_from_what_is_read_later, False),
        (copied_from_what_is_changed_later, False),
        (copied_from_an_input, False),
        (copied_from_one_row_for_all, False),
        (copied_from_another_layout, False),
        (seen_through_a_conversion_to_the_same_type, False),
        (copied_from_one_row_and_seen_flat, False),
        (copied_from_a_conjugate, False),
        (as_large_as_another, False),
        (powers_in_place, False),
        (compared_in_place, False),
        (subtracted_from_itself, False),
        (activated_in_place, True),
        (a_sum_in_place_of_another_type, False),
        (of_whole_numbers, False),
        (drawn, False),
        (turned_in_place, False),
        (seen_through_a_view, False),
        (seen_through_an_unsaid_view, False),
        (returned, False),
        (of_another_type, False),
        (a_part, False),
        (a_row_for_all, False),
        (added_in_place, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_computes_the_same_and_writes_nothing(
    function: Callable[[Tensor], Any], directly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    decompose = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda self, table: asked.append(True) or decompose(self, table),
    )
    program = functional(exported(Calls(function)))
    assert written(program) == []
    assert bool(asked) != directly
    for x in (X, X[:1], torch.cat([X, X + 1])):
        given = x.clone()
        torch.testing.assert_close(program.module(check_guards=False)(given), function(x.clone()))
        assert torch.equal(given, x)


def test_an_input_that_is_written_to_is_known_as_one() -> None:
    program = functional(exported(Calls(lambda x: x.add_(1) * 2)))
    assert list(program.graph_signature.user_inputs_to_mutate.values()) == ["x"]


def test_a_buffer_that_is_written_to_is_known_as_one() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return self.norm(x)

    names = {"seen"}
    assert set(functional(exported(Counts().eval())).graph_signature.buffers_to_mutate.values()) == names
    # Batch normalization in training mode writes its statistics, though its operator does not say so.
    names |= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert set(functional(exported(Counts().train())).graph_signature.buffers_to_mutate.values()) == names


def test_dropout_of_eval_mode_is_gone_and_that_of_training_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.ReLU(), nn.AlphaDropout(), nn.Linear(3, 2))
    names = [str(node.target) for node in functional(exported(model.eval())).graph.nodes if node.op == "call_function"]
    assert names == ["aten.linear.default", "aten.relu.default", "aten.linear.default"]
    names = [str(node.target) for node in functional(exported(model.train())).graph.nodes]
    assert any("rand" in name or "bernoulli" in name or "dropout" in name for name in names)


def test_a_branch_with_a_graph_of_its_own_is_left_to_pytorch() -> None:
    def branches(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin().add_(1), lambda y: y.cos(), (x,))

    torch._dynamo.reset()  # it keeps what other tests made of a branch in this process
    program = functional(exported(Calls(branches)))
    graphs = [program.graph, *(module.graph for _, module in program.graph_module.named_children())]  # type: ignore[union-attr]
    assert not any("_." in str(node.target) and "add_" in str(node.target) for graph in graphs for node in graph.nodes)
    torch.testing.assert_close(program.module(check_guards=False)(X), branches(X))
