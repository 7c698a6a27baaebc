"""Heads and tails of several codes and side tensors, and tails whose outputs nobody knows before they have answered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import compoff
from compoff.artifact import read_folder
from compoff.coding import SymbolTables
from compoff.errors import BackendError, FeatureError, PayloadError, RemoteError, RemoteProtocolError
from compoff.manifest import CodeSpec, Manifest, TensorSpec
from compoff.wire.nested import nested_arrays
from compoff.wire.tensors import pack, unpack

Array = np.ndarray[Any, Any]

MANIFEST = Manifest(
    kind="head",
    artifact_id="ab" * 32,
    split="body",
    model="Net",
    inputs=(TensorSpec((4,), "uint8"), TensorSpec((4,), "bool"), TensorSpec((2,), "int64", batched=False)),
    outputs=(TensorSpec((4,), "int64"), TensorSpec((4,), "float32")),
    structure={"dict": [["sum", {"leaf": 0}], ["mask", {"leaf": 1}]]},
    codes=(CodeSpec((4,), 8, (2, 4)), CodeSpec((2, 2), 8, (1, 2))),
    sides=(TensorSpec((4,), "float32"),),
    max_batch=16,
)
TABLES = (SymbolTables(np.full((4, 8), 2**21)), SymbolTables(np.full((2, 8), 2**21)))


class Runner:
    """A head in numpy: the symbols are the first input in two layouts, the mask becomes minus infinity or zero."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def run(self, inputs: Any, quality: int | None = None) -> list[Array]:
        del quality  # all channels do for each
        x, mask = inputs[:2]
        sides = [np.where(mask, np.float32(0), np.float32(-np.inf)), *inputs[2:]]
        return [x % 8, x.reshape(-1, 2, 2) % 8, *sides]

    def to_numpy(self, value: Any) -> Array | None:
        return value.numpy() if isinstance(value, torch.Tensor) else None

    def from_numpy(self, array: Array) -> Any:
        return torch.from_numpy(array.copy())


class Backend:
    """A tail in numpy, which counts its runs."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.runs: list[list[tuple[int, ...]]] = []

    def run(self, parts: list[Array]) -> list[Array]:
        self.runs.append([part.shape for part in parts])
        first, second, mask = parts[:3]
        total = first.sum(1, keepdims=True) + second.reshape(len(second), -1).sum(1, keepdims=True)
        return [np.repeat(total.astype(np.int64), 4, axis=1), mask]


def inputs(batch: int, seed: int = 0) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 8, (batch, 4), np.uint8), generator.random((batch, 4)) < 0.5


def make(manifest: Manifest = MANIFEST, backend: Any = None) -> tuple[compoff.Head, compoff.Tail]:
    manifest = replace(manifest, inputs=manifest.inputs[: 1 + len(manifest.sides)])
    tail = compoff.Tail(replace(manifest, kind="tail"), TABLES, Backend() if backend is None else backend)
    return compoff.Head(manifest, TABLES, Runner()), tail


def check(answer: dict[str, torch.Tensor], x: Array, mask: Array, factor: int = 2) -> None:
    assert answer["sum"][:, 0].tolist() == (factor * x.astype(int).sum(1)).tolist()
    assert np.array_equal(answer["mask"].numpy() == 0, mask)
    assert np.isneginf(answer["mask"].numpy()[~mask]).all()


def test_what_the_head_makes_is_what_the_tail_runs() -> None:
    head, tail = make()
    x, mask = inputs(3)
    payload = head(x, mask)
    assert len(payload) <= head.payload_format.max_bytes(3) <= tail.max_payload_bytes
    check(tail(bytes(payload)), x, mask)
    decoded = tail.payload_format.decode(payload)
    assert [one.shape for one in (*decoded.symbols, *decoded.sides)] == [(3, 4), (3, 2, 2), (3, 4)]
    assert [one.dtype for one in head.symbols(x, mask)] == [np.uint8, np.uint8]
    assert np.array_equal(unpack(tail.answer(bytes(payload)))[1], decoded.sides[0])


def test_a_quality_sends_the_first_channels_of_every_code() -> None:
    head, tail = make()
    x, mask = inputs(3)
    decoded = tail.payload_format.decode(head(x, mask, quality=0))
    assert np.array_equal(decoded.symbols[0], x[:, :2])
    assert np.array_equal(decoded.symbols[1], x.reshape(-1, 2, 2)[:, :1])
    assert len(head(x, mask, quality=0, coding="raw")) < len(head(x, mask, coding="raw"))
    with pytest.raises(FeatureError, match="no quality 2"):
        head(x, mask, quality=2)


def test_a_list_runs_as_one_batch_whatever_the_qualities() -> None:
    head, tail = make()
    called = [(inputs(batch, batch), quality) for batch, quality in [(1, 1), (3, None), (2, 0), (4, 1)]]
    answers = tail([head(*given, quality=quality) for given, quality in called])
    assert tail.backend.runs == [[(10, 4), (10, 2, 2), (10, 4)]]  # type: ignore[attr-defined]
    for (given, quality), answer in zip(called, answers, strict=True):
        if quality != 0:
            check(answer, *given)


def test_side_tensors_without_a_batch_run_one_by_one() -> None:
    sides = (*MANIFEST.sides, TensorSpec((2,), "int64", batched=False))
    head, tail = make(replace(MANIFEST, sides=sides))
    called = [(*inputs(batch, batch), np.array([640, batch])) for batch in (1, 3)]
    answers = tail([head(*given) for given in called])
    assert tail.backend.runs == [[(n, 4), (n, 2, 2), (n, 4), (2,)] for n in (1, 3)]  # type: ignore[attr-defined]
    for (x, mask, _), answer in zip(called, answers, strict=True):
        check(answer, x, mask)


def test_head_and_tail_come_back_from_their_folders(tmp_path: Any) -> None:
    head, tail = make()
    head.save(tmp_path / "head")
    tail.save(tmp_path / "tail")
    for kind, part in (("head", head), ("tail", tail)):
        folder = read_folder(tmp_path / kind, kind)
        assert (folder.manifest, folder.tables) == (part.manifest, part.tables)


def test_every_bit_of_a_payload_counts_over_the_wire() -> None:
    head, tail = make()
    x, mask = inputs(2)
    with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        answer = remote(torch.from_numpy(x), torch.from_numpy(mask))
        check(answer, x, mask)
    data = bytes(head(x, mask))
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(PayloadError):
            tail.answer(bytes(damaged))


# -- outputs that are not known beforehand


@dataclass
class Detections:
    """What a detector finds in one sample."""

    boxes: Any
    labels: list[str]


class Detector(Backend):
    """Finds as many things as the mask has places, sample by sample."""

    def run_nested(self, parts: list[Array]) -> Any:
        found = [torch.from_numpy(np.flatnonzero(row == 0).astype(np.float32)) for row in parts[2]]
        return [Detections(places, [f"at {int(place)}" for place in places]) for places in found]


class Returning(Backend):
    """Returns one and the same."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def run_nested(self, parts: list[Array]) -> Any:
        return self.value


