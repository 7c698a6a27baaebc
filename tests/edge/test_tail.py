"""Tail: from bytes to what the model returns, and what it refuses."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.coding import Payload
from compoff.errors import ArtifactError, ArtifactMismatch, PayloadError
from compoff.wire.tensors import unpack
from tests.small_networks import Nested, Plain, assert_close, tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from pathlib import Path


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


Pair = tuple[compoff.Head, compoff.Tail]


def tiny(net: nn.Module, split: str) -> compoff.Wrapped:
    return compoff.wrap(net, split, example_input=images(), encoder=tiny_encoder, decoder=tiny_decoder).eval()


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    return compoff.export(compoff.wrap(Plain(), "block1", example_input=images(), channels=4), "block1", max_batch=16)


@pytest.fixture(scope="module")
def other() -> Pair:
    torch.manual_seed(1)
    return compoff.export(compoff.wrap(Plain(), "block1", example_input=images(), channels=4), "block1", max_batch=16)


@pytest.fixture(scope="module")
def nested() -> tuple[compoff.Wrapped, Pair]:
    torch.manual_seed(0)
    wrapped = tiny(Nested(), "block2")
    return wrapped, compoff.export(wrapped, "block2")


def test_says_what_it_is(pair: Pair) -> None:
    head, tail = pair
    assert tail.split == "block1"
    assert tail.artifact_id == head.artifact_id
    assert repr(tail) == f"Tail(Plain at 'block1', id {tail.artifact_id.hex()[:8]})"
    assert tail.max_payload_bytes == tail.payload_format.max_bytes(16)


def test_payload_objects_and_bytes_are_the_same(pair: Pair) -> None:
    head, tail = pair
    payload = head(images(3))
    data = bytes(payload)
    for same in (data, bytearray(data), memoryview(data), memoryview(b"x" + data)[1:], array("B", data)):
        assert torch.equal(tail(same), tail(payload))
    assert all(torch.equal(one, tail(payload)) for one in tail([bytearray(data), payload, memoryview(data)]))
    assert tail.answer(bytearray(data)) == tail.answer(data)  # pyright: ignore[reportArgumentType]


def test_a_list_runs_as_one_batch_and_comes_apart_again(pair: Pair) -> None:
    head, tail = pair
    payloads = [head(images(batch)) for batch in (1, 3, 2)]
    answers = tail([payloads[0], bytes(payloads[1]), payloads[2]])
    for payload, answer in zip(payloads, answers, strict=True):
        torch.testing.assert_close(answer, tail(payload), rtol=0, atol=1e-6)
    assert tail([]) == []
    assert len(tail((payloads[0],))) == 1


def test_nested_outputs_come_back_as_the_model_nests_them(nested: tuple[compoff.Wrapped, Pair]) -> None:
    wrapped, (head, tail) = nested
    x = images(3)
    with wrapped.at("block2"), torch.no_grad():
        expected = wrapped(x)
    answer = tail(bytes(head(x)))
    assert list(answer) == ["scores", "all", "alone", "word", "half"]
    assert answer["word"] == "yes"
    assert_close(answer, expected)
    assert answer["all"][1] is None
    assert answer["all"][2][1:] == (3, True)
    assert answer["all"][3] == {}
    assert answer["half"] == 0.5
    assert [answer["scores"].dtype, answer["all"][2][0].dtype, answer["alone"][0].dtype] == [
        torch.float32,
        torch.int64,
        torch.float64,
    ]


def test_nested_outputs_of_a_list_come_apart(nested: tuple[compoff.Wrapped, Pair]) -> None:
    _, (head, tail) = nested
    payloads = [head(images(1)), head(images(2))]
    for payload, answer in zip(payloads, tail(payloads), strict=True):
        assert_close(answer, tail(payload))


class WithTable(nn.Module):
    """Returns a constant beside what depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(12, 4), nn.Parameter(torch.arange(2.0))

    def forward(self, x: Tensor) -> Any:
        return self.layer(x), self.table


