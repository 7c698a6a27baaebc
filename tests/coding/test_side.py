"""Side tensors: bit for bit there and back, never longer than plain, and every damaged byte refused."""

from __future__ import annotations

import math
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from compoff.coding import Side
from compoff.coding.side import DTYPES, decode_side, encode_side, max_side_bytes
from compoff.errors import ArtifactError, FeatureError, PayloadError

Array = np.ndarray[Any, Any]
shapes = stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
dtypes = st.sampled_from(DTYPES)


def identical(one: Array, other: Array) -> bool:
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def checked_trip(value: Array) -> bytes:
    data = encode_side(value)
    assert len(data) <= max_side_bytes(value.shape, value.dtype.name)
    back = decode_side(data, value.shape, value.dtype.name)
    assert identical(back, value)
    assert back.flags.writeable
    assert back.flags.c_contiguous
    return data


def reference(data: bytes, count: int, dtype: str) -> list[int]:
    """The bit patterns of the values, read one by one as the layout says."""
    form, body = data[0] & 127, data[1:]
    if data[0] & 128:
        body = zlib.decompress(body, wbits=-15)
    width = np.dtype(dtype).itemsize

    def fields(packed: bytes, bits: int) -> list[int]:
        text = "".join(format(byte, "08b") for byte in packed)
        assert len(text) - count * bits in range(8)
        assert "1" not in text[count * bits :]
        return [int(text[index * bits : (index + 1) * bits] or "0", 2) for index in range(count)]

    if form == 0:
        if dtype == "bool":
            return fields(body, 1)
        return [int.from_bytes(body[index * width : (index + 1) * width], "little") for index in range(count)]
    if form == 1:
        return [sum(body[place * count + index] << 8 * place for place in range(width)) for index in range(count)]
    if form == 2:
        end = next(index for index, byte in enumerate(body) if byte < 128) + 1
        zigzag = sum((byte & 127) << 7 * index for index, byte in enumerate(body[:end]))
        least = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
        return [(least + value) % 256**width for value in fields(body[end + 1 :], body[end])]
    assert form == 3
    number = body[0] + 1
    colors = [int.from_bytes(body[1 + width * index : 1 + width * index + width], "little") for index in range(number)]
    assert colors == sorted(set(colors))
    return [colors[place] for place in fields(body[1 + width * number :], math.ceil(math.log2(number)))]


@settings(max_examples=300, deadline=None)
@given(stn.arrays(dtypes, shapes))
def test_any_tensor_comes_back_and_reads_as_the_layout_says(value: Array) -> None:
    data = checked_trip(value)
    unsigned = value.reshape(-1).view(f"u{value.dtype.itemsize}")
    assert reference(data, value.size, value.dtype.name) == unsigned.tolist()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_tensors_of_few_values_and_narrow_ranges_come_back(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(dtypes))
    number = data.draw(st.integers(1, 300))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    if dtype.kind == "b" or data.draw(st.booleans()):
        colors = np.frombuffer(generator.bytes(number * dtype.itemsize), f"u{dtype.itemsize}")
        flat = generator.choice(colors, 500)
        value = (flat % 2).view(np.bool_) if dtype.kind == "b" else flat.view(dtype)
    else:
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.iinfo("int16")
        low = int(generator.integers(limits.min, limits.max, endpoint=True))
        high = min(limits.max, low + 2 ** data.draw(st.integers(0, 63)))
        value = generator.integers(low, high, 500, dtype="int64", endpoint=True).astype(dtype)
    sent = checked_trip(value.reshape(5, 100))
    assert reference(sent, value.size, dtype.name) == value.view(f"u{dtype.itemsize}").tolist()


# Format version 1 of a payload. Changing one of these bytes is a new format version.
GOLDEN = [
    (np.array([True, False, True, True, False, False, False, True, True]), "00b180"),
    (np.array([[1.5]], np.float32), "000000c03f"),
    (np.array(17), "022200"),
    (np.array([-3, -3], np.int16), "020500"),
    (np.array([101, 7592, 2088, 102]), "02ca010d000750cf860010"),
    (np.array([5, 7, 6, 5], np.int32), "020a0224"),
    (np.array([0, -np.inf, -np.inf, 0, 0], np.float32), "0301" + "00000000" + "000080ff" + "60"),
    (np.array([-0.0, 0.0, -0.0, -0.0, 0.0], np.float16), "0301" + "0000" + "0080" + "b0"),
    (np.array([-1.0] * 9), "0300" + "000000000000f0bf"),
    (np.array([200, 7, 7, 9, 200] * 3, np.uint8), "0302" + "0709c8" + "81a06818"),
    (np.zeros((0, 3), np.int64), "00"),
]


@pytest.mark.parametrize(("value", "golden"), GOLDEN)
def test_golden(value: Array, golden: str) -> None:
    assert encode_side(value).hex() == golden
    assert identical(decode_side(bytes.fromhex(golden), value.shape, value.dtype.name), value)


