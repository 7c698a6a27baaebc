"""Fitting, exporting and answering on a card: nothing is left on the CPU, and what is computed is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.batch import Batch
from compoff.errors import FeatureError, SplitError
from compoff.fitting.aim import Aim
from compoff.fitting.fitter import Fitter
from tests.pretended import pretended_cards

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.recipe import CodecName
    from compoff.wrapping import Wrapped


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return list(torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    return nn.Sequential(*layers).eval()


def fitted(codec: CodecName, batches: list[Tensor], device: str, state: Path | None = None) -> Wrapped:
    example = batches[0].to(device)
    model = compoff.wrap(network().to(device), "2", example_input=example, codec=codec)
    compoff.fit(model, batches, steps=2, resume=state, progress=False)
    return model


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_model_on_a_card_is_fitted_exported_and_served(
    codec: CodecName, batches: list[Tensor], tmp_path: Path
) -> None:
    here = fitted(codec, batches, "cpu").bottlenecks.state_dict()
    with pretended_cards():
        model = fitted(codec, batches, "cuda", tmp_path / "state")
        assert {str(one.device) for one in (*model.parameters(), *model.buffers())} == {"cuda:0"}
        there = {name: value.cpu() for name, value in model.bottlenecks.state_dict().items()}
        again = fitted(codec, batches, "cuda", tmp_path / "state")  # goes on from the last step
        head, tail = compoff.export(again, "2")
        head.save(tmp_path / "head")
        tail.save(tmp_path / "tail")
        payload = head(batches[0])
        with torch.no_grad(), again.eval().at("2"):
            expected = again(batches[0].to("cuda")).cpu()
        for answer in (tail(payload), compoff.Tail.load(tmp_path, device="cuda")(payload)):
            assert answer.device == torch.device("cpu")
            torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(there, here)


def test_what_is_pretended_is_as_strict_as_a_card() -> None:
    with pretended_cards():
        on_card = torch.ones(3, device="cuda:1")
        assert str(on_card[1:].sum().device) == "cuda:1"
        assert (on_card * 2).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            on_card + torch.ones(3)
        with pytest.raises(RuntimeError, match="same device"):
            on_card + torch.ones(3, device="cuda:0")
        with pytest.raises(TypeError, match="numpy"):
            on_card.numpy()
    assert on_card.is_cpu


def test_a_tail_stays_on_the_card_that_was_the_current_one_when_it_was_loaded(tmp_path: Path) -> None:
    model = compoff.wrap(nn.Sequential(nn.Linear(8, 4)), "input", example_input=torch.zeros(2, 8), codec="deepcod")
    _, tail = compoff.export(model, "input")
    tail.save(tmp_path)
    with pretended_cards(current=1):
        loaded = compoff.Tail.load(tmp_path, device="cuda")
        compiled = tail.compile("eager", device="cuda")
        by_number = compoff.Tail.load(tmp_path, device=0)
    assert [one.choice.device for one in (loaded, compiled, by_number)] == ["cuda:1", "cuda:1", "cuda:0"]


class Split(nn.Module):
    """A table that stays on the CPU, and layers on two cards."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 8)
        self.first, self.second = nn.Linear(8, 8).to("cuda:0"), nn.Linear(8, 8).to("cuda:1")

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.table(tokens.cpu()).mean(1).to("cuda:0").relu()
        return self.second(self.first(embedded).to("cuda:1").relu())


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_model_on_two_cards_has_bottlenecks_where_their_features_are(codec: CodecName) -> None:
    tokens = torch.arange(16).view(4, 4) % 10
    with pretended_cards():
        model = compoff.wrap(Split().eval(), ["first", "second"], example_input=tokens, codec=codec)
        compoff.fit(model, [tokens] * 2, steps=2, progress=False)
        for split, card in (("first", "cuda:0"), ("second", "cuda:1")):
            assert {str(one.device) for one in model.bottleneck(split).parameters()} == {card}


class Beside(nn.Module):
    """Layers on two cards, with a skip connection from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32).to("cuda:0"), nn.Linear(32, 32).to("cuda:1")

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.second(first.to("cuda:1").relu()) + first.tanh().to("cuda:1")


def test_features_of_one_split_point_on_two_cards_are_refused_in_words() -> None:
    told = r"at 'second' are on cuda:0 and cuda:1, .*\.to\('cuda:1'\)"
    with pretended_cards(), pytest.raises(SplitError, match=told):
        compoff.wrap(Beside().eval(), "second", example_input=torch.randn(4, 8).to("cuda"))


class HandedOver(nn.Module):
    """A model that gives its answer on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).cpu()


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_model_that_hands_its_answer_over_on_the_cpu_is_fitted(codec: CodecName) -> None:
    x = torch.randn(8, 8)
    with pretended_cards():
        model = compoff.wrap(HandedOver().eval().to("cuda"), "second", example_input=x.to("cuda"), codec=codec)
        assert compoff.fit(model, [x], steps=2, progress=False).steps == 2


def test_inputs_elsewhere_than_the_model_are_refused_with_both_devices(batches: list[Tensor]) -> None:
    told = r"The batch is on cpu, and the model on cuda:0: move it there, with \.to\('cuda:0'\)"
    with pretended_cards():
        net = network().to("cuda")
        with pytest.raises(FeatureError, match=told):
            compoff.list_split_points(net, batches[0])
        with pytest.raises(FeatureError, match=told):
            compoff.wrap(net, "2", example_input=batches[0])
        model = compoff.wrap(net, "2", example_input=batches[0].to("cuda"), codec="deepcod")
        with pytest.raises(FeatureError, match=told):
            model.distillation_loss(batches[0])


def test_a_step_of_a_fit_waits_for_the_card_three_times_a_split_point(batches: list[Tensor]) -> None:
    with pretended_cards() as cards:
        batch = Batch((batches[0].to("cuda"),))
        model = compoff.wrap(network().to("cuda"), "2", example_input=batch.args[0]).train()
        compoff.calibrate(model, batches)
        fitter = Fitter(model, compoff.Recipe(), lr=1e-3, rate=0.0, total=4, aim=Aim(40.0))
        fitter.step(batch)
        before = cards.reads
        fitter.step(batch)
        assert cards.reads - before == 3  # whether there are directions, the bits, and what is noted of a step
