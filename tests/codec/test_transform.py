"""The transform codec: exact at the start, every rate in one, and the same on both sides of the wire."""

from __future__ import annotations

import pytest
import torch

from compoff.codec import Encoder, Geometry, Quality, RefiningDecoder, TileMoments, TransformBottleneck, WaveMoments
from compoff.codec.transform import LADDER
from compoff.codec.uniform import coarsen
from compoff.codec_options import CodecOptions
from compoff.errors import FeatureError, FitError

SHAPES = [(3, 8, 12), (3, 9, 11), (5, 16), (5, 13), (24,)]


def started(shape: tuple[int, ...], channels: int, step: float = 0.2) -> tuple[TransformBottleneck, torch.Tensor]:
    torch.manual_seed(0)
    bottleneck = TransformBottleneck(Geometry(shape, stride=4), channels).eval()
    y = torch.randn(64, *shape)
    moments = TileMoments(bottleneck.geometry)
    moments.add(y, torch.randn(64, *shape))
    bottleneck.start(moments.directions(channels), step, y)
    return bottleneck, y


@pytest.mark.parametrize("shape", SHAPES)
def test_it_starts_as_an_inverse_within_the_step(shape: tuple[int, ...]) -> None:
    bottleneck, y = started(shape, Geometry(shape, stride=4).tile_elements, step=0.2 / LADDER[0])
    with torch.no_grad():
        symbols = bottleneck.encode(y)
        assert symbols.dtype == torch.uint8
        assert tuple(symbols.shape) == (64, *bottleneck.latent_shape)
        error = bottleneck(y) - y
        best = bottleneck.qualities()[-1]
        torch.testing.assert_close(bottleneck(y), bottleneck.decode(bottleneck.received(symbols, best)))
    # Rounding to a step puts an error of step²/12 in every direction; the metric is nearly white here.
    assert float(error.square().mean()) < 3 * 0.2**2 / 12


@pytest.mark.parametrize("shape", SHAPES)
def test_training_reaches_every_part(shape: tuple[int, ...]) -> None:
    bottleneck, y = started(shape, 4)
    output = bottleneck.train().run(y)
    assert output.importance is not None
    (output.y_hat.square().sum() + output.estimated_rate).backward()
    missing = [name for name, parameter in bottleneck.named_parameters() if parameter.grad is None]
    assert missing == ["prior.logits"]  # counted after the fit, and so not trained
    assert not bottleneck.get_parameter("prior.logits").requires_grad
    bottleneck.zero_grad()
    bottleneck.run(y).prior_rate.backward()
    assert [name for name, parameter in bottleneck.named_parameters() if parameter.grad is not None] == [
        "density.center",
        "density.log_scales",
        "density.mixture",
    ]


def test_every_parameter_has_one_learning_rate() -> None:
    bottleneck, _ = started((3, 8, 12), 4)
    given = [parameter for group in bottleneck.parameter_groups(1e-3) for parameter in group["params"]]
    wanted = [parameter for parameter in bottleneck.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in given} == {id(parameter) for parameter in wanted}
    assert len(given) == len(wanted)


def test_training_at_one_step_is_what_the_edge_restores() -> None:
    bottleneck, y = started((3, 8, 12), 8)
    for step in LADDER:
        bottleneck.ladder = torch.tensor([step])
        trained = bottleneck.train().run(y).y_hat
        bottleneck.eval()
        received = bottleneck.received(bottleneck.encode(y), Quality(8, step))
        for restored in (bottleneck.decode(received), bottleneck.decode_at(y, step)):
            # A value on the edge of a step may fall to either side in another call; nothing else may differ.
            differing = ((restored - trained).abs() > 1e-4).float().mean()
            assert float(differing) < 0.02


def test_values_beyond_the_levels_ask_for_a_smaller_gain() -> None:
    bottleneck, y = started((3, 8, 12), 4)
    bottleneck.ladder = torch.ones(1)
    log_gain = bottleneck.train().quantizer.log_gain
    far = 400 * y  # nearly all of it is clipped
    assert float((bottleneck.quantizer.scaled(bottleneck.encoder(far)).abs() > 127).float().mean()) > 0.9

    def error() -> torch.Tensor:
        output = bottleneck.run(far)
        return (output.y - output.y_hat).square().mean()

    (slope,) = torch.autograd.grad(error(), log_gain)
    with torch.no_grad():
        log_gain += 0.01
        above = error()
        log_gain -= 0.02
        below = error()
    measured = float(above - below) / 0.02
    assert measured > 0
    assert float(slope.sum()) == pytest.approx(measured, rel=0.05)