@pytest.mark.parametrize(
    ("value", "golden"),
    [
        (np.tri(16, dtype=np.bool_), "80" + "05c1b11100000400b11fdd6846318252e1bc24488a66580e314ccb765c4f1f"),
        (np.array([-(2**63), 2**63 - 1]), "81" + "63f8cf80041bea01"),
    ],
)
def test_golden_deflated(value: Array, golden: str) -> None:
    """The bytes depend on the zlib that writes them; what is read from them does not."""
    assert identical(decode_side(bytes.fromhex(golden), value.shape, value.dtype.name), value)
    assert checked_trip(value)[0] == int(golden[:2], 16)


NANS = np.array([0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0, 0xFF800000], np.uint32)


@pytest.mark.parametrize("repeats", [1, 40])
def test_every_nan_and_both_zeros_keep_their_bits(repeats: int) -> None:
    checked_trip(np.tile(NANS, repeats).view(np.float32))


@pytest.mark.parametrize(
    ("value", "most"),
    [
        (np.random.default_rng(0).random((2, 1, 40, 40)) < 0.5, 1 + 400),
        (np.where(np.random.default_rng(0).random((2, 40, 40)) < 0.5, 0, -np.inf).astype(np.float32), 10 + 400),
        (np.random.default_rng(0).integers(0, 30522, (4, 128)), 5 + 4 * 128 * 15 // 8),
        (np.random.default_rng(0).integers(10**12, 10**12 + 8, 800, np.int64), 8 + 300),
        (np.triu(np.full((8, 1, 64, 64), np.finfo(np.float32).min, np.float32), 1), 1000),
        (np.broadcast_to(np.arange(512), (16, 512)), 1200),
        (np.maximum(np.random.default_rng(0).standard_normal((2, 8, 32, 32)), 0).astype(np.float32), 0.6 * 2**16),
        (np.random.default_rng(0).standard_normal((2, 8, 64, 64)).astype(np.float32), 0.9 * 2**18),
    ],
    ids=["bits", "float mask", "token ids", "large numbers", "causal mask", "positions", "relu", "features"],
)
def test_what_crosses_cuts_takes_few_bytes(value: Array, most: float) -> None:
    assert len(checked_trip(np.ascontiguousarray(value))) <= most


def test_what_cannot_be_packed_takes_one_byte_more_than_plain() -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(10_000), np.uint8)
    assert len(checked_trip(noise)) == 10_001 == max_side_bytes((10_000,), "uint8")


@given(stn.arrays(st.sampled_from([">f4", ">i8", "<u1", ">f2"]), shapes))
def test_byte_order_and_memory_order_do_not_matter(value: Array) -> None:
    native = value.astype(value.dtype.newbyteorder("="))
    assert encode_side(value) == encode_side(native) == encode_side(native.copy(order="F"))
    checked_trip(np.ascontiguousarray(native.T))


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "uint32", "U3", "O", "M8[s]"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(FeatureError, match="cannot be sent; expected float16"):
        encode_side(np.zeros(3, dtype))
    with pytest.raises(FeatureError, match="cannot be sent"):
        decode_side(b"\0", (3,), dtype)


@pytest.mark.parametrize(
    ("data", "shape", "dtype", "words"),
    [
        ("", (3,), "bool", "takes 1 to 2 bytes, not 0"),
        ("000000", (3,), "bool", "takes 1 to 2 bytes, not 3"),
        ("00", (3,), "bool", "not 0"),
        ("0001", (3,), "bool", "not zero"),
        ("01e0", (3,), "bool", "no form 1 of bool"),
        ("03e0", (3,), "bool", "no form 3 of bool"),
        ("0400000000", (1,), "float32", "no form 4"),
        ("7f00000000", (1,), "float32", "no form 127"),
        ("020000", (4,), "float32", "no form 2 of float32"),
        ("00000000", (1,), "float32", "take 4 bytes, not 3"),
        ("01000000", (1,), "float32", "take 4 bytes, not 3"),
        ("02", (4,), "int32", "least value does not end"),
        ("0280", (4,), "int32", "least value does not end"),
        ("0202", (4,), "int32", "in 255 bits"),
        ("02028000", (4,), "int32", "in 128 bits"),
        ("0202208888", (4,), "int32", "in 32 bits"),
        ("028080808010", (4,), "int32", "from 2147483648 on"),
        ("02818080801000", (4,), "int32", "from -2147483649 on"),
        ("02feffffff0f01f0", (4,), "int32", "a value is 2147483648"),
        ("02020200", (5,), "int32", "take 2 bytes, not 1"),
        ("02020209", (3,), "int32", "not zero"),
        ("02020000", (3,), "int32", "take 0 bytes, not 1"),
        ("03", (4,), "float32", "0 distinct values"),
        ("0301000000", (4,), "float32", "2 distinct values do not fit 4"),
        ("03010000803f00000000f0", (4,), "float32", "do not ascend"),
        ("03010000000000000000f0", (4,), "float32", "do not ascend"),
        ("0302000102" + "c000", (8,), "uint8", "names value 3 of 3"),
        ("03010001" + "01", (4,), "uint8", "not zero"),
        ("80", (9,), "float32", "longer or shorter"),
        ("80ff", (9,), "float32", "no DEFLATE stream"),
        ("80030000", (9,), "float32", "longer or shorter"),
    ],
)
def test_each_refusal_says_what_is_wrong(data: str, shape: tuple[int, ...], dtype: str, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        decode_side(bytes.fromhex(data), shape, dtype)


def deflated(body: bytes) -> bytes:
    stream = zlib.compressobj(9, wbits=-15)
    return stream.compress(body) + stream.flush()


@pytest.mark.parametrize("form", [0, 1, 3])
def test_a_bomb_is_not_blown_up(form: int) -> None:
    bomb = bytes([0x80 | form]) + deflated(bytes(100 << 20))
    count = len(bomb)  # so that its length alone is no reason to refuse it
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="longer or shorter"):
            decode_side(bomb, (count,), "uint8" if form != 1 else "int16")
        assert tracemalloc.get_traced_memory()[1] < 20 * count
    finally:
        tracemalloc.stop()


