"""Payloads of several codes and side tensors: their bytes, their ceiling, and every way they can be damaged."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from compoff.coding import Code, PayloadFormat, Side, SymbolTables, packing, range_coder
from compoff.coding.side import DTYPES, encode_side
from compoff.errors import ArtifactError, FeatureError, PayloadError
from tests.coding.test_payload import CODINGS, ID, mutations, sealed

Array = np.ndarray[Any, Any]


def make_code(channels: int, space: tuple[int, ...], num_symbols: int, qualities: tuple[int, ...] | None) -> Code:
    rows = np.random.default_rng(channels).dirichlet(np.full(num_symbols, 0.3), channels) + 1e-6
    return Code(SymbolTables.from_probabilities(rows), (channels, *space), qualities)


SKIPS = PayloadFormat(
    ID,
    [make_code(4, (3, 5), 6, (1, 3, 4)), make_code(2, (9,), 4, (1, 1, 2)), make_code(3, (), 16, (1, 2, 3))],
    [Side((1, 8), "bool"), Side((5,), "int64", batched=False), Side((2, 3), "float32")],
    max_batch=8,
)


def drawn(payloads: PayloadFormat, batch: int, quality: int, seed: int = 0) -> tuple[list[Array], list[Array]]:
    generator = np.random.default_rng(seed)
    symbols = [
        generator.choice(code.tables.num_symbols, (batch, *code.shape(quality)), p=code.tables.weights[0] / 2**24)
        for code in payloads.codes
    ]
    sides = [
        (generator.integers(0, 2, side.full_shape(batch)) * generator.integers(1, 300)).astype(side.dtype)
        for side in payloads.sides
    ]
    return symbols, sides


def same(found: tuple[Array, ...], expected: list[Array]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


codes = st.integers(1, 4).flatmap(
    lambda number: st.lists(
        st.builds(
            lambda channels, space, num_symbols: (channels, tuple(space), num_symbols, number),
            st.integers(number, number + 3),
            st.lists(st.integers(1, 4), max_size=2),
            st.integers(2, 256),
        ),
        min_size=1,
        max_size=3,
    )
)
sides = st.lists(
    st.builds(Side, stn.array_shapes(min_dims=0, max_dims=3, min_side=0), st.sampled_from(DTYPES), st.booleans()),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(codes, sides, st.data())
def test_round_trip_under_the_ceiling(
    shapes: list[tuple[int, tuple[int, ...], int, int]], others: list[Side], data: st.DataObject
) -> None:
    payloads = PayloadFormat(
        ID, [make_code(c, space, n, (*range(1, number), c)) for c, space, n, number in shapes], others, max_batch=5
    )
    quality = data.draw(st.integers(0, payloads.num_qualities - 1))
    batch = data.draw(st.integers(1, 5))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    symbols = [generator.integers(0, c.tables.num_symbols, (batch, *c.shape(quality))) for c in payloads.codes]
    tensors = [data.draw(stn.arrays(side.dtype, side.full_shape(batch))) for side in others]
    payload = payloads.encode(symbols, tensors, quality=quality, coding=data.draw(st.sampled_from(CODINGS)))
    assert len(payload) <= payloads.max_bytes(batch, quality) <= payloads.max_bytes(batch)
    decoded = payloads.decode(bytes(payload))
    assert (decoded.quality, decoded.batch_size) == (quality, batch) == (payload.quality, payload.batch_size)
    assert same(decoded.symbols, symbols)
    for found, tensor in zip(decoded.sides, tensors, strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())


def rows(symbols: Array) -> Array:
    return np.concatenate([sample.reshape(len(sample), -1) for sample in symbols], axis=1)


def test_bytes_are_header_parts_after_their_lengths_checksum() -> None:
    symbols, tensors = drawn(SKIPS, batch=3, quality=1)
    bodies: list[bytes] = []
    for one, code in zip(symbols, SKIPS.codes, strict=True):
        body = range_coder.encode_python(rows(one), code.tables)
        packed = packing.pack(rows(one), code.tables.num_symbols)
        bodies.append(b"\x01" + body if len(body) < len(packed) else b"\x00" + packed)
    assert {body[0] for body in bodies} == {0, 1}
    parts = [bodies[0][1:], *bodies[1:], *map(encode_side, tensors)]
    framed = b"".join(bytes([len(part)]) + part for part in parts[:-1]) + parts[-1]
    assert SKIPS.encode(symbols, tensors, quality=1).data == sealed(bytes([0x10 + bodies[0][0], 1, 3]) + framed)


def test_a_long_part_has_a_length_of_two_bytes() -> None:
    payloads = PayloadFormat(ID, [make_code(2, (300,), 4, None)], [Side((), "uint8")])
    symbols = np.zeros((1, 2, 300), np.uint8)
    data = payloads.encode([symbols], [np.array([7], np.uint8)], coding="raw").data
    assert data == sealed(b"\x10\x00\x01" + b"\x96\x01" + bytes(150) + b"\x00\x07")
    assert payloads.max_bytes(1) == len(data)


# Format version 1. Changing one of these bytes is a new format version.
GOLDEN_FORMAT = PayloadFormat(
    ID,
    [
        Code(SymbolTables([[2**23, 2**22, 2**22], [1, 2**24 - 2, 1]]), (2, 3)),
        Code(SymbolTables([[2**24 - 1, 1]]), (1, 10)),
    ],
    [Side((4,), "bool"), Side((2,), "int64", batched=False)],
)
GOLDEN_SYMBOLS = [[[[0, 0, 1], [1, 1, 1]], [[2, 0, 0], [1, 1, 1]]], [[[0] * 10], [[0] * 10]]]
GOLDEN_SIDES = [np.array([[True, True, False, False], [True, False, False, False]]), np.array([640, 480])]
GOLDEN = [
    ("range", "110002" + "02" + "2c01" + "01" + "01" + "02" + "00c8" + "02c00708a000" + "617230e5"),
    ("raw", "100002" + "03060555" + "0400000000" + "0200c8" + "02c00708a000" + "546a2292"),
]


@pytest.mark.parametrize(("coding", "golden"), GOLDEN)
def test_golden(coding: Any, golden: str) -> None:
    assert GOLDEN_FORMAT.encode(GOLDEN_SYMBOLS, GOLDEN_SIDES, coding=coding).data.hex() == golden
    decoded = GOLDEN_FORMAT.decode(bytes.fromhex(golden))
    assert [one.tolist() for one in decoded.symbols] == GOLDEN_SYMBOLS
    assert all(map(np.array_equal, decoded.sides, GOLDEN_SIDES))


@pytest.mark.parametrize("coding", CODINGS)
def test_each_part_that_is_not_shorter_is_sent_raw(coding: Any) -> None:
    symbols, tensors = drawn(SKIPS, batch=2, quality=2)
    rarest = SKIPS.codes[1].tables.weights.argmin(axis=1)
    symbols[1] = np.broadcast_to(rarest[None, :, None], (2, 2, 9))
    data = SKIPS.encode(symbols, tensors, coding=coding).data
    second = packing.pack(rows(symbols[1]), 4)
    assert bytes([len(second) + 1, 0]) + second in data
    assert same(SKIPS.decode(data).symbols, symbols)


def test_the_ceiling_is_met_by_what_cannot_be_packed() -> None:
    payloads = PayloadFormat(ID, [make_code(1, (2,), 4, None)], [Side((300,), "uint8"), Side((40,), "uint8")])
    noise = np.random.default_rng(0).integers(0, 256, (3, 340), np.uint8)
    payload = payloads.encode([np.zeros((3, 1, 2), np.uint8)], [noise[:, :300], noise[:, 300:]], coding="raw")
    assert len(payload) == payloads.max_bytes(3) == 3 + (1 + 2) + (2 + 901) + 121 + 4


def test_fewer_channels_are_a_prefix_of_each_code() -> None:
    symbols, tensors = drawn(SKIPS, batch=2, quality=2)
    whole = SKIPS.encode(symbols, tensors, coding="raw").data
    fewer = [one[:, : code.qualities[0]] for one, code in zip(symbols, SKIPS.codes, strict=True)]
    lowest = SKIPS.encode(fewer, tensors, quality=0, coding="raw").data
    assert whole[4 : 4 + 11] == lowest[4 : 4 + 11]  # 30 symbols of 3 bits are 11 bytes and two bits


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("quality", [0, 2])
def test_6000_mutations_are_refused_or_harmless(coding: Any, quality: int) -> None:
    generator = np.random.default_rng(quality)
    refused = 0
    for seed in range(10):
        symbols, tensors = drawn(SKIPS, int(generator.integers(1, 5)), quality, seed)
        payload = SKIPS.encode(symbols, tensors, quality=quality, coding=coding)
        for bad in mutations(payload.data, generator, 100):
            try:
                decoded = SKIPS.decode(bad)
            except PayloadError:
                refused += 1
            else:
                assert decoded.quality == quality
                assert same(decoded.symbols, symbols)
                assert same(decoded.sides, tensors)
    assert refused > 900


def test_mutations_with_a_right_checksum_stay_inside_the_artifact() -> None:
    generator = np.random.default_rng(3)
    outcomes = {"refused": 0, "decoded": 0}
    for coding in CODINGS:
        payload = SKIPS.encode(*drawn(SKIPS, 3, 2), coding=coding)
        for bad in mutations(payload.data[:-4], generator, 1500):
            try:
                decoded = SKIPS.decode(sealed(bad))
            except PayloadError:
                outcomes["refused"] += 1
                continue
            outcomes["decoded"] += 1
            check_inside(SKIPS, decoded)
    assert min(outcomes.values()) > 50


def check_inside(payloads: PayloadFormat, decoded: Any) -> None:
    assert 1 <= decoded.batch_size <= payloads.max_batch
    for symbols, code in zip(decoded.symbols, payloads.codes, strict=True):
        assert symbols.shape == (decoded.batch_size, *code.shape(decoded.quality))
        assert symbols.max() < code.tables.num_symbols
    for tensor, side in zip(decoded.sides, payloads.sides, strict=True):
        assert (tensor.shape, tensor.dtype) == (side.full_shape(decoded.batch_size), side.dtype)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from([0x10, 0x11, 0x12]), st.integers(0, 2), st.integers(1, 8), st.binary(max_size=80))
def test_any_bytes_with_a_right_checksum_stay_inside_the_artifact(
    first: int, quality: int, batch: int, body: bytes
) -> None:
    try:
        decoded = SKIPS.decode(sealed(bytes([first, quality, batch]) + body))
    except PayloadError:
        return
    check_inside(SKIPS, decoded)


def test_every_truncation_and_every_single_bit_flip_is_refused() -> None:
    data = SKIPS.encode(*drawn(SKIPS, 2, 2)).data
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            SKIPS.decode(data[:length])
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            SKIPS.decode(bytes(bad))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("", "part length does not end"),
        ("80", "part length does not end"),
        ("ffffffffff0f", "part length does not end"),
        ("8200" + "2c01", "a byte too many"),
        ("7f" + "2c01" + "0101" + "0200c8" + "02c0070800", "a part of 127 bytes does not fit"),
        ("022c01" + "00" + "0200c8" + "02c007085000", "a code of the payload begins with nothing"),
        ("022c01" + "0107" + "0200c8" + "02c00708a000", "a code of the payload begins with 07, which is no coding"),
        ("022c01" + "0103" + "0200c8" + "02c00708a000", "begins with 03"),
        ("022c01" + "0104" + "0200c8" + "02c00708a000", "begins with 04"),
        ("05" + "2c01000000" + "0101" + "0200c8" + "02c00708085000", "5 bytes are too many for 2 samples"),
        ("022c01" + "050101010101" + "0200c8" + "02c00708085000", "4 bytes are too many"),
        ("022c01" + "0101" + "00" + "02c00708085000", "bool of shape \\(2, 4\\) takes 1 to 2 bytes, not 0"),
        ("022c01" + "0101" + "0300c800" + "02c00708085000", "takes 1 to 2 bytes, not 3"),
        ("022c01" + "0101" + "0200c8" + "", "int64 of shape \\(2,\\) takes 1 to 17 bytes, not 0"),
        ("022c01" + "0101" + "0200c8" + "02c0070850", "take 2 bytes, not"),
    ],
)
def test_each_refusal_says_what_is_wrong(parts: str, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        GOLDEN_FORMAT.decode(sealed(bytes.fromhex("110002" + parts)))


def test_a_payload_of_other_parts_is_refused() -> None:
    symbols, tensors = drawn(SKIPS, 2, 2)
    other = PayloadFormat(ID, SKIPS.codes[::-1], SKIPS.sides[::-1], max_batch=8)
    with pytest.raises(PayloadError):
        other.decode(SKIPS.encode(symbols, tensors).data)


@pytest.mark.parametrize(("batch", "fewer"), [(1, ""), (2, "fewer samples at once, or ")])
@pytest.mark.parametrize(("quality", "lower"), [(0, ""), (1, "a lower quality, or ")])
def test_a_payload_of_several_parts_that_is_too_long_says_what_it_takes(
    batch: int, fewer: str, quality: int, lower: str
) -> None:
    payload = SKIPS.encode(*drawn(SKIPS, batch, quality), quality=quality)
    assert SKIPS.shortened(payload, len(payload)) is payload
    length = len(payload)
    words = (
        f"max_bytes is {length - 1}, but the payload takes {length} bytes at quality {quality} and cannot be "
        f"cut, since more crosses the cut than one coded feature; give {fewer}{lower}"
        f"max_bytes={SKIPS.max_bytes(batch, quality)}, which is enough for any input"
    )
    with pytest.raises(FeatureError, match=re.escape(words)):
        SKIPS.shortened(payload, length - 1)


def test_a_payload_of_two_codes_is_not_cut_where_nothing_crosses_beside_them() -> None:
    payloads = PayloadFormat(ID, SKIPS.codes[:2])
    payload = payloads.encode(drawn(payloads, 2, 2)[0])
    with pytest.raises(FeatureError, match="more crosses the cut than one coded feature"):
        payloads.shortened(payload, len(payload) - 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda symbols, sides: (symbols[0], sides), "a list of 3 arrays of symbols.* 3 side"),
        (lambda symbols, sides: (symbols[:2], sides), "got list of 2 and 3"),
        (lambda symbols, sides: (symbols, sides[:2]), "got list of 3 and 2"),
        (lambda symbols, sides: ([symbols[1], *symbols[1:]], sides), "expected \\(batch, 4, 3, 5\\)"),
        (lambda symbols, sides: ([symbols[0], symbols[1][:1], symbols[2]], sides), r"hold \[2, 1, 2\] samples"),
        (
            lambda symbols, sides: (symbols, [sides[0][:1], *sides[1:]]),
            r"bool of shape \(1, 1, 8\); expected bool of shape \(2, 1",
        ),
        (lambda symbols, sides: (symbols, [sides[0], sides[1][None], sides[2]]), r"int64 of shape \(1, 5\)"),
        (lambda symbols, sides: (symbols, [*sides[:2], sides[2].astype("f8")]), "is float64.* expected float32"),
        (lambda symbols, sides: (symbols, [*sides[:2], sides[2].astype(">f4").view("u4")]), "is uint32"),
        (lambda symbols, sides: ([*symbols[:2], symbols[2] + 16], sides), "0 to 15"),
    ],
)
def test_encode_refuses(change: Any, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        SKIPS.encode(*change(*drawn(SKIPS, 2, 2)))


ONE = make_code(4, (3,), 6, (1, 4))


@pytest.mark.parametrize(
    "codes",
    [[], [ONE, make_code(2, (3,), 6, None)], [make_code(2, (), 3, (1, 1))], [ONE, make_code(4, (3,), 6, (1, 2, 4))]],
)
def test_codes_that_do_not_fit_are_refused(codes: list[Code]) -> None:
    with pytest.raises(ArtifactError, match="expected one code or more, with the same number of qualities"):
        PayloadFormat(ID, codes)


def test_codes_are_values() -> None:
    assert ONE == make_code(4, (3,), 6, (1, 4)) != make_code(4, (3,), 6, None)
    assert hash(ONE) == hash(make_code(4, (3,), 6, (1, 4)))
    with pytest.raises(AttributeError):
        ONE.qualities = (1,)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"artifact_id": "x" * 32}, "an artifact id is 32 bytes; a str was given"),
        ({"artifact_id": bytearray(32)}, "an artifact id is 32 bytes; a bytearray was given"),
        ({"codes": None}, "codes is None; expected a list of Code"),
        ({"codes": SKIPS.codes[0]}, r"codes is Code\(.*; expected a list of Code"),
        ({"codes": [1]}, r"codes is \[1\]; expected a list of Code"),
        ({"sides": [1]}, r"sides is \[1\]; expected a list of Side"),
        ({"sides": [SKIPS.codes[0]]}, r"sides is \[Code.*; expected a list of Side"),
        ({"max_batch": 3.5}, "max_batch is 3.5; expected a whole number"),
        ({"max_batch": "3"}, "max_batch is '3'; expected a whole number"),
        ({"max_batch": True}, "max_batch is True; expected a whole number"),
    ],
)
def test_parts_of_another_kind_are_named(change: dict[str, Any], words: str) -> None:
    parts: dict[str, Any] = {"artifact_id": ID, "codes": SKIPS.codes, "sides": SKIPS.sides, "max_batch": 8, **change}
    with pytest.raises(ArtifactError, match=words):
        PayloadFormat(**parts)


@pytest.mark.parametrize("batch", [-1, 1.0, True, "1", None])
def test_bytes_of_what_is_no_number_of_samples_are_not_counted(batch: Any) -> None:
    for count in (SKIPS.max_bytes, SKIPS.packed_bytes):
        with pytest.raises(FeatureError, match=r"batch is .*; expected a whole number of at least 0"):
            count(batch)
    assert SKIPS.max_bytes(np.uint8(200)) == SKIPS.max_bytes(200)  # type: ignore[arg-type]