def test_qualities_rise_and_leave_silent_channels_out() -> None:
    bottleneck, y = started((3, 8, 12), 8, step=0.02)
    with torch.no_grad():
        bottleneck.encoder.weight[5:] *= 1e-4  # these three are all but silent
    counts = torch.zeros(8, 255, dtype=torch.int64)
    symbols = bottleneck.encode(y).transpose(0, 1).flatten(1).long()
    for channel, row in enumerate(symbols):
        counts[channel] = torch.bincount(row, minlength=255)
    with torch.no_grad():
        bottleneck.quantizer.offset.zero_()
    bottleneck.prior.count(counts, bottleneck.density.probabilities(255))
    qualities = bottleneck.qualities()
    assert [quality.step for quality in qualities] == [21, 18, 15, 13, 11, 9, 8, 7, 6, 5, 3]
    assert set(LADDER) < {quality.step for quality in qualities}
    sent = [quality.channels for quality in qualities]
    assert sent == sorted(sent)


def test_in_eval_mode_it_restores_what_the_chosen_quality_sends() -> None:
    bottleneck, y = started((3, 8, 12), 8, step=0.02)
    silent = torch.zeros(8, 255)
    silent[:, 127] = 1e6
    silent[:5] += 1e6  # three channels are not sent at any quality
    bottleneck.prior.count(silent)
    assert bottleneck.qualities()[-1] == Quality(5, LADDER[0])
    answers = [
        bottleneck.decode(bottleneck.received(bottleneck.encode(y), quality)) for quality in bottleneck.qualities()
    ]
    torch.testing.assert_close(bottleneck(y), answers[-1])  # none is chosen, so the last
    for quality, answer in enumerate(answers):
        torch.testing.assert_close(bottleneck(y, quality), answer)
        bottleneck.choose(quality)
        torch.testing.assert_close(bottleneck(y), answer)
    assert not torch.equal(answers[0], answers[-1])


def test_it_sends_at_least_the_first_channel() -> None:
    bottleneck, y = started((3, 8, 12), 8, step=0.02)
    silent = torch.zeros(8, 255)
    silent[:, 127] = 1e6
    bottleneck.prior.count(silent)
    assert {quality.channels for quality in bottleneck.qualities()} == {1}
    received = bottleneck.received(bottleneck.encode(y), bottleneck.qualities()[-1])
    torch.testing.assert_close(bottleneck(y), bottleneck.decode(received))


def test_a_step_leaves_no_bias() -> None:
    values = torch.arange(-105.0, 106.0)
    for step in LADDER:
        assert torch.equal(coarsen(values, step), -coarsen(-values, step))


def test_weights_bring_their_ladder() -> None:
    bottleneck, y = started((3, 8, 12), 8)
    saved = bottleneck.state_dict()
    another = TransformBottleneck(Geometry((3, 8, 12), stride=4), 8).eval()
    another.load_state_dict({**saved, "ladder": torch.tensor([1, 5]), "served": torch.tensor([1, 2, 5])})
    assert [quality.step for quality in another.qualities()] == [5, 2, 1]
    assert another.reference_step == 5
    del saved["served"]  # as it was when the steps of the ladder alone were served
    another.choose(0)
    another.load_state_dict({**saved, "quality": torch.tensor(2)})
    assert [quality.step for quality in another.qualities()] == sorted(LADDER, reverse=True)
    assert another.qualities()[another.chosen].step == 11
    del saved["ladder"]  # as it was before ladders were saved
    another.load_state_dict(saved)
    assert [quality.step for quality in another.qualities()] == [9, 7, 5, 4, 3, 2, 1]
    assert another.reference_step == 4
    with torch.no_grad():
        assert torch.equal(another.encode(y), bottleneck.encode(y))


@pytest.mark.parametrize("shape", SHAPES)
def test_folded_it_gives_the_same_symbols(shape: tuple[int, ...]) -> None:
    bottleneck, y = started(shape, 4)
    with torch.no_grad():
        bottleneck.quantizer.log_gain.normal_(std=0.3)
        expected, restored = bottleneck.encode(y), bottleneck(y)
        bottleneck.fold()
        bottleneck.fold()  # a second time changes nothing
        assert torch.equal(bottleneck.encode(y), expected)
        torch.testing.assert_close(bottleneck(y), restored)


