"""What a loop of one's own has to do last, against what fit does."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FitError, SplitError
from compoff.fitting.finishing import held_out, up_to
from tests.fitting.test_fit import Shuffled, batches, signals, trained_net

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def started(*splits: str) -> compoff.Wrapped:
    torch.manual_seed(3)
    model = compoff.wrap(trained_net(), list(splits or ("body",)), example_input=signals(2), stride=4)
    compoff.calibrate(model, batches())
    return model


def payload_bytes(head: compoff.Head) -> int:
    return sum(len(head(x[None])) for x in signals(16, seed=5))


def test_a_loop_of_ones_own_gets_the_tables_and_the_default_of_fit(caplog: pytest.LogCaptureFixture) -> None:
    model = started()
    optimizer = torch.optim.Adam(model.bottleneck("body").parameter_groups(lr=1e-3))
    for x in batches():
        optimizer.zero_grad()
        model.distillation_loss(x).backward()
        optimizer.step()
    before = payload_bytes(compoff.export(model, "body")[0])
    assert "compoff.finish" in caplog.text
    caplog.clear()
    report = compoff.finish(model, batches(), target_bytes=25)
    head, split = compoff.export(model, "body")[0], report.splits["body"]
    assert not [record for record in caplog.records if record.name == "compoff.export"]
    assert model.training, "modes are left as they were"
    assert report.measured_on == 64
    assert str(report).startswith("compoff.finish: measured on 64 training samples in ")
    assert report.measuring_seconds > 0
    assert split.bytes <= 1.02 * 25
    assert head.quality == split.quality
    assert payload_bytes(head) < before / 2
    assert payload_bytes(head) / 16 == pytest.approx(split.bytes, rel=0.2)


def test_the_quality_that_was_chosen_is_kept_where_the_weights_are() -> None:
    model, other = started(), started()
    chosen = compoff.finish(model, batches(), max_drop=0.3).splits["body"].quality
    assert 0 <= chosen < len(model.bottleneck("body").qualities()) - 1
    state = model.bottlenecks.state_dict()
    other.bottlenecks.load_state_dict(state)
    assert model.bottleneck("body").chosen == compoff.export(other, "body")[0].quality == chosen
    # What was kept before has no choice in it, and is read all the same.
    other.bottlenecks.load_state_dict({name: value for name, value in state.items() if name != "body.quality"})
    assert other.bottleneck("body").chosen == len(model.bottleneck("body").qualities()) - 1


def test_norms_are_exact_whenever_training_stopped() -> None:
    model = compoff.wrap(trained_net(), "body", example_input=signals(2), stride=2, codec="deepcod").eval()
    compoff.calibrate(model, batches(1))
    layers = model.bottleneck("body").spectral_layers()
    assert layers
    for layer in layers:
        nn.init.normal_(layer.weight)
    compoff.finish(model, batches(1))
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer._matrix(), ord=2)
        torch.testing.assert_close(layer.normalized_weight() * norm, layer.weight.detach(), rtol=1e-3, atol=1e-5)


def test_what_fit_measured_stays_when_it_is_measured_again() -> None:
    torch.manual_seed(3)
    model = compoff.wrap(trained_net(), "body", example_input=signals(2), stride=4)
    first = compoff.fit(model, batches(), steps=4, max_drop=0.05).splits["body"]
    second = compoff.finish(model, batches(), max_drop=0.05).splits["body"]
    assert (first.curve, first.quality) == (second.curve, second.quality)


def test_a_first_look_at_what_is_held_out_draws_nothing() -> None:
    """The fit goes as it would without it."""
    model, state = started(), torch.get_rng_state()
    assert held_out(Shuffled(), model, None) is not None
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loader_that_shuffles_is_measured_alike_every_time() -> None:
    model = started()
    curves: list[object] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        curves.append(compoff.finish(model, Shuffled()).splits["body"].curve)
    assert curves[0] == curves[1]


def test_inputs_that_were_held_out() -> None:
    report = compoff.finish(started(), batches(), validation=[signals(5, seed=9)])
    assert (report.held_out, report.measured_on) == (True, 5)


@pytest.mark.parametrize("changed", ["base", "bottlenecks"])
def test_figures_of_other_weights_are_neither_exported_nor_saved(
    changed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = started(), tmp_path / "fitted"
    quality = compoff.finish(model, batches(), max_drop=0.3).splits["body"].quality
    model.train()
    with model.at("body"):
        model(batches()[0])  # a pass is no change
    model.save(path)
    assert compoff.load(path, trained_net()).reports == model.reports
    assert not caplog.records
    with torch.no_grad():
        next(getattr(model, changed).parameters()).mul_(1.01)
    model.save(path)
    net = trained_net()
    net.load_state_dict(model.base.state_dict())
    assert compoff.load(path, net).reports == {}
    head = compoff.export(model, "body")[0]
    assert not {"bytes", "agreement", "curve"} & {*head.manifest.report}
    assert head.quality == quality
    told = [record.getMessage() for record in caplog.records if record.name.startswith("compoff.")]
    assert told[0].startswith("the figures at 'body' were measured with other weights and are not saved")
    assert told[1].startswith("the figures at 'body' were measured with other weights and are left out of the export")
    assert len(told) == 2


def test_an_answer_that_is_lost_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = started()
    with torch.no_grad():
        model.bottleneck("body").quantizer.offset.add_(300)  # as a fit that has diverged leaves it
    report = compoff.finish(model, batches())
    assert report.splits["body"].answer_lost
    assert "THE ANSWER IS LOST" in str(report)
    assert "nothing to do with the model's answer" in caplog.text
    caplog.clear()
    assert "LOST" not in str(compoff.finish(started(), batches()))
    assert not caplog.records


def test_a_ladder_that_sends_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = started()
    with torch.no_grad():
        model.bottleneck("body").quantizer.log_gain.sub_(20)  # every value rounds to zero
    report = compoff.finish(model, batches()).splits["body"]
    assert not report.answer_lost or "nothing to do with" in caplog.text
    assert len({point["bytes"] for point in report.curve}) == 1
    assert "target_bytes, in a model wrapped anew" in caplog.text


class Streamed:
    """Makes its batches one by one, and notes how many are alive."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.most = 0

    def __iter__(self) -> Iterator[Tensor]:
        for seed in range(12):
            x = signals(4, seed=seed)
            self.alive.add(x)
            self.most = max(self.most, len(self.alive))
            yield x
            del x


