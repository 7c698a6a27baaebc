"""Context models that are fitted: what they save where there is something to save, and that they are left out else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compoff.coding import Code, PayloadFormat, SymbolTables
from compoff.coding.context_coder import encode
from compoff.coding.context_model import BOUND, ONE, ContextModel
from compoff.coding.leading import NUM_OWN
from compoff.fitting.contexts import SomeSamples, _bounds, _smoothed, fit_contexts
from compoff.fitting.least_squares import magnitude_weights

STEPS = (5, 3, 1)


def symbols_of(samples: int, *, alike: bool = True, seed: int = 0) -> np.ndarray:
    """Values whose spread is the same in all channels at a place, where they are alike; else the same everywhere."""
    generator = np.random.default_rng(seed)
    spread = np.exp(generator.normal(1, 1.5, (samples, 1, 6, 6))) if alike else np.full((samples, 1, 6, 6), 2.0)
    return (np.clip(np.rint(generator.laplace(0, spread, (samples, 10, 6, 6))), -21, 21) + 21).astype(np.uint8)


def code_for(symbols: np.ndarray) -> Code:
    counts = [np.bincount(channel.ravel(), minlength=43) for channel in symbols.swapaxes(0, 1)]
    return Code(SymbolTables.from_counts(counts), symbols.shape[1:], (8, 10, 10), STEPS)


def test_what_is_large_beside_the_large_takes_fewer_bytes() -> None:
    symbols = symbols_of(96)
    code = code_for(symbols)
    models = fit_contexts(symbols, code)
    assert [(model.num_channels, model.tables.num_symbols) for model in models] == [(8, 9), (10, 15), (10, 43)]
    payloads = PayloadFormat(bytes(32), [Code(code.tables, code.latent_shape, code.qualities, code.steps, models)])
    fresh = symbols_of(24, seed=1)
    for quality in range(3):
        sent = code.sent(fresh, quality)
        lengths = {
            coding: sum(len(payloads.encode([one[None]], quality=quality, coding=coding)) for one in sent)
            for coding in ("range", "static")
        }
        assert lengths["range"] < 0.92 * lengths["static"]


def smooth(samples: int, seed: int) -> np.ndarray:
    """Values that their neighbors tell something of, sign and all."""
    noise = np.random.default_rng(seed).normal(0, 2, (samples, 10, 8, 8))
    boxes = sum(noise[:, :, row : row + 6, column : column + 6] for row in range(3) for column in range(3))
    return (np.clip(np.rint(boxes), -21, 21) + 21).astype(np.uint8)


def test_what_is_like_its_neighbors_takes_fewer_bytes() -> None:
    symbols = smooth(48, 0)
    code = code_for(symbols)
    models = fit_contexts(symbols, code)
    payloads = PayloadFormat(bytes(32), [Code(code.tables, code.latent_shape, code.qualities, code.steps, models)])
    # From there on up it is lost that half of the positions do not see their neighbors.
    for quality, most in enumerate((0.865, 0.873, 0.911)):
        sent = code.sent(smooth(12, 1), quality)
        lengths = {
            coding: sum(len(payloads.encode([one[None]], quality=quality, coding=coding)) for one in sent)
            for coding in ("range", "static")
        }
        assert lengths["range"] < most * lengths["static"]


def test_those_that_are_looked_at_are_spread_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.fitting.contexts._SEEN_SYMBOLS", 48 * 10 * 6 * 6)
    symbols = symbols_of(96)
    code = Code(code_for(symbols).tables, (10, 6, 6), (10, 10, 10), STEPS)
    models = fit_contexts(symbols, code)
    assert len(models) == 3
    assert models == fit_contexts(symbols[::2], code)


def test_weights_are_those_of_least_squares() -> None:
    """Against the definition: each row divided by what the round before expects as its deviation."""
    generator = np.random.default_rng(0)
    rows = np.concatenate([np.ones((2, 300, 1)), generator.exponential((1.0, 40.0), (2, 300, 2))], axis=2)
    target = np.maximum(rows @ [-0.7, 0.3, 0.02] + generator.normal(0, 0.1, (2, 300)), 0)
    weights, magnitudes = magnitude_weights(rows, target)  # type: ignore[arg-type]
    assert magnitudes.min() > 0, "what is expected is a size"
    for channel in range(2):
        expected = np.ones(300)
        for deviation in (0.0, 0.05, 0.05):
            by = (expected + deviation)[:, None]
            [found, *_] = np.linalg.lstsq(rows[channel] / by, target[channel] / by[:, 0])
            expected = np.maximum(rows[channel] @ found, 0.005)
        assert weights[channel] == pytest.approx(found, rel=0.02, abs=0.002)


@pytest.mark.parametrize("largest", [0.005, 0.01, 0.04, 0.3, 90.0])
def test_bounds_rise_however_near_to_each_other_magnitudes_are(largest: float) -> None:
    bounds = _bounds(np.linspace(0.005, largest, 5000))
    assert len(bounds) == 15
    assert bounds[0] > 0
    assert (np.diff(bounds) > 0).all()
    assert bounds[-1] / BOUND == pytest.approx(largest, rel=0.01, abs=23 / BOUND)


def test_what_was_never_seen_is_spread_as_wide_as_its_table_lets_expect() -> None:
    bounds = np.rint(BOUND * np.geomspace(0.5, 8, 23)).astype(np.int64)
    [*shares] = _smoothed(np.zeros((24, 255)), bounds, 127)
    sizes = [float(share @ np.abs(np.arange(255) - 127) / share.sum()) for share in shares]
    assert sizes == pytest.approx([bounds[0] / BOUND, *bounds / BOUND], rel=0.05)
    assert [float(share.sum()) for share in shares] == pytest.approx([2.0] * 24)


def test_what_has_no_context_gets_no_model() -> None:
    symbols = symbols_of(96, alike=False)
    assert fit_contexts(symbols, code_for(symbols)) == ()


def test_a_few_bytes_are_not_worth_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    symbols = np.ascontiguousarray(symbols_of(512)[:, :, :1, :2])
    assert fit_contexts(symbols, code_for(symbols)) == ()
    monkeypatch.setattr("compoff.fitting.contexts._LEAST_BITS", 0.0)
    assert len(fit_contexts(symbols, code_for(symbols))) == 3


def test_few_samples_say_nothing() -> None:
    symbols = symbols_of(31)
    assert fit_contexts(symbols, code_for(symbols)) == ()


def test_few_samples_of_many_symbols_do(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    spread = np.exp(generator.normal(1, 1.5, (4, 1, 64, 64)))
    symbols = (np.clip(np.rint(generator.laplace(0, spread, (4, 10, 64, 64))), -21, 21) + 21).astype(np.uint8)
    assert len(fit_contexts(symbols, code_for(symbols))) == 3
    assert fit_contexts(symbols[:3], code_for(symbols)) == ()
    monkeypatch.setattr("compoff.fitting.contexts._SEEN_SYMBOLS", 1)  # each has more than are looked at
    assert len(fit_contexts(symbols, code_for(symbols))) == 3


@pytest.mark.parametrize("samples", range(4, 13))
def test_any_number_of_large_samples_will_do(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.fitting.contexts._SEEN_SYMBOLS", 4000)
    monkeypatch.setattr("compoff.fitting.contexts._FEWEST_SYMBOLS", 0)
    symbols = symbols_of(samples)  # of 360 symbols
    assert len(fit_contexts(symbols, code_for(symbols))) in (0, 3)


def test_no_quality_is_made_longer() -> None:
    """A channel that is alike at all places, with a shape of its own, which one bank of tables cannot have."""
    symbols = symbols_of(256)
    symbols[:, 0] = np.random.default_rng(1).choice([21, 23], symbols[:, 0].shape)
    counts = [np.bincount(channel.ravel(), minlength=43) for channel in symbols.swapaxes(0, 1)]
    tables = SymbolTables.from_counts(counts)
    assert fit_contexts(symbols, Code(tables, symbols.shape[1:], (2, 10), (1, 1))) == ()
    assert len(fit_contexts(symbols, Code(tables, symbols.shape[1:], (9, 10), (1, 1)))) == 2


def test_channels_lead_where_their_values_follow_from_each_other() -> None:
    """A smooth picture and its slope: values that say much of each other, and of their neighbors' values."""
    generator = np.random.default_rng(0)
    walk = generator.normal(0, 1, (96, 16, 17)).cumsum(1).cumsum(2)[:, :, 1:] / 2
    picture = np.stack([walk, np.gradient(walk, axis=2)], axis=1) + generator.normal(0, 0.2, (96, 2, 16, 16))
    symbols = (np.clip(np.rint(picture), -40, 40) + 40).astype(np.uint8)
    counts = [np.bincount(channel.ravel(), minlength=81) for channel in symbols.swapaxes(0, 1)]
    code = Code(SymbolTables.from_counts(counts), (2, 16, 16))
    [model] = fit_contexts(symbols, code)
    assert model.leading.shape == (2, NUM_OWN + 2 * 5)
    plain = ContextModel(model.weights.astype(int), model.bounds, SymbolTables(model.tables.weights[:16]))
    lengths = [sum(len(encode(np.moveaxis(one[None], 0, 1), use, 40)) for one in symbols[:8]) for use in (model, plain)]
    assert lengths[0] < 0.9 * lengths[1]
    flat = Code(code.tables, (2, 256))
    [line] = fit_contexts(symbols.reshape(96, 2, 256), flat)
    assert line.num_axes == 1


