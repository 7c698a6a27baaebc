"""Fitting: what it learns, what it leaves alone, when its phases change, and what it refuses."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.batch import Batch
from compoff.errors import BackendError, FeatureError, FitError
from compoff.fitting.fitter import Fitter
from compoff.recipe import Recipe, recipe_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compoff.recipe import CodecName


class Net(nn.Module):
    """A small classifier with everything that could drift: running statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
        self.score = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.body(self.stem(x)).flatten(1))


def signals(count: int, seed: int = 7) -> Tensor:
    """Smooth signals: a few waves of random phase, which few numbers describe."""
    phases = torch.rand(count, 2, 2, 1, generator=torch.Generator().manual_seed(seed)) * 2 * math.pi
    times = torch.linspace(0, 2 * math.pi, 16)
    return (torch.sin(times * torch.tensor([1.0, 2.0]).view(2, 1) + phases)).sum(2)


def trained_net() -> Net:
    torch.manual_seed(11)
    net = Net()
    with torch.no_grad():
        net.train()(signals(64))  # running statistics of real data
    return net.eval()


def wrapped(*splits: str, net: nn.Module | None = None, **options: Any) -> compoff.Wrapped:
    torch.manual_seed(3)
    chosen = {"codec": "deepcod", "stride": 2, **options}  # a small decoder
    return compoff.wrap(net or trained_net(), list(splits or ("body",)), example_input=signals(2), **chosen)


def batches(count: int = 4, size: int = 16) -> list[Tensor]:
    return list(signals(count * size).split(size))


def bottlenecks(model: compoff.Wrapped) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.bottlenecks.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


class Finder(Net):
    """A detector: as many peaks as there are above a threshold, image by image."""

    threshold = 0.0

    def forward(self, x: Tensor) -> Any:
        y = self.body(self.stem(x))
        return [{"peaks": one[:, one[0] > self.threshold].T} for one in y]


# -- what it learns --------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_before_it_falls() -> None:
    x = torch.randn(4, 32)
    model = compoff.wrap(nn.Linear(32, 4), "input", example_input=x)
    compoff.calibrate(model, [x])
    fitter = Fitter(model.train(), recipe_named("transform"), lr=1e-3, rate=0.1, total=100)
    full, seen = fitter.state.lrs[-1], list[float]()
    for _ in range(100):
        fitter.step(Batch((x,)))
        seen.append(fitter.optimizer.param_groups[-1]["lr"] / full)
    assert seen[0] == pytest.approx(1 / 11, rel=0.01)
    assert seen[10] == pytest.approx(0.976, abs=0.01)
    assert seen[:10] == sorted(seen[:10])
    assert seen[10:] == sorted(seen[10:], reverse=True)
    assert seen[-1] == pytest.approx(0.02, abs=0.005)


def test_a_fit_learns() -> None:
    model, held_out = wrapped("input", "body"), [signals(200, seed=8)]
    before = compoff.fit(model, batches(), steps=1, validation=held_out)
    report = compoff.fit(model, batches(), steps=80, lr=1e-2, validation=held_out)
    for split in ("input", "body"):
        first_phase = report.splits[split].loss[: report.splits[split].distilled_from]
        assert np.mean(first_phase[-5:]) < 0.5 * first_phase[0]
        assert report.splits[split].output_error < 0.5 * before.splits[split].output_error
        agreement, untrained = report.splits[split].agreement, before.splits[split].agreement
        assert agreement is not None
        assert untrained is not None
        assert agreement > max(0.6, untrained)
    assert report.held_out
    assert report.measured_on == 200


def test_a_rate_saves_bytes() -> None:
    spent = compoff.fit(wrapped("input"), batches(), steps=45, lr=1e-2, rate=0.0).splits["input"].bytes
    saved = compoff.fit(wrapped("input"), batches(), steps=45, lr=1e-2, rate=5.0).splits["input"].bytes
    assert saved < spent - 2


def test_shapes_are_learnt_from_the_first_batch() -> None:
    known, unknown = wrapped(), compoff.wrap(trained_net(), ["body"], stride=2, codec="deepcod")
    generator = (batch for batch in batches(6))
    report = compoff.fit(unknown, generator, steps=6)  # the batch that was peeked at is not lost
    assert report.steps == 6
    assert unknown.bottleneck("body").latent_shape == known.bottleneck("body").latent_shape


