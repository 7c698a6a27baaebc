"""Whole payloads: their bytes, their ceiling, and every way in which they can be damaged."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compoff.coding import Code, Payload, PayloadFormat, SymbolTables, huffman, packing, range_coder
from compoff.coding.message import payload_bytes
from compoff.errors import ArtifactError, FeatureError, PayloadError

ID = bytes(range(32))
OTHER_ID = bytes(range(1, 33))
CODINGS = ("range", "huffman", "raw")


def crc32(data: bytes) -> int:
    """CRC-32 bit by bit, as its polynomial says."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def sealed(covered: bytes, artifact_id: bytes = ID) -> bytes:
    return covered + crc32(artifact_id + covered).to_bytes(4, "big")


def make_format(
    num_symbols: int = 6,
    latent_shape: tuple[int, ...] = (4, 3, 5),
    qualities: tuple[int, ...] | None = (1, 3, 4),
    concentration: float = 0.3,
    artifact_id: bytes = ID,
    max_batch: int = 200,
) -> PayloadFormat:
    generator = np.random.default_rng(11)
    rows = generator.dirichlet(np.full(num_symbols, concentration), latent_shape[0]) + 1e-6
    tables = SymbolTables.from_probabilities(rows)
    return PayloadFormat(artifact_id, [Code(tables, latent_shape, qualities)], max_batch=max_batch)