def test_what_follows_a_deflated_stream_is_refused() -> None:
    body = deflated(bytes(400))
    assert identical(decode_side(b"\x80" + body, (100,), "float32"), np.zeros(100, np.float32))
    for bad in (body + b"\0", body[:-1], body * 2):
        with pytest.raises(PayloadError, match="longer or shorter"):
            decode_side(b"\x80" + bad, (100,), "float32")


VALUES = [
    np.random.default_rng(1).random((2, 5, 7)) < 0.3,
    np.where(np.random.default_rng(1).random((2, 30)) < 0.5, 0, -np.inf).astype(np.float32),
    np.random.default_rng(1).integers(0, 30522, (2, 20)),
    np.random.default_rng(1).integers(-4, 5, (30,), np.int8),
    np.random.default_rng(1).standard_normal(50),
    np.tril(np.ones((2, 20, 20), np.float16)),
    np.arange(100, dtype=np.int32),
]


@pytest.mark.parametrize("value", VALUES, ids=[str(value.dtype) for value in VALUES])
def test_7000_mutations_are_refused_or_decode_to_a_tensor_of_the_shape(value: Array) -> None:
    generator = np.random.default_rng(2)
    data = encode_side(value)
    for _ in range(1000):
        bad, place = bytearray(data), int(generator.integers(0, len(data)))
        match int(generator.integers(0, 5)):
            case 0:
                bad[place] ^= 1 << int(generator.integers(0, 8))
            case 1:
                bad[0] = int(generator.integers(0, 256))
            case 2:
                del bad[place:]
            case 3:
                bad[place:place] = generator.bytes(int(generator.integers(1, 5)))
            case _:
                bad[place:] = generator.bytes(int(generator.integers(0, 2 * len(data))))
        try:
            back = decode_side(bytes(bad), value.shape, value.dtype.name)
        except PayloadError:
            continue
        assert (back.shape, back.dtype) == (value.shape, value.dtype)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), shapes, dtypes)
def test_any_bytes_are_refused_or_decode_to_a_tensor_of_the_shape(
    data: bytes, shape: tuple[int, ...], dtype: str
) -> None:
    try:
        back = decode_side(data, shape, dtype)
    except PayloadError:
        return
    assert (back.shape, back.dtype.name) == (shape, dtype)
    if back.size and dtype == "bool":
        assert back.view(np.uint8).max() <= 1
    assert identical(decode_side(encode_side(back), shape, dtype), back)


@pytest.mark.parametrize(("shape", "dtype"), [((3,), "uint16"), ((-1,), "bool"), ((0, 1 << 39, 1 << 39), "bool")])
def test_a_side_that_no_tensor_has_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be sent"):
        Side(shape, dtype)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((3, "bool"), "shape is 3; expected whole numbers"),
        (((1.5,), "bool"), r"shape is \(1\.5,\); expected whole numbers"),
        ((("a",), "bool"), r"shape is \('a',\); expected whole numbers"),
        (((3,), "bool", "no"), "batched is 'no'; expected True or False"),
    ],
)
def test_a_side_of_parts_of_another_kind_is_refused(parts: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        Side(*parts)


def test_a_side_knows_its_whole_shape() -> None:
    assert Side([4, 5], "bool").full_shape(3) == (3, 4, 5)
    assert Side((4, 5), "bool", batched=False).full_shape(3) == (4, 5)