def test_centers_that_are_no_numbers_have_no_model() -> None:
    symbols = symbols_of(64) // 6
    counts = [np.bincount(channel.ravel(), minlength=8) for channel in symbols.swapaxes(0, 1)]
    assert fit_contexts(symbols, Code(SymbolTables.from_counts(counts), symbols.shape[1:])) == ()


def test_a_channel_that_is_always_zero_and_one_that_is_never() -> None:
    symbols = symbols_of(64)
    symbols[:, 1] = 21
    symbols[:, 2] = np.where(symbols[:, 2] == 21, 22, symbols[:, 2])
    models = fit_contexts(symbols, code_for(symbols))
    assert len(models) == 3
    code = Code(code_for(symbols).tables, (10, 6, 6), (8, 10, 10), STEPS, models)
    payloads = PayloadFormat(bytes(32), [code])
    for quality in range(3):
        sent = code.sent(symbols[:2], quality)
        assert np.array_equal(payloads.decode(payloads.encode([sent], quality=quality)).symbols[0], sent)


@pytest.mark.parametrize("space", [(), (5,), (1, 1)])
def test_any_space_will_do(space: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.fitting.contexts._LEAST_BITS", 0.0)
    generator = np.random.default_rng(0)
    spread = np.exp(generator.normal(1, 1.5, (512, 1, *(1 for _ in space))))
    symbols = (np.clip(np.rint(generator.laplace(0, spread, (512, 12, *space))), -21, 21) + 21).astype(np.uint8)
    counts = [np.bincount(channel.ravel(), minlength=43) for channel in symbols.swapaxes(0, 1)]
    code = Code(SymbolTables.from_counts(counts), (12, *space), (12,), (1,))
    [model] = fit_contexts(symbols, code)
    assert (model.weights[1:, 1:5] > ONE // 1000).any()


def test_some_samples_keep_nothing_of_the_others_alive() -> None:
    some, batch = SomeSamples(), torch.zeros(64, 2, 2, dtype=torch.uint8)
    some.add(batch)
    batch.fill_(7)
    assert some.num_samples == 64
    assert not some.symbols().any()
    assert all(one.base is None for one in some._kept)


def test_of_samples_that_are_too_large_a_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.fitting.contexts._KEPT_BYTES", 1)
    some = SomeSamples()
    for _ in range(40):
        some.add(torch.zeros(1, 2, 2, dtype=torch.uint8))
        assert some.num_samples < 8
    assert some.num_samples >= 4


def test_some_samples_are_every_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.fitting.contexts._KEPT_BYTES", 80 * 4)
    some = SomeSamples()
    for start in range(0, 600, 7):
        some.add(
            torch.arange(start, min(start + 7, 600)).remainder(251).to(torch.uint8).view(-1, 1, 1).expand(-1, 2, 2)
        )
    kept = some.symbols()
    assert kept.shape[1:] == (2, 2)
    assert 32 <= len(kept) <= 80
    assert set((np.diff(kept[:, 0, 0].astype(int)) % 251).tolist()) == {8}