def test_a_model_with_one_number_a_sample() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 1), nn.Flatten(0))
    report = compoff.fit(wrapped("input", net=net), batches(), steps=30)
    assert report.splits["input"].agreement is None
    assert math.isfinite(report.splits["input"].output_error)


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_detector_that_finds_another_number_of_boxes_is_compared_block_by_block(codec: str) -> None:
    torch.manual_seed(11)
    model = wrapped("stem", net=Finder().eval(), codec=codec)
    report = compoff.fit(model, batches(2), steps=2).splits["stem"]
    assert report.agreement is None
    assert report.output_error is not None
    assert 0 < report.output_error < math.inf


# -- what it leaves alone --------------------------------------------------------------------------------------------


class Meddling:
    """A loader whose owner puts the model into training mode now and then."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Tensor]:
        for batch in batches():
            self.net.train()
            yield batch


def test_the_model_is_bit_for_bit_as_before() -> None:
    net = trained_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    model = wrapped("input", "body", net=net).train()
    compoff.fit(model, Meddling(net), epochs=6, recipe=Recipe(reconstruction_share=0.5))
    assert not any(module.training for module in net.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())
    assert_same(before, net.state_dict())
    assert model.training  # what the caller had chosen
    assert_same(before, model.unwrap().state_dict())


def test_dropout_and_running_statistics_are_off_in_every_pass() -> None:
    model, seen = wrapped(), []
    model.base.get_submodule("body.3").register_forward_pre_hook(lambda module, args: seen.append(module.training))
    compoff.fit(model.train(), Meddling(model.base), epochs=2)
    assert seen
    assert not any(seen)


class Normalizing(nn.Module):
    """Brings its input into the network's units, in place or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.body, self.score = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).div_(0.5) if self.inplace else x.sub(0.5).div(0.5)
        return self.score(torch.relu(self.body(x)).flatten(1))


@pytest.mark.parametrize("split", ["input", "body"])
def test_a_model_that_writes_to_its_input_is_fitted_as_if_it_did_not(split: str) -> None:
    found: list[tuple[Any, dict[str, Tensor]]] = []
    for inplace in (False, True):
        x, example = batches(2), signals(2)
        torch.manual_seed(3)
        model = compoff.wrap(Normalizing(inplace=inplace), split, example_input=example, stride=2)
        report = compoff.fit(model, x, steps=2, max_drop=0.5, validation=x[:1])
        again = compoff.finish(model, x)
        x.append(example)
        model.distillation_loss(x[0]).backward()
        assert all(torch.equal(one, other) for one, other in zip(x, [*batches(2), signals(2)], strict=True))
        assert not any(tensor.any() for tensor in model.example_inputs().tensors)
        found.append(([report.splits[split].figures(), again.splits[split].figures()], bottlenecks(model)))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])


@pytest.mark.parametrize("call", ["fit", "finish", "calibrate", "calibrate a new one"])
def test_the_callers_random_numbers_go_on(call: str) -> None:
    model = compoff.wrap(trained_net(), "body") if "new" in call else wrapped(codec="transform")
    if call == "finish":
        compoff.calibrate(model, batches())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    if call == "fit":
        compoff.fit(model, Shuffled(), epochs=2)
    elif call == "finish":
        compoff.finish(model, Shuffled(), validation=Shuffled())
    else:
        compoff.calibrate(model, Shuffled())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_the_callers_random_numbers_go_on_after_an_error() -> None:
    model = compoff.wrap(trained_net(), ["body"], codec="deepcod")
    state = torch.get_rng_state()
    with pytest.raises(FitError):
        compoff.fit(model, [torch.full((4, 2, 16), math.nan)], steps=3)
    assert torch.equal(torch.get_rng_state(), state)


# -- a seed ----------------------------------------------------------------------------------------------------------


class Shuffled:
    """Batches in a new order each round, with noise on each."""

    def __init__(self, size: int = 8) -> None:
        self.x = signals(32)
        self.size = size

    def __len__(self) -> int:
        return len(self.x) // self.size

    def __iter__(self) -> Iterator[Tensor]:
        for indices in torch.randperm(len(self.x)).view(-1, self.size):
            yield self.x[indices] + 0.01 * torch.randn(self.size, 2, 16)


