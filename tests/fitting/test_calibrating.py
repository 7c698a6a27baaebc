"""calibrate(), and a fit of the transform codec: from real features to every rate."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.codec import Geometry, RefiningDecoder, TileMoments, TransformBottleneck
from compoff.errors import FeatureError, FitError, SplitError
from compoff.fitting import calibrating
from compoff.fitting.step_search import step_for_bytes
from compoff.recipe import Recipe
from tests.fitting.test_fit import Net, assert_same, batches, bottlenecks, signals, trained_net, wrapped

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.recipe import CodecName


def transform(*splits: str) -> compoff.Wrapped:
    return wrapped(*splits, codec="transform", stride=4)


def test_a_calibrated_model_works_before_the_first_step() -> None:
    model = transform("input", "body")
    compoff.calibrate(model, batches())
    x = signals(100, seed=9)
    teacher = model(x)
    for split in ("input", "body"):
        with torch.no_grad(), model.at(split):
            error = (model(x) - teacher).square().mean() / teacher.var()
        assert float(error) < 0.2  # aimed at 0.1, on other samples


@pytest.mark.parametrize(("kept", "passes"), [(2**27, 4), (0, 8), (3 * 32 * 6 * 16, 7)])
def test_gradients_for_what_describes_tiles_are_kept_for_the_tiles_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, kept: int, passes: int
) -> None:
    monkeypatch.setattr("compoff.codec.waves._WHOLE", 16)  # a tile of 6 channels at 4 positions has 24 elements
    monkeypatch.setattr("compoff.codec.waves._DESCRIBED", 16)
    monkeypatch.setattr(calibrating, "_TILES", 0)
    monkeypatch.setattr(calibrating, "_KEPT", kept)
    looked, slopes = list[object](), calibrating._slopes
    monkeypatch.setattr(calibrating, "_slopes", lambda *given: looked.append(given) or slopes(*given))
    model = transform("body")
    compoff.calibrate(model, batches(4, 32))
    assert len(looked) == passes
    x = signals(100, seed=9)
    teacher = model(x)
    with torch.no_grad(), model.at("body"):
        assert float((model(x) - teacher).square().mean() / teacher.var()) < 0.5


def test_few_directions_are_not_measured_needlessly_finely() -> None:
    x = torch.randn(64, 3, 16, 16)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 49, 10))
    model = compoff.wrap(net, "input", codec="transform", channels=4, example_input=x[:2]).eval()
    compoff.calibrate(model, [x])
    teacher = model(x).detach()
    with torch.no_grad(), model.at("input"):
        error = float((model(x) - teacher).square().mean() / teacher.var())
        largest = float(model.bottleneck("input").values_at(x, 4).abs().max())
    assert error > 0.2  # noise in 4 of 192 directions: no step brings it below the usual aim
    assert 4 <= largest <= 40


def test_more_bytes_are_a_finer_step() -> None:
    sizes: list[float] = []
    for target in (12, 30):
        model = transform("body")
        compoff.calibrate(model, batches(16), target_bytes=target)
        report = compoff.fit(model, batches(), steps=1, target_bytes=target)
        sizes.append(report.splits["body"].curve[5]["bytes"])  # of the reference step
    assert sizes == pytest.approx([12, 30], rel=0.25)


def trained(net: nn.Module) -> nn.Module:
    net.load_state_dict(trained_net().state_dict(), strict=False)
    return net.eval()


class Offset(Net):
    """Its scores differ by much more within a sample than between samples."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.tensor([0.0, 100.0, -300.0, 50.0])