@pytest.mark.parametrize("shape", [*SHAPES, (8, 8, 12)])
def test_folding_shifts_and_units_changes_no_bit(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    geometry = Geometry(shape, stride=4)
    wide = shape == (8, 8, 12)  # described on waves
    if wide:
        monkeypatch.setattr("compoff.codec.waves._WHOLE", 64)
        monkeypatch.setattr("compoff.codec.waves._DESCRIBED", 32)
    bottleneck = TransformBottleneck(geometry, 6).eval().requires_grad_(requires_grad=False)
    unit = (10.0 ** torch.arange(-4, shape[0] - 4).clamp_max(4)).view(-1, *(1,) * (len(shape) - 1))
    y, slopes = (torch.randn(64, *shape) + 50) * unit, torch.randn(64, *shape) / unit
    mixing = None
    if wide:
        first = WaveMoments(geometry)
        first.add(y, slopes)
        mixing = first.directions(32)
    moments = TileMoments(geometry, mixing)
    moments.add(y, slopes)
    bottleneck.start(moments.directions(6), 0.05, y)
    assert isinstance(bottleneck.decoder, RefiningDecoder)
    assert bool((bottleneck.decoder.units.shift > 40 * unit.flatten()).all())
    for parameter in bottleneck.decoder.leave.parameters():
        parameter.normal_(0, 0.1)
    latent, symbols, restored = bottleneck.encoder(y), bottleneck.encode(y), bottleneck(y)
    by_hand = bottleneck.quantizer.symbols(latent)  # around the shifts, where those of a head are in its bias
    assert float((symbols != by_hand).float().mean()) < 0.01
    assert len(symbols.unique()) > 5
    bottleneck.fold()
    assert torch.equal(bottleneck.encode(y), symbols)
    assert torch.equal(bottleneck(y), restored)


def test_fewer_channels_are_zero_in_the_others() -> None:
    bottleneck, y = started((5, 16), 6)
    symbols = bottleneck.encode(y)
    received = bottleneck.received(symbols, Quality(channels=2))
    assert torch.equal(received[:, :2], symbols[:, :2])
    assert bool((received[:, 2:] == bottleneck.num_centers // 2).all())


def test_a_floor_that_an_activation_left_holds() -> None:
    torch.manual_seed(0)
    bottleneck = TransformBottleneck(Geometry((4, 16), stride=4), 16).eval()
    y = torch.randn(64, 4, 16).relu()
    moments = TileMoments(bottleneck.geometry)
    moments.add(y, torch.randn(64, 4, 16))
    bottleneck.start(moments.directions(16), 0.3, y)
    assert isinstance(bottleneck.decoder, RefiningDecoder)
    assert float(bottleneck.decoder.floor) == 0.0
    with torch.no_grad():
        assert float(bottleneck(y).min()) == 0.0
    _, unbounded = started((5, 16), 6)
    assert float(unbounded.min()) < 0


def test_it_will_not_start_by_itself() -> None:
    bottleneck = TransformBottleneck(Geometry((4, 16)), 8)
    with pytest.raises(FitError, match="no directions yet"):
        bottleneck.calibrate(torch.randn(4, 4, 16))


def test_more_channels_than_a_tile_holds_are_refused() -> None:
    with pytest.raises(FeatureError, match="channels is 17, but a tile"):
        TransformBottleneck(Geometry((4, 16), stride=4), 17)


@pytest.mark.parametrize("num_centers", [8, 17, 254, 257])
def test_levels_that_do_not_go_with_the_ladder_are_refused(num_centers: int) -> None:
    with pytest.raises(FeatureError, match=f"num_centers is {num_centers}; the transform codec takes an odd number"):
        TransformBottleneck(Geometry((4, 16), stride=4), 8, num_centers)


def test_the_options_choose_sizes() -> None:
    bottleneck = CodecOptions(codec="transform").build((32, 16, 16))
    assert isinstance(bottleneck, TransformBottleneck)
    assert bottleneck.latent_shape == (1024, 2, 2)
    with pytest.raises(FeatureError, match="encoder of your own"):
        CodecOptions(codec="transform", encoder=lambda _, __: torch.nn.Identity()).build((3, 8, 8))


def test_a_wide_deep_feature_rides_waves() -> None:
    bottleneck = CodecOptions(codec="transform").build((1024, 14, 14))
    assert bottleneck.latent_shape == (1024, 2, 2)
    assert isinstance(bottleneck.encoder, Encoder)
    assert [tuple(factor.shape) for factor in bottleneck.encoder.factors] == [(2048, 1024), (1024, 2048, 1, 1)]
    y = torch.zeros(1, 1024, 14, 14)
    assert bottleneck.eval().decode(bottleneck.encode(y)).shape == y.shape


def test_wide_channels_stay_within_the_levels() -> None:
    bottleneck, y = started((3, 8, 12), 48, step=0.001)
    with torch.no_grad():
        scaled = bottleneck.quantizer.scaled(bottleneck.encoder(y))
        error = (bottleneck(y) - y).square().mean() / y.var()
    assert float((scaled.abs() > 127).float().mean()) < 0.001
    assert float(error) < 1e-3
