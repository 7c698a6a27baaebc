"""The range coder against an interval of unlimited integers; constriction against pure Python."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import SymbolTables, range_coder, range_constriction
from compoff.errors import FeatureError, PayloadError

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import constriction  # noqa: F401
except ImportError:
    compiled = False
else:
    compiled = True

TOTAL = 2**24
needs_constriction = pytest.mark.skipif(not compiled, reason="constriction is not installed")


def final_interval(symbols: np.ndarray, tables: SymbolTables) -> tuple[int, int, int]:
    """Narrow the interval in unlimited integers; return its start, its width and how many bits they have."""
    low, width, bits = 0, 2**64 - 1, 64
    for row, weights in zip(symbols.tolist(), tables.weights.tolist(), strict=False):
        for symbol in row:
            part = width // TOTAL
            low, width = low + part * sum(weights[:symbol]), part * weights[symbol]
            if width < 2**32:
                low, width, bits = low * 2**32, width * 2**32, bits + 32
    return low, width, bits


def reference(symbols: np.ndarray, tables: SymbolTables) -> bytes:
    """Try every length from none on: the first that has a byte string inside the final interval."""
    low, width, bits = final_interval(symbols, tables)
    for length in range(bits // 8 + 1):
        step = 2 ** (bits - 8 * length)
        first = (low + step - 1) // step
        if first * step < low + width:
            return first.to_bytes(length, "big")
    raise AssertionError("the interval is empty")


def spans_a_word(symbols: np.ndarray, tables: SymbolTables) -> bool:
    """Whether the final interval holds a carry into the words before it."""
    low, width, _ = final_interval(symbols, tables)
    return low % 2**64 + width > 2**64


def random_tables(generator: np.random.Generator, channels: int, num_symbols: int) -> SymbolTables:
    concentration = generator.choice([0.05, 0.3, 1.0, 20.0])
    return SymbolTables.from_probabilities(generator.dirichlet(np.full(num_symbols, concentration), channels) + 1e-12)


def likely_symbols(generator: np.random.Generator, tables: SymbolTables, positions: int) -> np.ndarray:
    return np.stack([generator.choice(tables.num_symbols, positions, p=row / TOTAL) for row in tables.weights])


def messages(count: int, longest: int, seed: int) -> Iterator[tuple[np.ndarray, SymbolTables]]:
    """Random messages: likely under their tables or not, with and without channels, a few tables each used often."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        if index % 10 == 0:
            tables = random_tables(generator, int(generator.integers(1, 4)), int(generator.integers(2, 33)))
        positions = int(generator.integers(0, longest))
        if index % 3:
            yield likely_symbols(generator, tables, positions), tables
        else:
            yield generator.integers(0, tables.num_symbols, (tables.num_channels, positions)), tables


def near_a_carry(tables: SymbolTables, above: bool, positions: int) -> np.ndarray:
    """Symbols whose interval closes in on a point from one side, so that a carry stays open over several words."""
    point = 0x9ABCDEF0 << 256
    value = (point + 1 if above else point - 1).to_bytes(36, "big")
    return range_coder.decode_python(value, tables, positions)


@needs_constriction
def test_constriction_and_python_give_the_same_bytes_over_10_000_messages() -> None:
    carries = 0
    for index, (symbols, tables) in enumerate(messages(10_000, longest=24, seed=1)):
        data = range_coder.encode(symbols, tables)
        assert data == range_coder.encode_python(symbols, tables)
        positions = symbols.shape[1]
        assert np.array_equal(range_coder.decode(data, tables, positions), symbols)
        if index % 5 == 0:
            assert np.array_equal(range_coder.decode_python(data, tables, positions), symbols)
            carries += spans_a_word(symbols, tables)
    assert carries >= 10


@needs_constriction
def test_constriction_and_python_agree_on_long_messages() -> None:
    generator = np.random.default_rng(2)
    for channels, positions in [(1, 5000), (4, 900), (64, 40), (200, 16), (200, 3), (300, 1)]:
        tables = random_tables(generator, channels, 16)
        symbols = likely_symbols(generator, tables, positions)
        data = range_coder.encode(symbols, tables)
        assert data == range_coder.encode_python(symbols, tables)
        assert np.array_equal(range_coder.decode(data, tables, positions), symbols)
        assert np.array_equal(range_coder.decode_python(data, tables, positions), symbols)


