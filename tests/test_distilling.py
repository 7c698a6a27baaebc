"""One teacher pass and one student pass against the same model run by hand."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.batch import Batch
from compoff.distilling import DistillationTerms, student_pass
from compoff.errors import FeatureError, FitError, SplitError
from compoff.recipe import Recipe
from compoff.teaching import TeacherRecord, teacher_pass

if TYPE_CHECKING:
    from compoff.codec import Bottleneck
    from compoff.recipe import CodecName


class Net(nn.Module):
    """Four blocks; the third is followed by a skip, the output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.body = nn.Conv2d(6, 6, 3, padding=1)
        self.tail = nn.Conv2d(6, 4, 3, padding=1)
        self.score = nn.Linear(4, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.stem(x)
        z = torch.relu(self.body(y)) + y
        features = self.tail(z)
        self.calls += 1
        logits = self.score(features.mean((2, 3)))
        return {"logits": logits, "features": features, "classes": logits.argmax(1), "loss": logits.mean()}


def wrapped_at(net: nn.Module, *splits: str, x: Tensor) -> compoff.Wrapped:
    return compoff.wrap(net, list(splits), example_input=x, channels=4, codec="deepcod").train()


def passes(
    model: compoff.Wrapped, split: str, x: Tensor, *, distill: bool = True
) -> tuple[TeacherRecord, DistillationTerms]:
    gate, batch = model.gate(split), Batch((x,))
    record = teacher_pass(model.base, {split: gate}, model.sites, batch, blocks=distill)
    return record, student_pass(model.base, gate, model.sites[split], record, batch, Recipe(), distill=distill)


def settled(model: compoff.Wrapped, split: str, y: Tensor) -> Bottleneck:
    """The bottleneck in a state in which two passes give the same."""
    bottleneck = model.eval().bottleneck(split)
    bottleneck.calibrate(y)
    for layer in bottleneck.spectral_layers():
        layer.settle()
    return bottleneck


def relative(teacher: Tensor, student: Tensor, *, output: bool = False) -> float:
    ours, theirs = teacher.detach().double().numpy(), student.detach().double().numpy()
    unit = max(np.var(ours, axis=0, ddof=1).mean(), 0.01 * np.var(ours)) if output else np.var(ours)
    return float(((ours - theirs) ** 2).mean() / unit)


def test_equation_10_and_11_over_every_later_block_and_the_output() -> None:
    net, x = Net(), torch.randn(4, 3, 8, 8)
    model = wrapped_at(net, "body", x=x)
    y = net.stem(x)
    bottleneck = settled(model, "body", y)
    record, terms = passes(model, "body", x)

    # The same by hand; a skip reads the decoded feature too.
    y_hat = bottleneck.run(y).y_hat
    expected = {}
    for name, entering in (("teacher", y), ("student", y_hat)):
        body = net.body(entering)
        tail = net.tail(torch.relu(body) + entering)
        expected[name] = [body, tail, net.score(tail.mean((2, 3)))]
    torch.testing.assert_close(record.features["body"][0], y)
    assert terms.reconstruction.item() == pytest.approx(relative(y, y_hat), rel=1e-4)
    assert terms.distillation is not None
    both = zip(expected["teacher"], expected["student"], (False, True, True), strict=True)  # the tail is returned, too
    by_hand = sum(relative(teacher, student, output=output) for teacher, student, output in both)
    assert terms.distillation.item() == pytest.approx(by_hand, rel=1e-4)
    assert model.sites["body"].later == ("body", "tail", "score")


def test_the_first_phase_stops_at_the_split_point() -> None:
    net, x = Net(), torch.randn(4, 3, 8, 8)
    model = wrapped_at(net, "body", x=x)
    before = net.calls
    record, terms = passes(model, "body", x, distill=False)
    assert net.calls == before
    assert terms.distillation is None
    assert record.blocks == {}
    assert record.output == []
    passes(model, "body", x)
    assert net.calls == before + 2


def test_gradients_reach_the_bottleneck_and_never_the_model() -> None:
    net, x = Net(), torch.randn(4, 3, 8, 8)
    model = wrapped_at(net, "body", x=x)
    _, terms = passes(model, "body", x)
    terms.total(Recipe(), rate=0.1).backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.grad is not None for parameter in model.bottleneck_parameters())


def test_the_priors_term_does_not_reach_the_encoder_and_the_rate_does() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = wrapped_at(Net(), "body", x=x)
    bottleneck = model.bottleneck("body")
    with torch.no_grad():
        bottleneck.prior.logits.normal_()
    weight = bottleneck.get_parameter("encoder.layer.weight")
    _, terms = passes(model, "body", x, distill=False)
    assert terms.prior_rate.item() == pytest.approx(terms.estimated_rate.item())
    assert torch.autograd.grad(terms.prior_rate, weight, allow_unused=True) == (None,)
    (grad,) = torch.autograd.grad(terms.estimated_rate, weight)
    assert float(grad.abs().sum()) > 0


def test_the_total_is_the_weighted_sum() -> None:
    terms = DistillationTerms(*map(torch.tensor, (2.0, 3.0, 5.0, 7.0, 11.0)))
    recipe = Recipe(orthogonality=0.1, reconstruction=10.0, distillation=100.0, prior=0.01)
    assert float(terms.total(recipe, rate=0.5)) == pytest.approx(0.1 * 3 + 10 * 2 + 100 * 5 + 0.01 * 11 + 0.5 * 7)
    first_phase = DistillationTerms(torch.tensor(2.0), torch.tensor(3.0), None, torch.tensor(0.0), torch.tensor(0.0))
    assert float(first_phase.total(recipe, rate=0.5)) == pytest.approx(20.3)