def test_a_seed_decides_everything() -> None:
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))  # the caller's own state must not matter
        model = compoff.wrap(trained_net(), ["body"], codec="deepcod")
        torch.manual_seed(len(results))
        report = compoff.fit(model, Shuffled(), epochs=3, seed=seed)
        results.append((report.splits["body"].loss, bottlenecks(model)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert_same(results[0][1], results[1][1])


class Reusing:
    """Batches that all lie in the same memory, one after another."""

    def __init__(self, given: list[Tensor]) -> None:
        self.given = given

    def __iter__(self) -> Iterator[Tensor]:
        memory = torch.empty_like(self.given[0])
        for x in self.given:
            yield memory.copy_(x)


@pytest.mark.parametrize(("once", "codec"), [(False, "transform"), (True, "transform"), (True, "deepcod")])
def test_a_loader_that_fills_the_same_memory_again_gives_the_same_fit(once: bool, codec: str) -> None:
    found: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
    for given in (batches(), Reusing(batches())):
        model = wrapped(codec=codec)
        validation = batches(2) if isinstance(given, list) else Reusing(batches(2))
        report = compoff.fit(model, iter(given) if once else given, steps=4, validation=validation)
        found.append((report.splits["body"].figures(), bottlenecks(model)))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])


# -- batches as people have them -------------------------------------------------------------------------------------


class Named(Net):
    def forward(self, signal: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is None
        return super().forward(signal)


def test_labels_are_never_read_and_every_kind_of_batch_fits_alike() -> None:
    labels = torch.full((16,), math.nan)
    kinds: dict[str, Any] = {
        "tensor": batches(),
        "pair": [(x, labels) for x in batches()],
        "list": [[x, labels] for x in batches()],
        "nested": [((x,), labels) for x in batches()],
        "dict": [{"signal": x, "labels": labels, "weight": labels} for x in batches()],
        "dict and label": [({"signal": x}, labels) for x in batches()],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(signals(64), labels.repeat(4)), 16),
        "generator": (x for x in batches()),
    }
    torch.manual_seed(11)
    net = Named().eval()
    losses = {}
    for kind, given in kinds.items():
        model = wrapped(net=net)
        losses[kind] = compoff.fit(model, given, steps=4).splits["body"].loss
        model.unwrap()
    assert len(losses["tensor"]) == 4
    for kind, loss in losses.items():
        assert loss == losses["tensor"], kind


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ([], {}, "the batches are empty"),
        ([], {"steps": 3}, "the batches gave nothing"),
        (iter([]), {"steps": 3}, "the batches gave nothing"),
        ((x for x in batches()), {}, "no length"),
        ((x for x in batches()), {"steps": 9}, "used up"),
        ([torch.zeros(0, 2, 16)], {}, "a batch is empty"),
        ([torch.zeros(())], {}, "a batch is empty"),
        ([("path.png", 3)], {}, "without a tensor"),
        ([()], {}, "without a tensor"),
        ([None], {}, "without a tensor"),
        ([{"pixels": torch.zeros(2, 2, 16)}], {}, r"a dict of \['pixels'\].*argument names: x"),
        (batches(), {"steps": 0}, "steps is 0"),
        (batches(), {"epochs": 0}, "epochs is 0"),
        (batches(), {"epochs": 1, "steps": 1}, "give one of them"),
        (batches(), {"lr": 0.0}, "lr is 0.0"),
        (batches(), {"lr": math.nan}, "lr is nan"),
        (batches(), {"rate": -1.0}, "rate is -1.0"),
        (batches(), {"recipe": "best"}, "'best' is not a recipe"),
        (batches(), {"steps": 1, "validation": []}, "the validation batches are empty"),
    ],
)
@pytest.mark.parametrize("built", [True, False])
def test_what_cannot_be_fitted_with_is_refused(given: Any, options: dict[str, Any], words: str, built: bool) -> None:
    if "validation" not in options and hasattr(given, "gi_frame"):
        given = (x for x in batches())  # each case its own
    model = wrapped() if built else compoff.wrap(trained_net(), ["body"], codec="deepcod")
    before = bottlenecks(model)
    if not built and "gave nothing" in words:
        words = "the batches are empty"
    with pytest.raises(FitError, match=words):
        compoff.fit(model, given, **options)
    if built and "steps" not in options:
        assert_same(before, bottlenecks(model))


