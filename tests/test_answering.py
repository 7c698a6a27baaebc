"""What stands for a model's answer where several tensors come back, or shapes that depend on values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.answering import answers, student_output, telling
from compoff.batch import Batch
from compoff.errors import FitError
from compoff.teaching import float_tensors


class Exits(nn.Module):
    """An exit before the last block, one behind it, and what counts its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        early = y.mean(1)
        return early, self.second(y.relu_())


class Finds(nn.Module):
    """Returns as many rows as there are scores above zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.score = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(self.first(x))
        return scores[scores[:, 0] > 0]


class Ragged(Finds):
    """Nothing behind the first layer keeps its shape."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.score(y[y[:, 0] > 0])


def at(net: nn.Module, split: str, x: Tensor) -> tuple[compoff.Wrapped, Batch, list[Tensor], list[Tensor]]:
    """A wrapped model, a batch, the feature at a split point, and the model's output."""
    model = compoff.wrap(net.eval(), split, example_input=x, codec="deepcod")
    site = model.sites[split]
    assert site.path == split
    features = [net.get_submodule("first")(x).detach()]
    with torch.no_grad():
        return model, Batch((x,)), features, float_tensors(net(x))


def test_an_early_exit_does_not_stand_for_the_answer() -> None:
    x = torch.randn(4, 8)
    model, batch, features, teacher = at(Exits(), "second", x)
    features = [features[0].relu()]
    assert telling(model.base, model.gate("second"), batch, features, teacher) == 1
    assert telling(model.base, model.gate("second"), batch, features, teacher[1:]) == 0


def test_restored_features_go_on_in_place_of_the_models_and_stay_what_they_are() -> None:
    x, net = torch.randn(4, 8), Exits()
    model, batch, _, _ = at(net, "second", x)
    restored = torch.randn(4, 8)
    before = restored.clone()
    _, late = student_output(model.base, model.gate("second"), batch, [restored])
    torch.testing.assert_close(late, net.second(before))
    assert torch.equal(restored, before)


def test_where_another_number_of_rows_is_found_the_last_block_stands_for_the_answer() -> None:
    x, net = torch.randn(16, 8), Finds()
    model, batch, features, teacher = at(net, "score", x)
    restored = [-features[0]]
    output = float_tensors(student_output(model.base, model.gate("score"), batch, restored))
    assert output[0].shape != teacher[0].shape
    path, one, other = answers(model.base, model.gate("score"), model.sites["score"], batch, restored, output, teacher)
    assert path == "score"
    torch.testing.assert_close(one, net.score(features[0]))
    torch.testing.assert_close(other, net.score(restored[0]))


def test_where_no_shape_stays_there_is_nothing_to_compare() -> None:
    x, net = torch.rand(16, 8), Ragged()
    with torch.no_grad():
        net.first.weight.copy_(torch.eye(8))
        net.first.bias.fill_(0.1)
    model, batch, _, teacher = at(net, "first", x)
    gate, site, restored = model.gate("first"), model.sites["first"], [-x - 1]
    output = float_tensors(student_output(model.base, gate, batch, restored))
    # The first layer itself keeps its shape, and lies behind the split point.
    assert answers(model.base, gate, site, batch, restored, output, teacher)[0] == "first"
    with pytest.raises(FitError, match="has another shape when the feature there is restored"):
        answers(model.base, gate, replace(site, later=("score",)), batch, restored, output, teacher)
