"""A program's file parted from its weights, and whole again to the last bit."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compoff.errors import ArtifactError
from compoff.pieces import LEAST_BYTES, put_back, take_out


def archive(entries: list[bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for number, data in enumerate(entries):
            file.writestr(zipfile.ZipInfo(f"archive/data/weights/weight_{number}"), data, compression)
    return buffer.getvalue()


@given(st.lists(st.integers(0, 3 * LEAST_BYTES).map(lambda size: bytes([size % 251]) * size), max_size=6))
def test_comes_back_to_the_last_bit(entries: list[bytes]) -> None:
    data = archive(entries)
    rest, weights = take_out(data, "../weights")
    assert {bytes(weight) for weight in weights.values()} == {one for one in entries if len(one) >= LEAST_BYTES}
    assert all(hashlib.sha256(weight).hexdigest() == name for name, weight in weights.items())
    asked: set[str] = set()

    def find(where: str, name: str, length: int) -> bytes:
        asked.add(where)
        assert len(weights[name]) == length
        return bytes(weights[name])

    assert put_back(rest, find) == data
    assert asked == ({"../weights"} if weights else set())


@pytest.mark.parametrize("data", [b"", b"no archive" * 1000, archive([bytes(9000)], zipfile.ZIP_DEFLATED)])
def test_what_holds_no_plain_tensor_stays_whole(data: bytes) -> None:
    rest, weights = take_out(data)
    assert weights == {}
    assert put_back(rest, lambda *_: b"") == data


def test_the_form_is_the_one_that_was_stored_before() -> None:
    data = archive([b"a" * 5000, b"short", b"b" * 4096])
    rest, _ = take_out(data, "../w")
    line, _, kept = rest.partition(b"\n")
    assert (
        hashlib.sha256(kept).hexdigest()
        == hashlib.sha256(data.replace(b"a" * 5000, b"").replace(b"b" * 4096, b"")).hexdigest()
    )
    assert json.loads(line) == {
        "format": 1,
        "where": "../w",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "pieces": [
            [59, 5000, hashlib.sha256(b"a" * 5000).hexdigest()],
            [5182, 4096, hashlib.sha256(b"b" * 4096).hexdigest()],
        ],
    }


def damaged(key: str, value: object) -> bytes:
    line, _, kept = take_out(archive([bytes(5000), b"x" * 5000]))[0].partition(b"\n")
    return json.dumps({**json.loads(line), key: value}).encode() + b"\n" + kept


NAME = hashlib.sha256(bytes(5000)).hexdigest()


@pytest.mark.parametrize(
    "rest",
    [
        b"",
        b"[]\n",
        b"{}\n",
        b"not json\n",
        b"[" * 100_000 + b"\n",
        damaged("format", 2),
        damaged("bytes", 5),
        damaged("bytes", float("inf")),
        damaged("bytes", float("nan")),
        damaged("sha256", "0" * 64),
        damaged("pieces", []),
        damaged("pieces", [[59, 5000, NAME]]),
        damaged("pieces", [[59, 5000, NAME], [60, 5000, NAME]]),
        damaged("pieces", [[-1, 5000, NAME]]),
        damaged("pieces", [[0, -1, NAME]]),
        damaged("pieces", [[0, 1 << 50, NAME]]),
        damaged("pieces", [[0, 5000, "../../etc/passwd"]]),
        damaged("pieces", [[0, 5000]]),
        damaged("pieces", 7),
        damaged("pieces", [[float("inf"), 5000, NAME]]),
        damaged("where", "\ud800"),
    ],
)
def test_what_is_damaged_is_refused(rest: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"damaged|save the tails again"):
        put_back(rest, lambda *_: bytes(5000))


def test_each_weight_is_asked_for_once_and_nothing_where_the_lengths_do_not_fit() -> None:
    data, asked = archive([bytes(5000)] * 3), list[str]()
    rest, weights = take_out(data)

    def find(_: str, name: str, __: int) -> memoryview:
        asked.append(name)
        return weights[name]

    assert put_back(rest, find) == data
    assert asked == [NAME]
    for key, value in (("bytes", 5), ("pieces", [[index * (1 << 20), 1 << 20, NAME] for index in range(100)])):
        with pytest.raises(ArtifactError, match=r"does not fit its weights|names the same weights too often"):
            put_back(damaged(key, value), find)
    assert asked == [NAME]


def test_many_repeats_of_a_weight_stay_with_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compoff.pieces._MOST_REPEATED", 10_000)
    data = archive([bytes(5000)] * 9)
    rest, weights = take_out(data)
    assert len(rest) > 6 * 5000
    assert put_back(rest, lambda _, name, __: weights[name]) == data


def test_a_weight_with_other_bytes_is_refused() -> None:
    rest, _ = take_out(archive([bytes(5000)]))
    for wrong in (b"", bytes(4999), bytes(4999) + b"x"):
        with pytest.raises(ArtifactError, match="other bytes than its name says"):
            put_back(rest, lambda *_, wrong=wrong: wrong)