@pytest.mark.parametrize("coder", ["encode", "encode_python"])
def test_bytes_are_the_shortest_in_the_exact_interval(coder: str) -> None:
    for symbols, tables in messages(1000, longest=40, seed=3):
        assert getattr(range_coder, coder)(symbols, tables) == reference(symbols, tables)


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("coder", ["encode", "encode_python"])
def test_carries_through_several_words(coder: str, above: bool) -> None:
    tables = SymbolTables.from_probabilities([[0.31, 0.27, 0.42]])
    spanning = 0
    for positions in range(1, 200):
        symbols = near_a_carry(tables, above, positions)
        data = getattr(range_coder, coder)(symbols, tables)
        assert data == reference(symbols, tables)
        assert np.array_equal(range_coder.decode_python(data, tables, positions), symbols)
        spanning += spans_a_word(symbols, tables)
    assert spanning > 20


@pytest.mark.parametrize("count", [64, 256, 1024, 4096, 16384])
@pytest.mark.parametrize("num_symbols", [2, 4, 16, 64])
@pytest.mark.parametrize("kind", ["flat", "peaked", "very peaked"])
def test_mean_length_is_within_1_percent_and_1_byte_of_the_cross_entropy(
    count: int, num_symbols: int, kind: str
) -> None:
    generator = np.random.default_rng(count + num_symbols)
    most_likely = {"flat": 1 / num_symbols, "peaked": 0.9, "very peaked": 0.995}[kind]
    row = np.full(num_symbols, (1 - most_likely) / (num_symbols - 1))
    row[num_symbols // 2] = most_likely
    channels = 4
    tables = SymbolTables.from_probabilities(np.tile(row, (channels, 1)))
    lengths, entropies = [], []
    for _ in range(max(2, 2048 // count)):
        symbols = likely_symbols(generator, tables, count // channels)
        lengths.append(len(range_coder.encode(symbols, tables)))
        entropies.append(tables.cross_entropy(symbols) / 8)
    assert np.mean(lengths) <= 1.01 * np.mean(entropies) + 1


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_round_trip(data: st.DataObject) -> None:
    channels, num_symbols = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 256))
    positions = data.draw(st.integers(0, 20))
    counts = data.draw(
        st.lists(
            st.lists(st.integers(0, 10**6), min_size=num_symbols, max_size=num_symbols),
            min_size=channels,
            max_size=channels,
        )
        if num_symbols < 12
        else st.just(np.random.default_rng(num_symbols).integers(0, 1000, (channels, num_symbols)))
    )
    tables = SymbolTables.from_counts(counts)
    sent = data.draw(st.integers(1, channels))
    flat = data.draw(st.lists(st.integers(0, num_symbols - 1), min_size=sent * positions, max_size=sent * positions))
    symbols = np.array(flat, np.int64).reshape(sent, positions)
    message = range_coder.encode(symbols, tables)
    assert message == range_coder.encode_python(symbols, tables) == reference(symbols, tables)
    assert not message.endswith(b"\0")
    for decode in (range_coder.decode, range_coder.decode_python):
        decoded = decode(message, tables, positions, sent)
        assert decoded.dtype == np.int32
        assert np.array_equal(decoded, symbols)


def test_extreme_tables() -> None:
    tables = SymbolTables([[1] * 255 + [TOTAL - 255], [TOTAL - 255] + [1] * 255])
    generator = np.random.default_rng(6)
    for positions in (1, 2, 5, 33, 300):
        symbols = generator.integers(0, 256, (2, positions))
        data = range_coder.encode(symbols, tables)
        assert data == range_coder.encode_python(symbols, tables) == reference(symbols, tables)
        assert np.array_equal(range_coder.decode(data, tables, positions), symbols)


# Weights, symbols, bytes. Changing one of these bytes is a new format version.
GOLDEN = [
    ([[2**23, 2**23]], [[1, 0, 1, 1, 0, 0, 1, 0, 1]], "b280"),
    ([[TOTAL - 3, 1, 1, 1]], [[0] * 100], ""),
    ([[1, 1, 1, TOTAL - 3]], [[3] * 100], "01"),
    ([[TOTAL - 3, 1, 1, 1]], [[0] * 10 + [2] + [0] * 10], "ffffe0"),
    ([[4194304, 4194304, 4194304, 4194304]], [[3, 2, 1, 0, 0, 1, 2, 3]], "e41b"),
    (
        [[10803087, 3974233, 1462041, 537855], [537855, 1462041, 3974233, 10803087]],
        [[0, 0, 1, 0, 2, 0, 0, 3, 1, 0, 0, 0], [3, 3, 2, 3, 3, 1, 0, 3, 2, 3, 3, 2]],
        "532ff1f57b",
    ),
    ([[5592406, 5592405, 5592405]], [[1, 2, 0, 0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 0, 0, 2, 1, 2, 2, 1]], "90d52729"),
]


@pytest.mark.parametrize(("weights", "symbols", "golden"), GOLDEN)
@pytest.mark.parametrize("python", [False, True])
def test_golden(weights: list[list[int]], symbols: list[list[int]], golden: str, python: bool) -> None:
    tables = SymbolTables(weights)
    encode = range_coder.encode_python if python else range_coder.encode
    decode = range_coder.decode_python if python else range_coder.decode
    assert encode(symbols, tables).hex() == golden
    assert decode(bytes.fromhex(golden), tables, len(symbols[0])).tolist() == symbols


@pytest.mark.parametrize("positions", [4, 100])
def test_random_bytes_decode_alike_in_both_or_are_refused_by_both(positions: int) -> None:
    generator = np.random.default_rng(7)
    refused = 0
    many_tables = [random_tables(generator, 2, 5) for _ in range(30)]
    for index in range(1500):
        tables = many_tables[index % 30]
        data = b"\xff" * int(generator.integers(0, 12)) + generator.bytes(int(generator.integers(0, 24)))
        try:
            symbols = range_coder.decode_python(data, tables, positions)
        except PayloadError:
            refused += 1
            with pytest.raises(PayloadError, match="damaged"):
                range_coder.decode(data, tables, positions)
        else:
            assert 0 <= symbols.min() <= symbols.max() < 5
            assert np.array_equal(range_coder.decode(data, tables, positions), symbols)
    assert refused > 0


@pytest.mark.parametrize("coder", [range_coder.encode, range_coder.encode_python])
def test_encode_refuses_symbols_without_tables(coder: object) -> None:
    tables = SymbolTables([[2**23, 2**23]])
    for symbols in ([[0, 2]], [[-1]], [[0], [0]], [0, 1], [[0.5]]):
        with pytest.raises(FeatureError):
            coder(symbols, tables)


@pytest.mark.parametrize("decoder", [range_coder.decode, range_coder.decode_python])
@pytest.mark.parametrize(("positions", "channels"), [(3, 0), (3, 2), (-1, 1)])
def test_decode_refuses_shapes_without_tables(decoder: object, positions: int, channels: int) -> None:
    with pytest.raises(FeatureError, match="tables for 1"):
        decoder(b"", SymbolTables([[2**23, 2**23]]), positions, channels)


@needs_constriction
def test_without_constriction_the_same_functions_work(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = SymbolTables.from_probabilities([[0.2, 0.5, 0.3]])
    symbols = np.random.default_rng(8).integers(0, 3, (1, 500))
    compiled_bytes = range_coder.encode(symbols, tables)
    monkeypatch.setitem(sys.modules, "constriction", None)
    range_constriction.find.cache_clear()
    try:
        fresh = SymbolTables(tables.weights)
        assert range_coder.encode(symbols, fresh) == compiled_bytes
        assert np.array_equal(range_coder.decode(compiled_bytes, fresh, 500), symbols)
        assert range_constriction.find() is None
    finally:
        range_constriction.find.cache_clear()


def test_a_prefix_gives_the_first_channels_whatever_came_after() -> None:
    generator = np.random.default_rng(7)
    whole = 0
    for symbols, tables in messages(400, longest=24, seed=6):
        message = range_coder.encode(symbols, tables)
        cut = int(generator.integers(0, len(message) + 1))
        found = range_coder.decode_prefix(message[:cut], tables, symbols.shape[1], len(symbols))
        assert found.tolist() == symbols[: len(found)].tolist()
        other = message[:cut] + generator.bytes(12)  # any other end leaves them as they are
        with contextlib.suppress(PayloadError):
            again = range_coder.decode_python(other, tables, symbols.shape[1], len(symbols))
            assert again[: len(found)].tolist() == found.tolist()
        whole += len(found)
    assert whole > 200


def test_a_prefix_of_more_symbols_than_are_read_at_a_time() -> None:
    tables = SymbolTables.from_probabilities([[0.98, 0.02]] * 2)
    symbols = (np.random.default_rng(9).random((2, 5000)) < 0.02).astype(np.uint8)
    message = range_coder.encode(symbols, tables)
    found = range_coder.decode_prefix(message[: len(message) * 3 // 4], tables, 5000, 2)
    assert found.tolist() == symbols[:1].tolist()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_prefix_is_read_the_same_with_and_without_the_library(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 2**20), min_size=2, max_size=9))
    tables = SymbolTables.from_probabilities([weights, weights[::-1]])
    positions = data.draw(st.sampled_from([0, 1, 3, 40, 1500]))
    corner = st.sampled_from([b"", b"\xff" * 3, b"\xff" * 8, b"\xff" * 7 + b"\xfe", b"\xff" * 20])
    prefix = data.draw(corner) + data.draw(st.binary(max_size=24))
    expected = range_coder.decode_prefix_python(prefix, tables, positions, 2)
    assert range_coder.decode_prefix(prefix, tables, positions, 2).tolist() == expected.tolist()
