"""Huffman coding against a textbook tree and a decoder of bit strings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import SymbolTables, huffman
from compoff.errors import FeatureError, PayloadError

TOTAL = 2**24


def textbook_cost(weights: list[int]) -> int:
    """The weighted length of an optimal code: the sum of all inner nodes of Huffman's tree."""
    nodes, cost = sorted(weights), 0
    while len(nodes) > 1:
        merged = nodes.pop(0) + nodes.pop(0)
        cost += merged
        nodes = sorted([*nodes, merged])
    return cost


def canonical_words(lengths: list[int]) -> dict[int, str]:
    """Number the words as the DEFLATE specification does: count by length, then first word of each length."""
    count = [lengths.count(length) for length in range(max(lengths) + 1)]
    next_word, word = [0] * (max(lengths) + 1), 0
    for length in range(1, max(lengths) + 1):
        word = (word + (count[length - 1] if length > 1 else 0)) << 1
        next_word[length] = word
    words = {}
    for symbol, length in enumerate(lengths):
        words[symbol] = format(next_word[length], f"0{length}b")
        next_word[length] += 1
    return words


def reference_bits(symbols: np.ndarray, tables: SymbolTables) -> str:
    text = ""
    for row, weights in zip(symbols.tolist(), tables.weights.tolist(), strict=False):
        words = canonical_words(huffman.code_lengths(weights))
        text += "".join(words[symbol] for symbol in row)
    return text


def bits_of(data: bytes) -> str:
    return "".join(format(byte, "08b") for byte in data)


def fibonacci_tables() -> SymbolTables:
    """The weights with the longest words that any table can have."""
    weights = [1, 1]
    while sum(weights) + weights[-1] + weights[-2] <= TOTAL:
        weights.append(weights[-1] + weights[-2])
    weights[-1] += TOTAL - sum(weights)
    return SymbolTables([weights])


def random_tables(seed: int, channels: int, num_symbols: int, concentration: float = 0.5) -> SymbolTables:
    generator = np.random.default_rng(seed)
    return SymbolTables.from_probabilities(generator.dirichlet(np.full(num_symbols, concentration), channels) + 1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=40))
def test_code_lengths_are_optimal_and_complete(weights: list[int]) -> None:
    lengths = huffman.code_lengths(weights)
    assert sum(weight * length for weight, length in zip(weights, lengths, strict=True)) == textbook_cost(weights)
    assert sum(2 ** (64 - length) for length in lengths) == 2**64


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(2, 30), st.integers(0, 40))
def test_encode_writes_the_canonical_words_and_decode_reads_them(
    seed: int, channels: int, num_symbols: int, positions: int
) -> None:
    tables = random_tables(seed, channels, num_symbols)
    symbols = np.random.default_rng(seed).integers(0, num_symbols, (channels, positions))
    data = huffman.encode(symbols, tables)
    text = reference_bits(symbols, tables)
    assert bits_of(data) == text + "0" * (-len(text) % 8)
    decoded = huffman.decode(data, tables, positions)
    assert decoded.dtype == np.int32
    assert np.array_equal(decoded, symbols)


def test_the_longest_words_survive() -> None:
    tables = fibonacci_tables()
    assert max(huffman.code_lengths(tables.weights[0].tolist())) >= 30
    symbols = np.random.default_rng(0).integers(0, tables.num_symbols, (1, 3000))
    data = huffman.encode(symbols, tables)
    assert bits_of(data).startswith(reference_bits(symbols, tables))
    assert np.array_equal(huffman.decode(data, tables, 3000), symbols)


def test_a_message_longer_than_one_step_survives() -> None:
    tables = random_tables(1, 2, 256, concentration=5.0)
    symbols = np.random.default_rng(1).integers(0, 256, (2, 20_000))
    assert np.array_equal(huffman.decode(huffman.encode(symbols, tables), tables, 20_000), symbols)


def test_fewer_channels_than_tables() -> None:
    tables = random_tables(2, 5, 7)
    symbols = np.random.default_rng(2).integers(0, 7, (3, 11))
    data = huffman.encode(symbols, tables)
    assert np.array_equal(huffman.decode(data, tables, 11, num_channels=3), symbols)


@pytest.mark.parametrize(
    ("weights", "symbols", "golden"),
    [
        ([[2**23, 2**22, 2**22]], [[0, 2, 1, 0, 0, 2]], "7180"),
        ([[2**22] * 4, [TOTAL - 3, 1, 1, 1]], [[3, 0, 1, 2], [0, 0, 1, 3]], "c634"),
        ([[1, 1, 2, TOTAL - 4]], [[3, 3, 0, 1, 2]], "3780"),
    ],
)
def test_golden(weights: list[list[int]], symbols: list[list[int]], golden: str) -> None:
    tables = SymbolTables(weights)
    assert huffman.encode(symbols, tables).hex() == golden
    assert huffman.decode(bytes.fromhex(golden), tables, len(symbols[0])).tolist() == symbols


def test_truncated_extended_and_dirty_ends_are_refused() -> None:
    tables = random_tables(3, 2, 9)
    symbols = np.random.default_rng(3).integers(0, 9, (2, 50))
    data = huffman.encode(symbols, tables)
    used = len(reference_bits(symbols, tables))
    assert used % 8, "the test needs filling bits"
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            huffman.decode(data[:length], tables, 50)
    with pytest.raises(PayloadError, match="lost or added"):
        huffman.decode(data + b"\0", tables, 50)
    with pytest.raises(PayloadError, match="not zero"):
        huffman.decode(data[:-1] + bytes([data[-1] | 1]), tables, 50)


def test_random_bytes_never_give_a_symbol_out_of_range() -> None:
    tables = random_tables(4, 3, 11, concentration=0.2)
    generator = np.random.default_rng(4)
    outcomes = {"refused": 0, "decoded": 0}
    for _ in range(500):
        try:
            symbols = huffman.decode(generator.bytes(int(generator.integers(0, 12))), tables, 5)
        except PayloadError:
            outcomes["refused"] += 1
        else:
            outcomes["decoded"] += 1
            assert symbols.shape == (3, 5)
            assert 0 <= symbols.min() <= symbols.max() < 11
    assert min(outcomes.values()) > 0


def test_no_symbols_are_no_bytes() -> None:
    tables = random_tables(5, 2, 4)
    assert huffman.encode(np.zeros((2, 0), np.int32), tables) == b""
    assert huffman.decode(b"", tables, 0).shape == (2, 0)


@pytest.mark.parametrize(("positions", "channels"), [(3, 0), (3, 3), (-1, 2)])
def test_decode_refuses_shapes_without_tables(positions: int, channels: int) -> None:
    with pytest.raises(FeatureError, match="tables for 2"):
        huffman.decode(b"", random_tables(6, 2, 4), positions, channels)


def test_a_system_of_32_bits_which_counts_with_shorter_numbers_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = SymbolTables([[2**23, 2**22, 2**22]])
    expected, repeat = huffman.encode([[0, 2, 1]], tables), np.repeat
    monkeypatch.setattr(np, "intp", np.int32)
    # There numpy casts the counts so, and refuses those of 64 bits.
    monkeypatch.setattr(np, "repeat", lambda array, counts: repeat(array, counts.astype(np.int32, casting="safe")))
    assert huffman.encode([[0, 2, 1]], tables) == expected