def likely_batch(payloads: PayloadFormat, batch: int, quality: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    (code,) = payloads.codes
    channels, *space = code.shape(quality)
    rows = code.tables.weights[:channels] / 2**24
    columns = [generator.choice(code.tables.num_symbols, (batch, *space), p=row) for row in rows]
    return np.stack(columns, axis=1).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_round_trip_under_the_ceiling(data: st.DataObject) -> None:
    space = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    channels = data.draw(st.integers(1, 5))
    qualities = tuple(sorted(data.draw(st.sets(st.integers(1, channels), min_size=1))))
    num_symbols = data.draw(st.integers(2, 256))
    payloads = make_format(num_symbols, (channels, *space), qualities)
    quality = data.draw(st.one_of(st.none(), st.integers(0, len(qualities) - 1)))
    sent = qualities[-1 if quality is None else quality]
    batch = data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**32))
    symbols = np.random.default_rng(seed).integers(0, num_symbols, (batch, sent, *space))
    payload = payloads.encode([symbols], quality=quality, coding=data.draw(st.sampled_from(CODINGS)))
    assert len(payload) <= payloads.max_bytes(batch, quality)
    assert payload.batch_size == batch
    assert payload.artifact_id == ID
    for received in (payload, bytes(payload), bytearray(payload.data), memoryview(payload.data)):
        decoded = payloads.decode(received)
        assert decoded.quality == payload.quality == qualities.index(sent)
        assert decoded.batch_size == batch
        assert decoded.sides == ()
        (found,) = decoded.symbols
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert np.array_equal(found, symbols)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("batch", [1, 3, 127, 128, 200])
def test_bytes_are_header_body_checksum(coding: str, batch: int) -> None:
    payloads = make_format()
    symbols = likely_batch(payloads, batch, quality=1)
    payload = payloads.encode([symbols], quality=1, coding=coding)
    # one row a channel: first all places of the first sample, then those of the next
    rows = np.array([[symbols[b, c, i, j] for b in range(batch) for i in range(3) for j in range(5)] for c in range(3)])
    body = {
        "raw": lambda: packing.pack(rows, 6),
        "range": lambda: range_coder.encode_python(rows, payloads.codes[0].tables),
        "huffman": lambda: huffman.encode(rows, payloads.codes[0].tables),
    }[coding]()
    size = bytes([batch]) if batch < 128 else bytes([batch % 128 + 128, batch // 128])
    code = {"raw": 0x10, "range": 0x11, "huffman": 0x12}[coding]
    assert payload.data == sealed(bytes([code, 1]) + size + body)


# Format version 1. Changing one of these bytes is a new format version.
GOLDEN_WEIGHTS = [[2**23, 2**22, 2**22], [1, 2**24 - 2, 1]]
GOLDEN_SYMBOLS = [[[0, 0, 1], [1, 1, 1]], [[2, 0, 0], [1, 1, 1]]]
GOLDEN = [
    ("range", None, GOLDEN_SYMBOLS, "1101022c014a805f89"),
    ("huffman", None, GOLDEN_SYMBOLS, "1201022c007a2715cf"),
    ("raw", None, GOLDEN_SYMBOLS, "100102060555c7c724ba"),
    ("range", 0, [[[0, 2, 1]]], "10000124cc186ee0"),
]


@pytest.mark.parametrize(("coding", "quality", "symbols", "golden"), GOLDEN)
def test_golden(coding: str, quality: int | None, symbols: list[list[list[int]]], golden: str) -> None:
    payloads = PayloadFormat(ID, [Code(SymbolTables(GOLDEN_WEIGHTS), (2, 3), qualities=(1, 2))])
    assert payloads.encode([symbols], quality=quality, coding=coding).data.hex() == golden
    assert payloads.decode(bytes.fromhex(golden)).symbols[0].tolist() == symbols


def test_unlikely_symbols_are_sent_raw() -> None:
    payloads = make_format(num_symbols=16, qualities=None, concentration=0.05)
    rarest = payloads.codes[0].tables.weights.argmin(axis=1)
    symbols = np.broadcast_to(rarest[None, :, None, None], (2, 4, 3, 5))
    raw = payloads.encode([symbols], coding="raw")
    assert raw.data[0] == 0x10
    assert len(raw) == payloads.max_bytes(2) == 2 + 1 + payloads.packed_bytes(2) + 4
    for coding in ("range", "huffman"):
        assert payloads.encode([symbols], coding=coding).data == raw.data


def test_likely_symbols_take_fewer_bytes_than_raw() -> None:
    payloads = make_format(latent_shape=(4, 12, 12), qualities=None)
    symbols = likely_batch(payloads, batch=8, quality=0)
    entropy = payloads.codes[0].tables.cross_entropy(np.moveaxis(symbols, 1, 0).reshape(4, -1)) / 8
    payload = payloads.encode([symbols])
    assert payload.data[0] == 0x11
    assert entropy + 7 <= len(payload) <= 1.01 * entropy + 1 + 2 + 1 + 4 < payloads.max_bytes(8)


def test_ceiling_grows_with_quality_and_batch() -> None:
    payloads = make_format()
    assert payloads.packed_bytes(1, 0) == -(-15 * 3 // 8)
    assert payloads.packed_bytes(2) == payloads.packed_bytes(2, 2) == -(-2 * 60 * 3 // 8)
    assert payloads.max_bytes(1, 0) == 2 + 1 + payloads.packed_bytes(1, 0) + 4
    assert payloads.max_bytes(128) == 2 + 2 + payloads.packed_bytes(128) + 4


def mutations(data: bytes, generator: np.random.Generator, count: int) -> list[bytes]:
    """Flip bits, change, drop, repeat, swap and insert bytes, cut, extend, or send something else altogether."""
    result: list[bytes] = []
    for index in range(count):
        bad, place = bytearray(data), int(generator.integers(0, len(data)))
        junk = generator.bytes(int(generator.integers(1, 9)))
        kind = index % 8
        if kind == 0:
            bad[place] ^= 1 << int(generator.integers(0, 8))
        elif kind == 1:
            for spot in generator.integers(0, len(data), 3):
                bad[spot] = int(generator.integers(0, 256))
        elif kind == 2:
            del bad[place:]
        elif kind == 3:
            bad += junk if index % 16 < 8 else bytes(len(junk))
        elif kind == 4:
            bad[place:place] = junk
        elif kind == 5:
            del bad[place : place + len(junk)]
        elif kind == 6:
            bad = bytearray(generator.bytes(int(generator.integers(0, 2 * len(data)))))
        else:
            bad[:3] = generator.bytes(3)
        result.append(bytes(bad))
    return result


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("quality", [0, 2])
def test_12_000_mutations_are_refused_or_harmless(coding: str, quality: int) -> None:
    payloads = make_format()
    generator = np.random.default_rng(quality)
    refused = 0
    for seed in range(20):
        symbols = likely_batch(payloads, int(generator.integers(1, 5)), quality, seed)
        payload = payloads.encode([symbols], quality=quality, coding=coding)
        for bad in mutations(payload.data, generator, 100):
            try:
                decoded = payloads.decode(bad)
            except PayloadError:
                refused += 1
            else:
                assert decoded.quality == quality
                assert np.array_equal(decoded.symbols[0], symbols)
    assert refused > 1900


def test_mutations_with_a_right_checksum_stay_inside_the_artifact() -> None:
    """Whoever can write a checksum can write symbols, but no crash, no other shape and no other alphabet."""
    payloads = make_format(max_batch=8)
    generator = np.random.default_rng(3)
    outcomes = {"refused": 0, "decoded": 0}
    for coding in CODINGS:
        payload = payloads.encode([likely_batch(payloads, 3, 2)], coding=coding)
        for bad in mutations(payload.data[:-4], generator, 1500):
            try:
                decoded = payloads.decode(sealed(bad))
            except PayloadError:
                outcomes["refused"] += 1
                continue
            outcomes["decoded"] += 1
            (symbols,) = decoded.symbols
            assert 1 <= decoded.batch_size <= 8
            assert symbols.shape == (decoded.batch_size, *payloads.codes[0].shape(decoded.quality))
            assert symbols.max() < 6
    assert min(outcomes.values()) > 100


@pytest.mark.parametrize("coding", CODINGS)
def test_every_truncation_and_every_single_bit_flip_is_refused(coding: str) -> None:
    payloads = make_format()
    data = payloads.encode([likely_batch(payloads, 2, 2)], coding=coding).data
    for length in range(len(data)):
        with pytest.raises(PayloadError):
            payloads.decode(data[:length])
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            payloads.decode(bytes(bad))


@pytest.mark.parametrize("coding", CODINGS)
def test_another_exports_payload_is_refused(coding: str) -> None:
    payloads, others = make_format(), make_format(artifact_id=OTHER_ID)
    for seed in range(50):
        foreign = others.encode([likely_batch(others, 2, 2, seed)], coding=coding)
        with pytest.raises(PayloadError, match="checksum is wrong"):
            payloads.decode(foreign.data)
        with pytest.raises(PayloadError, match=f"export {OTHER_ID.hex()[:12]}, not {ID.hex()[:12]}"):
            payloads.decode(foreign)


@pytest.mark.parametrize("max_bytes", [12, 1000])
def test_what_is_no_payload_of_this_export_is_not_cut_and_sealed_anew(max_bytes: int) -> None:
    payloads, others = make_format(), make_format(artifact_id=OTHER_ID)
    payload = payloads.encode([likely_batch(payloads, 2, 2)])
    assert len(payload) > 12
    damaged = payload.data[:5] + bytes([payload.data[5] ^ 1]) + payload.data[6:]
    for wrong, words in [
        (others.encode([likely_batch(others, 2, 2)]), f"export {OTHER_ID.hex()[:12]}, not {ID.hex()[:12]}"),
        (Payload(others.encode([likely_batch(others, 2, 2)]).data, ID, 2, 2), "checksum is wrong"),
        (Payload(damaged, ID, 2, 2), "checksum is wrong"),
        (Payload(b"", ID, 2, 2), "has 7 to"),
        (payload.data, "a bytes was given"),
        (None, "a NoneType was given"),
        (3, "a int was given"),
    ]:
        with pytest.raises(PayloadError, match=words):
            payloads.shortened(wrong, max_bytes)  # type: ignore[arg-type]
    shorter = payloads.shortened(Payload(payload.data, ID, quality=0, batch_size=99), 12)
    assert (shorter.quality, shorter.batch_size) == (2, 2)  # what its bytes say


@pytest.mark.parametrize(
    ("covered", "words"),
    [
        ("110201", "has 7 to"),
        ("21020100", "version 2"),
        ("15020100", "coding 5"),
        ("11030100", "quality 3"),
        ("11020000", "claims 0 samples"),
        ("1102c90100", "claims 201 samples"),
        ("1102818000", "a byte too many"),
        ("1102ffffffffff0f", "does not end"),
        ("1102ffffffff", "does not end"),
        ("110201" + "00" * 24, "cannot hold 1 samples"),
        ("100201" + "00" * 22, "take 23 bytes, not 22"),
        ("100201" + "ff" * 23, "not zero"),
        ("100201" + "e0" + "00" * 22, "at most 5"),
        ("120201" + "00", "Huffman"),
    ],
)
def test_each_refusal_says_what_is_wrong(covered: str, words: str) -> None:
    data = bytes.fromhex(covered) if words.startswith("has") else sealed(bytes.fromhex(covered))
    with pytest.raises(PayloadError, match=words):
        make_format().decode(data)


def test_a_payload_longer_than_any_is_refused_before_it_is_read() -> None:
    payloads = make_format(max_batch=2)
    with pytest.raises(PayloadError, match=f"bytes, not {10**7}"):
        payloads.decode(bytes(10**7))


@pytest.mark.parametrize(
    ("symbols", "options", "words"),
    [
        (np.zeros((1, 4, 3, 4), np.uint8), {}, "expected \\(batch, 4, 3, 5\\)"),
        (np.zeros((1, 4, 3, 5), np.uint8), {"quality": 0}, "expected \\(batch, 1, 3, 5\\)"),
        (np.zeros((4, 3, 5), np.uint8), {}, "expected \\(batch, 4, 3, 5\\)"),
        (np.zeros((0, 4, 3, 5), np.uint8), {}, "1 to 200 samples, not 0"),
        (np.zeros((201, 4, 3, 5), np.uint8), {}, "split the batch"),
        (np.full((1, 4, 3, 5), 6), {}, "0 to 5"),
        (np.zeros((1, 4, 3, 5)), {}, "whole numbers"),
        (np.zeros((1, 4, 3, 5), np.uint8), {"quality": 3}, "no quality 3"),
        (np.zeros((1, 4, 3, 5), np.uint8), {"quality": -1}, "no quality -1"),
        (np.zeros((1, 4, 3, 5), np.uint8), {"coding": "zip"}, "'raw', 'range', 'static', 'huffman'"),
    ],
)
def test_encode_refuses(symbols: np.ndarray, options: dict[str, object], words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        make_format().encode([symbols], **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"artifact_id": b"short"}, "32 bytes, not 5"),
        ({"latent_shape": ()}, "shape"),
        ({"latent_shape": (5, 3)}, "4 channels"),
        ({"latent_shape": (4, 0)}, "shape"),
        ({"qualities": ()}, "qualities"),
        ({"qualities": (0, 4)}, "between 1 and 4"),
        ({"qualities": (2, 2)}, "more channels, or finer steps, than the last"),
        ({"qualities": (4, 2)}, "rising"),
        ({"qualities": (5,)}, "between 1 and 4"),
        ({"max_batch": 0}, "max_batch"),
        ({"max_batch": 2**35}, "max_batch"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object], words: str) -> None:
    parts: dict[str, Any] = {"artifact_id": ID, "latent_shape": (4, 3), "qualities": None, "max_batch": 8, **change}
    tables = SymbolTables(np.full((4, 4), 2**22))
    with pytest.raises(ArtifactError, match=words):
        PayloadFormat(
            parts["artifact_id"],
            [Code(tables, parts["latent_shape"], parts["qualities"])],
            max_batch=parts["max_batch"],
        )


def test_a_larger_batch_of_one_byte_messages() -> None:
    tables = SymbolTables([[2**24 - 1, 1]])
    payloads = PayloadFormat(ID, [Code(tables, (1,))], max_batch=2**20)
    symbols = np.zeros((300_000, 1), np.uint8)
    payload = payloads.encode([symbols])
    assert len(payload) == 2 + 3 + 0 + 4
    assert np.array_equal(payloads.decode(payload).symbols[0], symbols)


def test_threads_share_a_format() -> None:
    payloads = make_format(latent_shape=(8, 10, 10), qualities=None)
    batches = [likely_batch(payloads, 4, 0, seed) for seed in range(8)]
    expected = [payloads.encode([batch]).data for batch in batches]
    fresh = copy.deepcopy(payloads)
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            data = fresh.encode([batches[index]]).data
            if data != expected[index] or not np.array_equal(fresh.decode(data).symbols[0], batches[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bytes_are_copied_only_where_they_could_change() -> None:
    data = b"\x11\x00\x01abcd"
    assert payload_bytes(data) is data
    assert payload_bytes(Payload(data, ID, 0, 1)) is data
    changing = bytearray(data)
    kept = [payload_bytes(changing), payload_bytes(memoryview(changing)), payload_bytes(memoryview(changing)[:])]
    changing[0] = 0
    assert kept == [data] * 3
    assert payload_bytes(memoryview(data)[::-1]) == data[::-1]
    released = memoryview(data)
    released.release()
    for wrong in (released, np.zeros(3), memoryview(data * 4)[:8].cast("I"), [data], None, "text"):
        with pytest.raises(PayloadError, match=r"was given; expected what a Head returns, or its bytes"):
            payload_bytes(wrong)  # type: ignore[arg-type]


def test_payload_is_its_bytes() -> None:
    payload = Payload(b"\x11\x00\x01abcd", ID, quality=0, batch_size=1)
    assert bytes(payload) == payload.data
    assert len(payload) == 7
    assert repr(payload) == "Payload(7 bytes, quality=0, batch_size=1)"
    assert payload == Payload(payload.data, ID, 0, 1)
    with pytest.raises(AttributeError):
        payload.data = b""
    assert "latent_shape=(4, 3, 5)" in repr(make_format())