@pytest.mark.parametrize("split", ["input", "body"])
@pytest.mark.parametrize("x", [torch.zeros(4, 2, 16, dtype=torch.uint8), torch.zeros(4, 2, 12), torch.zeros(4, 16)])
@pytest.mark.parametrize("built", [True, False])
def test_inputs_of_another_kind_are_refused(split: str, x: Tensor, built: bool) -> None:
    model = wrapped(split) if built else compoff.wrap(trained_net(), [split], codec="deepcod")
    with pytest.raises(compoff.CompoffError) as caught:
        compoff.fit(model, [x], steps=2)
    assert isinstance(caught.value, FeatureError)


def test_a_fit_inside_at_has_no_teacher() -> None:
    model = wrapped()
    with model.at("body"), pytest.raises(FitError, match="outside"):
        compoff.fit(model, batches(), steps=1)


# -- two phases ------------------------------------------------------------------------------------------------------


def test_distillation_sets_in_at_its_share_of_the_steps() -> None:
    model, calls = wrapped("input", "body"), []
    model.base.get_submodule("score").register_forward_hook(lambda *_: calls.append(1))
    report = compoff.fit(model, batches(), steps=10, recipe=Recipe(reconstruction_share=0.3))
    assert {split.distilled_from for split in report.splits.values()} == {3}
    # In the first phase nobody runs the model to its end; then a teacher and two students do, and measuring does too.
    assert len(calls) == 7 * 3 + 2 * (len(batches()) * 2)


def test_distillation_sets_in_once_reconstruction_has_converged() -> None:
    recipe = Recipe(reconstruction_share=1.0, patience=5)
    report = compoff.fit(wrapped(), batches(), steps=40, lr=1e-9, recipe=recipe)
    # Two windows of five steps are needed to tell, and the norms take some steps to settle.
    assert report.splits["body"].distilled_from in range(10, 30)


def test_distillation_waits_while_reconstruction_improves() -> None:
    recipe = Recipe(reconstruction_share=1.0, patience=20)
    report = compoff.fit(wrapped(), batches(), steps=45, lr=1e-2, recipe=recipe)
    assert report.splits["body"].distilled_from is None


# -- when it cannot go on --------------------------------------------------------------------------------------------


def with_nan() -> Tensor:
    x = signals(16)
    x[3, 1, 5] = math.nan
    return x


@pytest.mark.parametrize("good_steps", [0, 1, 52])
def test_inputs_with_nan_stop_the_fit_with_the_last_good_state(good_steps: int) -> None:
    given = [batches()[0]] * good_steps + [with_nan()] * 3
    model = wrapped()
    before = bottlenecks(model)
    with pytest.raises(FitError, match=f"step {good_steps} .*the batch itself holds NaN"):
        compoff.fit(model, given, steps=100)
    after = bottlenecks(model)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    if good_steps == 0:
        assert_same(before, after)
    else:
        assert bool(after["body.calibrated"])
    assert not any(module.training for module in model.base.modules())


def test_a_learning_rate_too_high_stops_the_fit_with_weights_that_work() -> None:
    model = wrapped()
    with pytest.raises(FitError, match="lower the learning rate"):
        compoff.fit(model, batches(), steps=100, lr=1e30)
    with torch.no_grad(), model.eval().at("body"):
        assert torch.isfinite(model(signals(4))).all()


def test_a_model_that_computes_nan_is_named_as_the_cause() -> None:
    net = trained_net()
    with torch.no_grad():
        net.stem[0].weight[0, 0, 0] = math.inf
    with pytest.raises(FitError, match="the model itself computes NaN"):
        compoff.fit(wrapped(net=net), batches(), steps=5)


def test_an_error_in_the_loader_leaves_the_model_as_the_caller_had_it() -> None:
    def broken() -> Iterator[Tensor]:
        yield from batches(2)
        raise OSError("disk gone")

    model = wrapped().eval()
    with pytest.raises(OSError, match="disk gone"):
        compoff.fit(model, broken(), steps=9)
    assert not model.training
    assert model.gate("body").replace is None


# -- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("progress", "drawn"), [(None, False), (False, False), (True, True)])
def test_a_bar_on_a_terminal_only(progress: bool | None, drawn: bool, capsys: pytest.CaptureFixture[str]) -> None:
    compoff.fit(wrapped(), batches(), steps=3, progress=progress)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("compoff.fit: 100%" in captured.err) == drawn