def test_outputs_without_a_batch_come_back_with_every_payload() -> None:
    x = torch.randn(2, 12)
    wrapped = compoff.wrap(WithTable(), "layer", example_input=x).eval()
    head, tail = compoff.export(wrapped, "layer")
    assert [spec.batched for spec in tail.manifest.outputs] == [True, False]
    for batch, (scores, table) in zip(
        (1, 2, 5), tail([head(torch.randn(batch, 12)) for batch in (1, 2, 5)]), strict=True
    ):
        assert scores.shape == (batch, 4)
        assert table.tolist() == [0.0, 1.0]


def test_answer_is_the_leaves_packed(pair: Pair) -> None:
    head, tail = pair
    payload = head(images(3))
    (leaf,) = unpack(tail.answer(bytes(payload)))
    assert np.array_equal(leaf, tail(payload).numpy())


def test_every_flipped_bit_of_a_payload_is_found(pair: Pair) -> None:
    head, tail = pair
    data = bytes(head(images()))
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(PayloadError):
            tail(bytes(damaged))


def test_every_truncation_of_a_payload_is_found(pair: Pair) -> None:
    head, tail = pair
    data = bytes(head(images()))
    for damaged in [*(data[:length] for length in range(len(data))), data + b"\0", data * 2]:
        with pytest.raises(PayloadError):
            tail(damaged)
        with pytest.raises(PayloadError):
            tail.answer(damaged)


@pytest.mark.parametrize("given", [None, 10**15, 3.5, "payload", np.zeros(3), torch.zeros(3), [None], {"a": b""}])
def test_what_is_no_payload_is_refused(pair: Pair, given: Any) -> None:
    with pytest.raises(PayloadError, match="was given; expected what a Head returns, or its bytes; a tail takes"):
        pair[1](given)


def test_another_export_is_refused(pair: Pair, other: Pair) -> None:
    payload = other[0](images())
    for given in (payload, [payload]):
        with pytest.raises(ArtifactMismatch, match=r"by the head of export \w{8}, this tail is of export \w{8}"):
            pair[1](given)
    with pytest.raises(PayloadError, match="of another export's head"):
        pair[1](bytes(payload))


def test_a_payload_that_lies_about_its_export_is_refused(pair: Pair, other: Pair) -> None:
    payload = other[0](images())
    lie = Payload(payload.data, pair[1].artifact_id, payload.quality, payload.batch_size)
    with pytest.raises(PayloadError, match="checksum"):
        pair[1](lie)


def test_comes_back_from_its_folder(pair: Pair, tmp_path: Path) -> None:
    head, tail = pair
    tail.save(tmp_path / "tail")
    payload = head(images(3))
    again = compoff.Tail.load(tmp_path)
    assert again.manifest == tail.manifest
    assert torch.equal(again(payload), tail(payload))
    again.save(tmp_path / "again")
    for path in (tmp_path / "tail").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_factory_that_is_not_needed_is_said_not_to_be_used(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair[1].save(tmp_path)
    compoff.Tail.load(tmp_path)
    assert not caplog.text
    compoff.Tail.load(tmp_path, factory="no.such:thing")
    assert "is a program and needs no factory; no.such:thing is not used" in caplog.text


def test_300_flipped_bytes_are_found(pair: Pair, tmp_path: Path) -> None:
    pair[1].save(tmp_path)
    random = np.random.default_rng(0)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        for place in random.integers(len(data), size=100).tolist():
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
            with pytest.raises(ArtifactError, match=path.name):
                compoff.Tail.load(tmp_path)
        path.write_bytes(data)
    assert compoff.Tail.load(tmp_path).manifest == pair[1].manifest


def test_files_of_another_export_are_found(pair: Pair, other: Pair, tmp_path: Path) -> None:
    pair[1].save(tmp_path / "one")
    other[1].save(tmp_path / "other")
    (tmp_path / "one" / "tail.pt2").write_bytes((tmp_path / "other" / "tail.pt2").read_bytes())
    with pytest.raises(ArtifactError, match=r"tail\.pt2: "):
        compoff.Tail.load(tmp_path / "one")
