"""Symbols under context models: there and back, the same bytes with and without constriction, any prefix of them."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import Code, PayloadFormat, SymbolTables
from compoff.coding.context_coder import decode, encode
from compoff.coding.context_model import BOUND, CONTEXTS, ONE, ContextModel
from compoff.coding.leading import NUM_OWN
from compoff.coding.levels import coarse_tables
from compoff.coding.sums import groups
from compoff.errors import ArtifactError, FeatureError, PayloadError
from tests.coding.test_context_model import pass_of, random_model
from tests.coding.test_context_model import reference as expectations
from tests.coding.test_range_coder import reference as shortest

ID = bytes(range(32))
SPACES = [(), (6,), (5, 4), (2, 3, 2)]
GOLDEN_PAYLOADS = [
    "150002b40eedf3a6fb08b575",
    "15010221f06b7c8ba4613310a85a047d",
    "1502025830ebf1bc7ad2abfd97973aec0216eea4",
]
GOLDEN_MESSAGE = (377, "cdbaff11ae1db287")


def random_tables(generator: np.random.Generator, num_tables: int, num_symbols: int) -> SymbolTables:
    return SymbolTables.from_counts(generator.integers(0, 30, (num_tables, num_symbols)))


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 3), st.sampled_from(SPACES), st.integers(2, 40))
def test_there_and_back(seed: int, channels: int, batch: int, space: tuple[int, ...], num_symbols: int) -> None:
    generator = np.random.default_rng(seed)
    tables = random_tables(generator, int(generator.integers(1, 40)), num_symbols)
    axes = len(space) * int(generator.integers(0, 2))
    model, zero = random_model(generator, channels, tables, axes), num_symbols // 2
    symbols = generator.integers(0, num_symbols, (channels, batch, *space))
    message = encode(symbols, model, zero)
    assert message == encode(symbols, model, zero, python=True)
    for python in (False, True):
        assert np.array_equal(decode(message, model, symbols.shape, zero, python=python), symbols)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 18), st.sampled_from(SPACES), st.booleans())
def test_it_is_the_range_coder_in_the_order_that_is_written_down(
    seed: int, channels: int, space: tuple[int, ...], leads: bool
) -> None:
    generator = np.random.default_rng(seed)
    model = random_model(generator, channels, random_tables(generator, 4, 7), len(space) * leads)
    symbols = generator.integers(0, 7, (channels, 2, *space))
    tables, expected, signs = expectations(symbols - 3, model)
    group = {channel: start for start, end in groups(channels) for channel in range(start, end)}

    def order(at: tuple[int, ...]) -> tuple[Any, ...]:
        step = pass_of(at[2:]) if at[0] < len(model.leading) else sum(at[2:]) % 2
        return (group[at[0]], step, tables[at], at[0], pass_of(at[2:]), at[2:], at[1])

    places = sorted(np.ndindex(symbols.shape), key=order)
    coded = np.array([[((symbols[at] - 3 - expected[at]) * signs[at] + 3) % 7] for at in places])
    message = shortest(coded, SymbolTables(model.tables.weights[[tables[at] for at in places]]))
    assert encode(symbols, model, 3) == message


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SPACES), st.floats(0, 1))
def test_a_prefix_gives_whole_groups_and_nothing_else(seed: int, space: tuple[int, ...], share: float) -> None:
    generator = np.random.default_rng(seed)
    channels = 24
    model = random_model(generator, channels, random_tables(generator, 4, 9), len(space) * int(seed % 2))
    symbols = generator.integers(0, 9, (channels, 2, *space))
    message = encode(symbols, model, 4)
    prefix = message[: int(share * len(message))]
    found, same = (decode(prefix, model, symbols.shape, 4, prefix=True, python=python) for python in (False, True))
    assert np.array_equal(found, symbols[: len(found)])
    assert np.array_equal(found, same)
    assert len(found) in [0, *(end for _, end in groups(channels))]  # leading channels are groups of one


def test_a_prefix_leaves_out_little() -> None:
    generator = np.random.default_rng(1)
    model = ContextModel(np.zeros((24, CONTEXTS), int), [BOUND], SymbolTables([[2**22] * 4] * 2))
    symbols = generator.integers(0, 4, (24, 1, 4, 4))  # two bits each: four bytes a channel
    message = encode(symbols, model, 2)
    assert len(message) == 96
    assert len(decode(message[:60], model, symbols.shape, 2, prefix=True)) == 12
    assert len(decode(message, model, symbols.shape, 2, prefix=True)) == 22, "what may follow decides the last symbols"


def golden() -> tuple[Code, np.ndarray]:
    """A code of three channels and three qualities, whole numbers throughout; at the last, two channels lead."""
    tables = SymbolTables.from_counts([[1, 2, 9, 2, 1], [1, 3, 5, 3, 1], [1, 1, 20, 1, 1]])
    weights = [[ONE // 2] + [0] * 11, [0, ONE, 0, 0, 0, 0, 0, 0, ONE // 8, 0, 0, 0], [0, 0, 0, 0, ONE // 2] + [0] * 7]
    weights[1][9:] = [ONE // 4, ONE // 4, ONE // 3]
    fine = SymbolTables.from_counts([[0, 1, 40, 1, 0], [1, 4, 9, 4, 1], [3, 3, 3, 3, 3]])
    bounds = [BOUND // 2 + 1, 3 * BOUND // 2]
    own = [ONE // 4, ONE // 8, ONE // 8, ONE // 3, -ONE // 8, ONE // 4, ONE // 2, 0, ONE // 4, ONE // 3]
    leading = [[*own, *[0] * 10], [*own, ONE // 2, ONE // 4, ONE // 8, -ONE // 4, 0, *[0] * 5]]
    models = [
        ContextModel(weights[:2], bounds, coarse_tables(fine, 2)),
        ContextModel(weights[:2], bounds, fine),
        ContextModel(weights, bounds, SymbolTables(np.concatenate([fine.weights, fine.weights[::-1]])), leading),
    ]
    symbols = np.array([2, 2, 2, 1, 2, 2, 3, 2, 4])[np.arange(3 * 2 * 3 * 3) * 7 % 11 % 9].reshape(2, 3, 3, 3)
    symbols = symbols.astype(np.uint8)
    return Code(tables, (3, 3, 3), (2, 2, 3), (2, 1, 1), models), symbols


def test_bytes_are_golden() -> None:
    code, symbols = golden()
    payloads = PayloadFormat(ID, [code])
    found = [payloads.encode([code.sent(symbols, quality)], quality=quality).data.hex() for quality in (0, 1, 2)]
    assert found == GOLDEN_PAYLOADS
    for quality, text in enumerate(GOLDEN_PAYLOADS):
        decoded = payloads.decode(bytes.fromhex(text))
        assert np.array_equal(decoded.symbols[0], code.sent(symbols, quality))


def test_bytes_of_many_channels_are_golden() -> None:
    """Groups of several channels, three that lead, all passes, several samples: what the small ones do not reach."""
    number = np.arange(20 * 2 * 5 * 6)
    symbols = (4 + (number * number % 31 == 0) * (number % 9 - 4) + (number // 7 % 3 - 1)).clip(0, 8)
    symbols = symbols.reshape(20, 2, 5, 6)
    weights = np.arange(20 * CONTEXTS).reshape(20, CONTEXTS) * 7919 % 9001 - 3000
    leading = np.arange(3 * 25).reshape(3, 25) * 6007 % 30011 - 9000
    tables = SymbolTables.from_counts(1 + np.arange(6)[:, None] * 3 % 5 * np.array([0, 1, 2, 5, 9, 5, 2, 1, 0]))
    model = ContextModel(weights, [BOUND // 16, BOUND // 4], tables, leading)
    message = encode(symbols, model, 4)
    assert (len(message), hashlib.sha256(message).hexdigest()[:16]) == GOLDEN_MESSAGE
    assert np.array_equal(decode(message, model, symbols.shape, 4), symbols)


def test_a_payload_says_how_it_was_coded() -> None:
    code, symbols = golden()
    payloads = PayloadFormat(ID, [code])
    numbers = {
        coding: payloads.encode([symbols], coding=coding).data[0] & 15
        for coding in ("range", "static", "huffman", "raw")
    }
    assert numbers == {"range": 5, "static": 1, "huffman": 2, "raw": 0}
    plain = PayloadFormat(ID, [Code(code.tables, code.latent_shape, code.qualities, code.steps)])
    assert plain.encode([symbols]).data == payloads.encode([symbols], coding="static").data
    with pytest.raises(PayloadError, match="names coding 5, but this export has no context models"):
        plain.decode(payloads.encode([symbols]))


def test_a_cut_payload_has_a_number_of_its_own() -> None:
    code, symbols = golden()
    payloads = PayloadFormat(ID, [code])
    whole = payloads.encode([symbols])
    shorter = payloads.shortened(whole, len(whole) - 3)
    assert (shorter.data[0] & 15, len(shorter)) == (6, len(whole) - 3)
    [decoded] = payloads.decode(shorter).symbols
    assert 0 < decoded.shape[1] < 3
    assert np.array_equal(decoded, symbols[:, : decoded.shape[1]])
    again = payloads.shortened(shorter, len(whole) - 5)
    assert again.data[0] & 15 == 6
    assert payloads.decode(again).symbols[0].shape[1] <= decoded.shape[1]


@settings(max_examples=60)
@given(st.binary(max_size=40), st.booleans(), st.booleans())
def test_foreign_bytes_are_refused_or_give_symbols(data: bytes, prefix: bool, python: bool) -> None:
    generator = np.random.default_rng(0)
    model = random_model(generator, 5, random_tables(generator, 4, 9))
    try:
        found = decode(data, model, (5, 1, 3, 3), 4, prefix=prefix, python=python)
    except PayloadError:
        return
    assert found.dtype == np.uint8
    assert int(found.max(initial=0)) < 9


def test_symbols_that_no_table_has_are_refused() -> None:
    generator = np.random.default_rng(0)
    model = random_model(generator, 1)
    with pytest.raises(FeatureError, match="reach from 0 to 5"):
        encode(np.array([[[0, 5]]]), model, 2)


@pytest.mark.parametrize("num_tables", [63, 64, 127, 256])
def test_one_channel_has_as_many_tables_as_it_likes(num_tables: int) -> None:
    tables = SymbolTables.from_counts(np.ones((num_tables, 3)))
    model = ContextModel(np.zeros((1, CONTEXTS), int), np.arange(1, num_tables), tables)
    symbols = np.ones((1, 1, 4, 4), int)
    assert np.array_equal(decode(encode(symbols, model, 1), model, symbols.shape, 1), symbols)


def test_no_leading_channels_are_none_of_any_width() -> None:
    model = random_model(np.random.default_rng(0), 2)
    other = ContextModel(model.weights.astype(int), model.bounds, model.tables, np.zeros((0, 3), int))
    assert (other, hash(other)) == (model, hash(model))


def test_no_samples_are_no_bytes() -> None:
    code, symbols = golden()
    for quality in range(3):
        none = code.sent(symbols[:0], quality)
        assert code.decode(code.encode(none, quality, 5)[1], 0, quality, 5).shape == none.shape


def test_leading_channels_of_another_space_are_refused() -> None:
    model = random_model(np.random.default_rng(0), 4, axes=2)
    for shape in ((4, 1), (4, 1, 3), (4, 1, 3, 3, 3)):
        with pytest.raises(FeatureError, match="lead in a space of 2 axes cannot be used where there are"):
            encode(np.ones(shape, int), model, 2)


def test_large_spaces_are_looked_at_channel_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, symbols = random_model(np.random.default_rng(0), 12, axes=2), np.arange(12 * 2 * 25).reshape(12, 2, 5, 5) % 5
    message = encode(symbols, model, 2)
    monkeypatch.setattr("compoff.coding.context_model._AT_A_TIME", 1)
    assert encode(symbols, model, 2) == message


def test_models_that_do_not_fit_the_code_are_refused() -> None:
    code, _ = golden()
    first, middle, last = code.contexts
    other = ContextModel(last.weights.astype(int), last.bounds, last.tables, np.zeros((2, NUM_OWN + 2 * 3), int))
    for models, words in (
        ([last], "1 context models do not go with 3 qualities"),
        ([None, middle, last], "expected a list of ContextModel"),
        (5, "contexts is 5; expected a list"),
        ([last, middle, first], "for 3 channels of 5 symbols; expected 2 of 3"),
        ([first, middle, other], "channels lead in a space of 1 axes; expected 2"),
    ):
        with pytest.raises(ArtifactError, match=words):
            Code(code.tables, code.latent_shape, code.qualities, code.steps, cast("Any", models))


def test_expected_values_wrap_around() -> None:
    """The last symbol beside neighbors that let expect the first: the difference leaves the symbols and comes back."""
    weights = np.zeros((1, CONTEXTS), int)
    weights[0, -1] = ONE
    model = ContextModel(weights, [], SymbolTables.from_counts([[1, 5, 9, 5, 1]]))
    symbols = np.array([[[0, 4, 0, 4, 0]]])
    assert np.array_equal(decode(encode(symbols, model, 2), model, symbols.shape, 2), symbols)