def test_an_iterable_dataset_has_no_epochs() -> None:
    class Endless(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                yield torch.randn(3, 8, 8)

    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 5))
    model = compoff.wrap(net.eval(), "input", example_input=torch.randn(2, 3, 8, 8))
    with pytest.raises(FitError, match="say how long with steps="):
        compoff.fit(model, torch.utils.data.DataLoader(Endless(), batch_size=4), epochs=2)


def test_a_bottleneck_that_is_on_is_refused_before_anything_is_started() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 5))
    model = compoff.wrap(net.eval(), "input", example_input=torch.randn(2, 3, 8, 8))
    with model.at("input"):
        with pytest.raises(FitError, match="fit was called with a bottleneck on"):
            compoff.fit(model, [torch.randn(8, 3, 8, 8)], steps=1)
        with pytest.raises(FitError, match="calibrate was called with a bottleneck on"):
            compoff.calibrate(model, [torch.randn(8, 3, 8, 8)])
    assert not model.bottleneck("input").calibrated


@pytest.mark.parametrize(
    ("validation", "kind", "words"),
    [
        ([], FitError, "validation batches are empty"),
        (iter([]), FitError, "validation batches are empty"),
        (torch.zeros(8, 2, 16), FitError, "validation is a tensor, which is one batch"),
        ([torch.zeros(4, 2, 20)], FeatureError, "shape|size"),
    ],
)
def test_what_cannot_be_measured_on_is_refused_before_the_first_step(
    validation: Any, kind: type[Exception], words: str
) -> None:
    drawn = 0

    class Counting(list[torch.Tensor]):
        def __iter__(self) -> Iterator[torch.Tensor]:
            nonlocal drawn
            drawn += 1
            return super().__iter__()

    model = wrapped()
    with pytest.raises(kind, match=words):
        compoff.fit(model, Counting(batches()), steps=3, validation=validation)
    assert not drawn
    assert not model.bottleneck("body").calibrated


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_script_in_inference_mode_can_fit(codec: CodecName) -> None:
    net = trained_net()
    other = trained_net()
    with torch.inference_mode():
        model = compoff.wrap(net, "body", example_input=signals(2), codec=codec)
        report = compoff.fit(model, batches(), steps=3)
        unbuilt = compoff.fit(compoff.wrap(other, "body", codec=codec), batches(), steps=3)
    assert len(report.splits["body"].loss) == len(unbuilt.splits["body"].loss) == 3
    assert not any(parameter.is_inference() for parameter in model.bottleneck_parameters())


def test_a_device_that_holds_no_numbers_is_refused() -> None:
    with pytest.raises(BackendError, match="device is 'meta', which cannot be used here"):
        compoff.fit(wrapped(), batches(), steps=1, device="meta")


def test_a_second_fit_that_aims_higher_than_the_first_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    model = compoff.wrap(trained_net(), "body", example_input=signals(2), stride=4)
    compoff.fit(model, batches(), steps=2, target_bytes=20)
    compoff.fit(model, batches(), steps=2, target_bytes=20)
    assert "keeps that ladder" not in caplog.text
    compoff.fit(model, batches(), steps=2, target_bytes=400)
    assert "target_bytes is 400: an earlier fit or calibrate has started the bottleneck for fewer" in caplog.text


@dataclass
class Sample:
    x: Tensor
    note: str = ""


class Nested(nn.Module):
    """Takes what a model is called with in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained_net()

    def forward(self, given: Any, scale: Tensor | None = None) -> Tensor:
        x = given.x if isinstance(given, Sample) else given["x"]
        return self.net(x if scale is None else x * scale)


@pytest.mark.parametrize(
    "item",
    [
        {"given": {"x": signals(8)}},
        (({"x": signals(8)}, torch.tensor(2.0)), "label"),
        ((Sample(signals(8)),),),
        {"scale": torch.tensor(2.0), "given": Sample(signals(8), "mine")},
    ],
)
def test_inputs_may_be_nested_and_hold_numbers(item: Any) -> None:
    model = compoff.wrap(Nested(), "net.body", codec="deepcod")
    report = compoff.fit(model, [item], steps=2)
    assert report.measured_on == 8
    kept = model.example_inputs().tensors
    assert not any(bool(tensor.any()) for tensor in kept)  # shapes, never the user's data


def test_a_dict_that_is_an_argument_itself_is_explained() -> None:
    with pytest.raises(FitError, match=r"argument names: given, scale; .*goes as \{'given': …\}"):
        compoff.fit(compoff.wrap(Nested(), "net.body"), [{"x": signals(8)}], steps=1)