def test_a_last_block_that_is_the_output_counts_once() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1))
    model = wrapped_at(net, "1", x=x)
    bottleneck = settled(model, "1", net[0](x))
    record, terms = passes(model, "1", x)
    assert terms.distillation is not None
    teacher, student = (net[1](y) for y in (record.features["1"][0], bottleneck.run(record.features["1"][0]).y_hat))
    assert terms.distillation.item() == pytest.approx(relative(teacher, student, output=True), rel=1e-4)


def test_a_model_that_changes_the_feature_in_place() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, padding=1))
    model = wrapped_at(net, "1", x=x)
    y = nn.functional.conv2d(x, net[0].weight, net[0].bias, padding=1).detach()
    bottleneck = settled(model, "1", y)
    record, terms = passes(model, "1", x)
    torch.testing.assert_close(record.features["1"][0], y)
    assert terms.reconstruction.item() == pytest.approx(relative(y, bottleneck.run(y).y_hat), rel=1e-4)
    _, terms = passes(model.train(), "1", x)
    terms.total(Recipe(), rate=0.0).backward()


class Classes(nn.Module):
    """Answers with class numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x).argmax(1)


def test_an_output_without_scores_cannot_be_distilled() -> None:
    x = torch.randn(4, 8)
    model = wrapped_at(Classes(), "input", x=x)
    with pytest.raises(FitError, match="nothing to distil"):
        passes(model, "input", x)
    assert model.gate("input").replace is None


class Sometimes(nn.Module):
    """Skips its block for inputs below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x * 2) if bool((x >= 0).all()) else x


def test_a_batch_that_does_not_pass_the_split_point() -> None:
    x = torch.rand(4, 8)
    model = wrapped_at(Sometimes(), "block", x=x)
    with pytest.raises(SplitError, match="did not pass the split point 'block'"):
        passes(model, "block", -x)
    assert model.gate("block").replace is None


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), r"uint8"),
        (torch.zeros(4, 3, 9, 8), r"shape \(3, 9, 8\)"),
    ],
)
def test_inputs_of_another_kind_are_refused_at_the_input(x: Tensor, words: str) -> None:
    model = wrapped_at(Net(), "input", x=torch.randn(2, 3, 8, 8))
    with pytest.raises(FeatureError, match=words):
        passes(model, "input", x, distill=False)


class Sparse(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to_sparse()


class Dense(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y.to_dense()


@pytest.mark.parametrize("net", [nn.Sequential(Sparse(32, 8)), nn.Sequential(Sparse(32, 8), Dense())])
@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_sparse_tensor_is_named(codec: CodecName, net: nn.Module) -> None:
    x = torch.randn(8, 32)
    model = compoff.wrap(copy.deepcopy(net), "input", example_input=x, codec=codec)
    with pytest.raises(FitError, match="returns a tensor of layout sparse_coo, which cannot be compared"):
        compoff.fit(model, [x], steps=1, recipe=replace(Recipe.named(codec), reconstruction_share=0.0))


def test_a_model_made_in_inference_mode_is_named() -> None:
    with torch.inference_mode():
        net = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 4))
    x = torch.randn(4, 32)
    model = compoff.wrap(net, "1", example_input=x)
    for train in (
        lambda: compoff.fit(model, [x], steps=1),
        lambda: compoff.calibrate(model, [x]),
        lambda: model.distillation_loss(x),
    ):
        with pytest.raises(FitError, match=r"this Sequential was made inside torch.inference_mode\(\)"):
            train()


@pytest.mark.parametrize("x", [torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, 5, 8, 8)])
def test_what_the_model_refuses_is_named(x: Tensor) -> None:
    model = wrapped_at(Net(), "body", x=torch.randn(2, 3, 8, 8))
    with pytest.raises(FeatureError, match=r"the model refuses a batch of (uint8|float32) \(4, ") as caught:
        passes(model, "body", x, distill=False)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert model.gate("body").replace is None


class Finder(nn.Module):
    """As many numbers as it finds in what the block before gives, whose columns have means of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [one[one > 0] for one in self.second(self.first(x)) + torch.tensor([0.0, 0.0, 1e-3])]


def test_the_last_block_stands_for_an_answer_whose_shape_changes() -> None:
    torch.manual_seed(0)
    net, x = Finder(), torch.randn(16, 32)
    with torch.no_grad():
        net.second.bias.copy_(torch.tensor([0.0, 10, -20]))
    model = wrapped_at(net, "first", x=x)
    ends: dict[str, list[Tensor]] = {"first": [], "second": []}
    for name, seen in ends.items():
        net.get_submodule(name).register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(output.detach())
        )
    _, terms = passes(model, "first", x)
    expected = 0.0
    for name, seen in ends.items():
        teacher, student = (one.numpy() for one in (seen[0], seen[-1]))
        unit = np.var(teacher) if name == "first" else max(np.var(teacher, 0, ddof=1).mean(), 0.01 * np.var(teacher))
        expected += np.mean((teacher - student) ** 2) / unit
    assert terms.distillation is not None
    assert terms.distillation.item() == pytest.approx(expected, rel=1e-4)