class Found(Net):
    """Returns as many numbers of a sample as it finds, so what stands for its answer is the block before."""

    def __init__(self) -> None:
        super().__init__()
        self.shifted = nn.Conv1d(6, 6, 1)
        with torch.no_grad():
            self.shifted.weight.copy_(torch.eye(6)[..., None])
            self.shifted.bias = nn.Parameter(torch.tensor([0.0, 100.0, -300.0, 50.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Any:
        y = self.shifted(self.body(self.stem(x)))
        return [one[0, one[0] > 0.3] for one in y]


@pytest.mark.parametrize("size", [1, 4])
def test_the_step_does_not_depend_on_how_many_samples_a_batch_holds(size: int) -> None:
    bits: list[float] = []
    for batch in (32, size):
        model = wrapped("body", net=trained(Offset()), codec="transform", stride=4)
        compoff.calibrate(model, signals(64).split(batch))
        bits.append(float(model.bottleneck("body").reference_bits))
    assert bits[1] == pytest.approx(bits[0], rel=0.25)  # each batch draws projections of its own


def test_a_block_that_stands_for_the_answer_counts_in_what_samples_differ_by() -> None:
    model = wrapped("body", net=trained(Found()), codec="transform", stride=4)
    report = compoff.fit(model, batches(), steps=20).splits["body"]
    assert report.curve[0]["bytes"] < report.curve[-1]["bytes"]
    assert report.output_error < 0.1


def test_batches_of_one_sample_are_told(caplog: pytest.LogCaptureFixture) -> None:
    compoff.calibrate(transform("body"), signals(4).split(2))
    assert not caplog.records
    compoff.calibrate(transform("body"), signals(4).split(1))
    assert "every batch holds one sample, and does not tell what samples differ by" in caplog.text


def test_the_step_is_where_the_symbols_have_so_many_bytes() -> None:
    geometry, y = Geometry((3,)), torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    moments = TileMoments(geometry)
    moments.add(y, torch.ones(2000, 3))
    directions = moments.directions(3)
    step = step_for_bytes([TransformBottleneck(geometry, 3)], [directions], [y], target_bytes=1.5)
    columns = torch.round(directions.measure(geometry, y) / step).T.tolist()
    bits = [-count * math.log2(count / 2000) for column in columns for count in Counter(column).values()]
    assert sum(bits) / 8 / 2000 == pytest.approx(1.5, rel=0.02)


def test_a_fit_starts_by_itself_and_leaves_a_curve() -> None:
    model, held_out = transform("body"), [signals(200, seed=8)]
    report = compoff.fit(model, batches(), steps=60, validation=held_out).splits["body"]
    assert report.distilled_from == 0
    sizes = [point["bytes"] for point in report.curve]
    errors = [point["output_error"] for point in report.curve]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert (report.bytes, report.quality) == (sizes[-1], len(sizes) - 1)
    assert errors[-1] < 0.05


def test_target_bytes_are_held() -> None:
    model = transform("body")
    report = compoff.fit(model, batches(), steps=80, target_bytes=20).splits["body"]
    assert report.bytes <= 1.02 * 20
    assert report.curve[5]["bytes"] == pytest.approx(20, rel=0.1)  # of the reference step


def test_max_drop_chooses_the_cheapest_quality_that_keeps_to_it() -> None:
    model = transform("body")
    report = compoff.fit(model, batches(), steps=20, max_drop=0.1).splits["body"]
    agreements = [point["agreement"] for point in report.curve]
    assert report.aim_met
    assert agreements[report.quality] >= 0.9
    assert all(agreement < 0.9 for agreement in agreements[: report.quality])


def test_the_same_seed_gives_the_same_bottlenecks_and_a_finished_fit_returns_at_once(tmp_path: Path) -> None:
    whole, parts = transform("body"), transform("body")
    compoff.fit(whole, batches(), steps=12, target_bytes=20)
    state = tmp_path / "state"
    compoff.fit(parts, batches(), steps=12, target_bytes=20, resume=state)
    assert_same(bottlenecks(whole), bottlenecks(parts))
    again = transform("body")
    compoff.fit(again, batches(), steps=12, target_bytes=20, resume=state)
    assert_same(bottlenecks(whole), bottlenecks(again))


def test_batches_that_can_be_gone_through_once_are_not_used_up() -> None:
    model = transform("body")
    report = compoff.fit(model, iter(batches(count=6)), steps=6)
    assert report.steps == 6


def test_a_loop_of_ones_own_calibrates_first() -> None:
    model = transform("body")
    with pytest.raises(FitError, match=r"compoff\.calibrate"):
        model.distillation_loss(signals(8))
    compoff.calibrate(model, batches())
    model.distillation_loss(signals(8)).backward()


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training: bool) -> None:
    x = torch.randn(16, 32)
    model = compoff.wrap(nn.Linear(32, 4), "input", example_input=x).train(training)
    compoff.calibrate(model, [x])
    assert {module.training for module in model.bottlenecks.modules()} == {training}


def test_a_second_calibration_changes_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = transform("body")
    compoff.calibrate(model, batches())
    before = bottlenecks(model)
    assert not caplog.text
    compoff.calibrate(model, batches()[:1])
    assert_same(before, bottlenecks(model))
    assert "the bottlenecks at 'body' have been started before and stay as they are" in caplog.text


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_step_that_trains_no_encoder_is_told_once(codec: CodecName, caplog: pytest.LogCaptureFixture) -> None:
    model, x = compoff.wrap(trained_net(), "body", example_input=signals(2), codec=codec), signals(16)
    compoff.calibrate(model, [x])
    encoder = model.bottleneck("body").encoder
    model.distillation_loss(x).backward()
    assert float(encoder.weight.grad.norm()) > 0
    with model.eval().at("body"), torch.no_grad():
        model.distillation_loss(x)
    encoder.requires_grad_(False)  # on purpose: the decoder alone
    model.distillation_loss(x).backward()
    assert not caplog.text
    encoder.requires_grad_(True).zero_grad()
    for _ in range(2):
        model.distillation_loss(x, recipe=replace(Recipe.named(codec), orthogonality=0.0)).backward()
    gradient = encoder.weight.grad
    assert gradient is None or not gradient.any(), "eval mode has gradients for an encoder: the warning is needless"
    assert caplog.text.count("the bottleneck at 'body' is in eval mode") == 1


def test_callers_random_numbers_are_left_alone() -> None:
    model = transform("body")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    compoff.calibrate(model, batches())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_bytes": 5}, "bytes of a payload at .* are no symbols: header, checksum"),
        ({"target_bytes": -1}, "target_bytes is -1"),
        ({"max_drop": 2}, "max_drop is 2"),
        ({"max_drop": 0.1, "target_bytes": 50}, "give one of them"),
        ({"recipe": "deepcod"}, 'recipe is for codec "deepcod"'),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(FitError, match=message):
        compoff.fit(transform("body"), batches(), steps=1, **options)  # pyright: ignore[reportArgumentType]


def test_the_paper_has_one_rate() -> None:
    with pytest.raises(FitError, match="need a codec with several rates"):
        compoff.fit(wrapped("body"), batches(), steps=1, target_bytes=50)


def test_nothing_to_start_from_is_refused() -> None:
    with pytest.raises(FitError, match="batches are empty"):
        compoff.calibrate(transform("body"), [])


class NoGradients(nn.Module):
    """A model that answers without a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.body(x).relu()


def test_a_detector_that_finds_nothing_is_refused() -> None:
    class Nothing(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            scores = super().forward(input)
            return scores[scores > math.inf]

    model = compoff.wrap(Nothing(40, 3), "input", example_input=torch.zeros(2, 40))
    with pytest.raises(FitError, match="finds nothing in a batch"):
        compoff.calibrate(model, [torch.randn(16, 40)])


def test_an_output_without_gradients_is_refused() -> None:
    model = compoff.wrap(NoGradients(), "body", example_input=torch.zeros(2, 12), codec="transform")
    with pytest.raises(FitError, match="no gradient of the model's output reaches the feature at 'body'"):
        compoff.calibrate(model, [torch.randn(8, 12)])


# The first is deprecated, and still what people have.
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:quantized..linear_dynamic")
def test_a_quantized_module_is_named(caplog: pytest.LogCaptureFixture) -> None:
    quantized = torch.ao.nn.quantized.dynamic.Linear
    model = compoff.wrap(
        nn.Sequential(quantized(32, 32), nn.ReLU(), quantized(32, 4)).eval(), "2", example_input=torch.zeros(2, 32)
    )
    with pytest.raises(FitError, match="'0' is quantized, and such a module has none, and becomes no program"):
        compoff.fit(model, [torch.randn(8, 32)], steps=1)
    assert "'0' is quantized, and export makes no program of such a module" in caplog.text
    with pytest.raises(SplitError, match="runs on PyTorch's quantized integers, which no program can"):
        compoff.export(model, "2")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_models_of_other_precisions_are_calibrated(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(96, 4)).to(dtype)
    x = signals(64).to(dtype)
    model = compoff.wrap(net, "1", example_input=x[:2], codec="transform", stride=4)
    compoff.fit(model, x.split(16), steps=2)
    assert ("the model takes bfloat16, which export refuses" in caplog.text) == (dtype == torch.bfloat16)
    with torch.no_grad(), model.at("1"):
        assert model(x).dtype == dtype


def test_a_missed_aim_is_said() -> None:
    report = compoff.fit(transform("body"), batches(), steps=1, max_drop=1e-6)
    split = report.splits["body"]
    if split.curve[-1]["agreement"] < 1:  # nothing reaches perfection here
        assert not split.aim_met
        assert "THE AIM IS MISSED" in str(report)
    met = compoff.fit(transform("body"), batches(), steps=1, max_drop=0.9)
    assert met.splits["body"].aim_met is True
    assert compoff.fit(transform("body"), batches(), steps=1).splits["body"].aim_met is None
    assert "MISSED" not in str(met)


def test_calibrate_sets_the_units_of_the_papers_codec_as_its_first_step_would() -> None:
    model, stepped = (wrapped("body", codec="deepcod") for _ in range(2))
    compoff.calibrate(model, batches())
    stepped.distillation_loss(next(iter(batches())), split="body", distill=False)
    assert model.bottleneck("body").calibrated
    assert torch.equal(*(one.bottleneck("body").quantizer.centers for one in (model, stepped)))


@pytest.mark.parametrize(("spoilt", "cause"), [(True, "a batch holds NaN"), (False, "the model itself computes NaN")])
def test_numbers_that_nothing_can_start_from_are_refused(spoilt: bool, cause: str) -> None:
    model = transform("body")
    x = signals(8)
    if spoilt:
        x[3] = float("nan")
    else:
        next(model.base.parameters()).data.fill_(float("inf"))
    with pytest.raises(FitError, match=cause):
        compoff.fit(model, [x], steps=1)


def test_a_batch_of_another_size_is_named() -> None:
    net = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 4))
    model = compoff.wrap(net, "1", example_input=torch.zeros(2, 2, 16))
    with pytest.raises(FeatureError, match=r"\(6, 16\)"):
        compoff.calibrate(model, [torch.randn(8, 2, 16), torch.randn(8, 2, 12)])


class Ids(nn.Module):
    """Looks up ids behind the cut, which cross it as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.body = nn.Linear(16, 16), nn.Linear(16, 16)
        self.names, self.score = nn.Embedding(30_000, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        h = self.body(torch.relu(self.before(x)))
        return self.score((h + self.names(ids)).mean(1))


def test_bytes_that_are_no_symbols_count_within_the_target() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(32, 64, 16), torch.randint(0, 30_000, (32, 64))) for _ in range(4)]
    model = compoff.wrap(Ids().eval(), "body", example_input=data[0])
    with pytest.raises(FitError, match=r"target_bytes is 100, but 13\d bytes of a payload at 'body' are no symbols"):
        compoff.calibrate(model, [(one,) for one in data], target_bytes=100)
    report = compoff.fit(model, [(one,) for one in data], steps=30, target_bytes=170).splits["body"]
    assert report.aim_met
    assert 140 < report.bytes < 175


def test_samples_that_no_symbols_stand_for_are_not_counted() -> None:
    x = batches()[0]
    bad = x.clone()
    bad[3, 0, 0] = torch.nan
    model = transform("input")
    compoff.calibrate(model, [x])
    for given in (([bad],), ([x], [bad])):
        with pytest.raises(FitError, match="a batch holds NaN or infinity, for which there are no symbols"):
            compoff.finish(model, given[0], validation=given[1] if len(given) > 1 else None)


def test_what_is_added_to_a_column_of_the_output_changes_no_fit() -> None:
    found: list[tuple[int, float, float]] = []
    for bias in (0.0, 2.0):
        net = trained_net()
        with torch.no_grad():
            net.score.bias[0] += bias
        report = compoff.fit(wrapped(net=net, codec="transform"), batches(), steps=3, progress=False).splits["body"]
        found.append((report.quality, report.bytes, report.output_error))
    (quality, size, error), (other_quality, other_size, other_error) = found
    assert other_quality == quality
    assert other_size == pytest.approx(size, rel=0.02)
    assert other_error == pytest.approx(error, rel=0.2)  # 0.01 and 1.1 in units of the variance of all elements


class Exits(nn.Module):
    """Scores made before the split point, and the scores behind it."""

    def __init__(self, *, first: bool, scores: bool = True) -> None:
        super().__init__()
        self.net, self.early, self.first, self.scores = trained_net(), nn.Linear(6, 4), first, scores

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = self.net.stem[:2](x)
        early, late = self.early(before.mean(2)), self.net.body(self.net.stem[2](before))
        late = self.net.score(late.flatten(1)) if self.scores else late
        return (early, late) if self.first else (late, early)


def test_an_output_that_no_codec_can_change_says_nothing() -> None:
    found: list[tuple[float, float]] = []
    for first in (True, False):
        torch.manual_seed(5)
        model = wrapped("net.body", net=Exits(first=first).eval(), codec="transform")
        report = compoff.fit(model, batches(), steps=3, progress=False).splits["net.body"]
        found.append((report.bytes, report.output_error))
    assert found[0] == pytest.approx(found[1], rel=0.2)  # other random projections
    with pytest.raises(FitError, match=r"depends on 'net.body', \(2, 6, 16\) .* does not show; expected scores"):
        compoff.fit(
            wrapped("net.body", net=Exits(first=True, scores=False).eval(), codec="transform"),
            batches(),
            steps=1,
            max_drop=0.1,
        )


@pytest.mark.parametrize("shown", [True, False, None])
def test_a_bar_is_drawn_from_the_first_look_at_the_data(shown: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    compoff.calibrate(transform("body"), batches(3), progress=shown)
    assert ("compoff.calibrate body: 100%" in capsys.readouterr().err) == bool(shown)  # no terminal here
    compoff.fit(transform("body"), batches(3), steps=1, progress=shown)
    told = capsys.readouterr().err
    assert ("compoff.calibrate body: 100%" in told) == ("compoff.fit: 100%" in told) == bool(shown)


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("call", [6, 9, 14])
def test_a_start_that_was_interrupted_is_none(error: type[BaseException], call: int) -> None:
    expected, model = transform("body"), transform("body")
    compoff.calibrate(expected, batches(4, 32))
    calls = 0

    def interrupt(module: nn.Module, given: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error("interrupted")

    handle = model.base.register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        compoff.calibrate(model, batches(4, 32))
    handle.remove()
    assert not model.bottleneck("body").calibrated
    compoff.calibrate(model, batches(4, 32))
    assert_same(bottlenecks(model), bottlenecks(expected))


def test_aims_are_for_codecs_of_several_rates() -> None:
    model = wrapped("body", codec="deepcod")
    with pytest.raises(FitError, match="need a codec with several rates"):
        compoff.calibrate(model, batches(), target_bytes=20)
    with pytest.raises(FitError, match="need a codec with several rates"):
        compoff.finish(model, batches(), max_drop=0.1)


class Sensors(nn.Module):
    """Normalizes what it is given itself, so that its inputs have units."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1))
        self.register_buffer("deviation", deviation.view(1, -1, 1))
        body = nn.Conv1d(4, 16, 5, padding=2), nn.ReLU(), nn.Conv1d(16, 16, 5, padding=2), nn.ReLU()
        self.body = nn.Sequential(*body, nn.AdaptiveAvgPool1d(4), nn.Flatten())
        self.score = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.score(self.body((x - self.get_buffer("mean")) / self.get_buffer("deviation")))


def sensed(means: list[float], deviations: list[float]) -> tuple[Sensors, torch.Tensor]:
    """A model, and smooth inputs in units of their own."""
    torch.manual_seed(0)
    net = Sensors(torch.tensor(means), torch.tensor(deviations))
    z = nn.functional.interpolate(torch.randn(256, 4, 12), 48, mode="linear")
    return net, z * net.get_buffer("deviation") + net.get_buffer("mean")


@pytest.mark.parametrize(
    ("means", "deviations"),
    [
        ([288.0] * 4, [2.0] * 4),  # K
        ([15.0, 1e5, 1e-4, 0.0], [10.0, 800.0, 1e-4, 3e9]),  # °C, Pa, something tiny and something huge
    ],
)
def test_whatever_the_channels_are_measured_in_a_fit_does_well(means: list[float], deviations: list[float]) -> None:
    net, x = sensed(means, deviations)
    report = compoff.fit(
        compoff.wrap(net, "input", example_input=x[:2]), x[:192].split(16), steps=40, validation=[x[192:]]
    ).splits["input"]
    assert report.output_error < 0.03
    assert math.isfinite(report.semi_orthogonality_error)
    assert sum(report.loss[-10:]) / 10 < 1.3 * report.loss[0]


def test_channels_too_many_magnitudes_apart_are_refused() -> None:
    net, x = sensed([0.0] * 4, [1e-17, 1.0, 1.0, 3e9])
    with pytest.raises(FeatureError, match="too many orders of magnitude apart for float32"):
        compoff.calibrate(compoff.wrap(net, "input", example_input=x[:2]), x.split(16))


@pytest.mark.parametrize(("lr", "worse"), [(None, False), (0.05, True)])
def test_a_fit_that_ends_worse_than_it_began_says_so(
    caplog: pytest.LogCaptureFixture, lr: float | None, worse: bool
) -> None:
    net, x = sensed([0.0] * 4, [1.0] * 4)
    compoff.fit(compoff.wrap(net, "input", example_input=x[:2]), x[:192].split(16), steps=30, lr=lr)
    assert ("the fit at 'input' ended worse than it began" in caplog.text) is worse


def test_a_blank_first_batch_leaves_no_floor() -> None:
    net = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(128, 5)).eval()
    batches = [torch.zeros(1, 3, 16), *(torch.randn(1, 3, 16) for _ in range(100))]
    floors: list[float] = []
    for given in (batches, batches[1:], [torch.randn(1, 3, 16)]):
        model = compoff.wrap(net, "input", example_input=batches[0], channels=12)
        compoff.calibrate(model, given)
        decoder = model.bottleneck("input").decoder
        assert isinstance(decoder, RefiningDecoder)
        floors.append(float(decoder.floor))
        model.unwrap()
    assert floors == [torch.finfo(torch.float32).min] * 3


def test_a_decoder_of_ones_own_does_not_decide_the_step() -> None:
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), [torch.randn(64, 32) for _ in range(4)]
    bits: list[float] = []
    for own in (
        None,
        lambda given, wanted: nn.Sequential(nn.Linear(given[0], 128), nn.ReLU(), nn.Linear(128, *wanted)),
    ):
        model = compoff.wrap(net, "2", example_input=x[0], decoder=own)
        compoff.calibrate(model, x)
        bottleneck = model.bottleneck("2")
        assert isinstance(bottleneck, TransformBottleneck)
        bits.append(float(bottleneck.reference_bits))
        assert isinstance(bottleneck.decoder, RefiningDecoder) == (own is None)
        model.unwrap()
    assert bits[1] == pytest.approx(bits[0], rel=1e-4)


def test_a_second_fit_for_fewer_bytes_than_a_payload_has_beside_its_symbols_is_refused() -> None:
    model, x = compoff.wrap(nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32)), [torch.randn(16, 32)]
    compoff.fit(model, x, steps=2, target_bytes=20)
    with pytest.raises(FitError, match="target_bytes is 3, but 7 bytes of a payload at 'input' are no symbols"):
        compoff.fit(model, x, steps=2, target_bytes=3)