def test_held_out_batches_are_not_kept() -> None:
    data = Streamed()
    report = compoff.finish(started(), batches(), validation=data)
    assert report.measured_on == 48
    assert data.most <= 3
    kept = compoff.finish(started(), batches(), validation=list(Streamed()))
    once = compoff.finish(started("body", "input"), batches(), validation=iter(Streamed()))
    assert report.splits["body"].curve == kept.splits["body"].curve
    assert once.measured_on == 48


def test_refusals() -> None:
    model = compoff.wrap(trained_net(), "body", example_input=signals(2))
    with pytest.raises(FitError, match=r"has not been started; call compoff\.calibrate"):
        compoff.finish(model, batches())
    model = started()
    with pytest.raises(FitError, match="batches are empty"):
        compoff.finish(model, [])
    with pytest.raises(FitError, match="give one of them"):
        compoff.finish(model, batches(), target_bytes=30, max_drop=0.1)
    with pytest.raises(FitError, match="target_bytes names 'nothing', which is no split point"):
        compoff.finish(model, batches(), target_bytes={"nothing": 30})
    numbers = compoff.wrap(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 1)), "1", example_input=torch.zeros(2, 16))
    for call in (compoff.fit, compoff.finish):
        compoff.calibrate(numbers, [torch.randn(64, 16)])
        with pytest.raises(
            FitError, match=r"max_drop counts answers .* \(2, 1\) .* expected scores, \(batch, classes\)"
        ):
            call(numbers, [torch.randn(64, 16)], max_drop=0.1)
    with model.at("body"), pytest.raises(FitError, match="with a bottleneck on"):
        compoff.finish(model, batches())
    assert not model.reports


@pytest.mark.parametrize("call", ["fit", "calibrate", "finish"])
def test_a_model_that_is_not_wrapped_says_so(call: str) -> None:
    net = nn.Linear(32, 4)
    with pytest.raises(SplitError, match=r"Linear is no wrapped model; give what compoff\.wrap"):
        getattr(compoff, call)(net, [torch.zeros(2, 32)])
    compoff.wrap(net, "input")
    with pytest.raises(SplitError, match="Linear is the model inside of a wrapped one"):
        getattr(compoff, call)(net, [torch.zeros(2, 32)])


def test_of_large_samples_fewer_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.fitting.finishing._HELD_BYTES", 40 * 4 * signals(1).numel())
    monkeypatch.setattr("compoff.fitting.finishing._FEW", 24)
    model = started()
    drawn: list[int] = []

    def loader() -> Iterator[Tensor]:
        for number in range(100):
            drawn.append(number)
            yield signals(8, seed=number)

    taken = up_to(loader(), model, None, 2048)
    assert (sum(batch.size for batch in taken), len(drawn)) == (40, 5), "no more is even drawn"
    assert sum(batch.size for batch in up_to(loader(), model, None, 16)) == 16
    assert sum(batch.size for batch in up_to(loader(), model, None, None)) == 800, "what is to be measured is, whole"
    monkeypatch.setattr("compoff.fitting.finishing._HELD_BYTES", 1)
    assert sum(batch.size for batch in up_to(loader(), model, None, 2048)) == 24, "a few there are, however large"


def test_the_figures_of_another_default_are_all_its_own() -> None:
    model = started()
    report = compoff.finish(model, batches(), target_bytes=25).splits["body"]
    assert report.ceiling_bytes == report.curve[report.quality]["ceiling_bytes"]
    model.bottleneck("body").quality.fill_(len(report.curve) - 1)
    head, _ = compoff.export(model, "body")
    told = head.manifest.report
    assert told["ceiling_bytes"] == report.curve[-1]["ceiling_bytes"] > report.ceiling_bytes
    assert max(len(head(x[None])) for x in 1e3 * signals(8)) <= told["ceiling_bytes"]