UNKNOWN = replace(MANIFEST, structure={}, outputs=(), factory="shop.models:detector", max_reply_bytes=4000)


def test_detections_of_any_number_come_back_as_the_model_returns_them() -> None:
    head, tail = make(UNKNOWN, Detector())
    with (
        tail.serve(
            "127.0.0.1:0",
        ) as server,
        head.connect(server.address) as remote,
    ):
        for seed in range(5):
            x, mask = inputs(seed + 1, seed)
            local = tail(head(x, mask))
            answer = remote(torch.from_numpy(x), torch.from_numpy(mask))
            arrays = remote(x, mask)
            for found in (local, answer, arrays):
                assert type(found) is list
                assert [type(one) for one in found] == [Detections] * (seed + 1)
                assert [one.boxes.tolist() for one in found] == [np.flatnonzero(row).tolist() for row in mask]
                assert [len(one.labels) for one in found] == mask.sum(1).tolist()
            assert isinstance(answer[0].boxes, torch.Tensor)
            assert isinstance(arrays[0].boxes, np.ndarray)
    several = [inputs(batch, batch) for batch in (1, 2)]
    assert [len(one) for one in tail([head(*given) for given in several])] == [1, 2]


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.zeros(1000), FeatureError, "at most 65536, 4000 and .* larger max_reply_bytes"),
        ({"a": {1, 2}}, compoff.ArtifactError, "the model returned a set; expected tensors"),
        ([torch.zeros(2, dtype=torch.bfloat16)], BackendError, "the model returned bfloat16"),
        ([torch.zeros(2).to_sparse()], BackendError, "sparse"),
    ],
)
def test_what_cannot_be_sent_says_why_on_both_sides(value: Any, error: type[Exception], words: str) -> None:
    head, tail = make(UNKNOWN, Returning(value))
    with pytest.raises(error, match=words):
        tail(head(*inputs(1)))
    with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        with pytest.raises(RemoteError, match=words):
            remote(*inputs(1))
        tail.backend.value = (torch.ones(3, requires_grad=True), None)  # type: ignore[attr-defined]
        assert remote(*inputs(1))[0].tolist() == [1.0, 1.0, 1.0]


def test_only_a_backend_that_can_is_taken() -> None:
    with pytest.raises(BackendError, match="known only once it has answered, which a Backend cannot do"):
        make(UNKNOWN, Backend())


def test_nothing_can_be_left_out_of_what_nobody_knows() -> None:
    head, tail = make(UNKNOWN, Detector())
    with tail.serve("127.0.0.1:0") as server:
        for reply in ("fp16", "argmax", compoff.TopK(2)):
            with pytest.raises(FeatureError, match="ask for reply='full'"):
                compoff.connect(head, server.address, reply=reply)


class Plain:
    """A servable that answers with given bytes."""

    max_payload_bytes = 1000

    def __init__(self, artifact_id: bytes, reply: bytes) -> None:
        self.artifact_id = artifact_id
        self._reply = reply

    def answer(self, payload: bytes) -> bytes:
        return self._reply


LONG = pack(nested_arrays({"leaf": 0}, [np.zeros(3000, np.uint8)], 4000))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "they end"),
        (pack([np.zeros(4, np.int64)]), "does not begin with its structure"),
        (LONG[:-1], "does not fit"),
        (LONG + b"\0", "follow the last array"),
        (pack([np.frombuffer(b'{"leaf":0}', np.uint8)]), "does not fit 0 tensors"),
        (pack([np.frombuffer(b'{"value":1}', np.uint8), np.zeros(2)]), "once, in order"),
    ],
)
def test_a_server_that_answers_otherwise_is_refused(reply: bytes, words: str) -> None:
    head, _ = make(UNKNOWN, Detector())
    with (
        compoff.serve(Plain(head.artifact_id, reply)) as server,
        head.connect(server.address) as remote,
        pytest.raises(RemoteProtocolError, match=words),
    ):
        remote(*inputs(1))


def test_a_longer_answer_than_both_sides_know_is_not_read() -> None:
    head, _ = make(UNKNOWN, Detector())
    reply = pack([np.zeros(5000, np.uint8)])
    with (
        compoff.serve(Plain(head.artifact_id, reply)) as server,
        head.connect(server.address) as remote,
        pytest.raises(RemoteProtocolError, match="4000"),
    ):
        remote(*inputs(1))
