"""The remote: right answers over a real socket, one call's answer never another's, every failure an error in time."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pytest
import torch

import compoff
from compoff.wire.tensors import pack
from tests.edge.peers import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Parts: TypeAlias = tuple[list[compoff.Head], list[compoff.Tail]]


class Net(torch.nn.Module):
    """Two convolutions and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.block = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.block(torch.relu(self.stem(x))))
        return {"scores": self.classifier(y.mean((2, 3))), "map": y}


@pytest.fixture(scope="module")
def wrapped() -> compoff.Wrapped:
    torch.manual_seed(1)
    model = compoff.wrap(Net().eval(), ["input", "block"], example_input=torch.zeros(2, 3, 12, 12), codec="deepcod")
    compoff.fit(model, [torch.randn(8, 3, 12, 12)], steps=3)
    return model.eval()


@pytest.fixture(scope="module")
def parts(wrapped: compoff.Wrapped) -> Parts:
    pairs = [compoff.export(wrapped, split) for split in wrapped.split_points]
    return [head for head, _ in pairs], [tail for _, tail in pairs]


@pytest.fixture(scope="module")
def server(parts: Parts) -> Iterator[compoff.Server]:
    with compoff.serve(parts[1], "127.0.0.1:0", workers=2) as running:
        yield running


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("split", ["input", "block"])
def test_remote_returns_what_the_student_returns(
    wrapped: compoff.Wrapped, parts: Parts, server: compoff.Server, split: str, batch: int
) -> None:
    x = torch.randn(batch, 3, 12, 12)
    with torch.no_grad(), wrapped.at(split):
        expected = wrapped(x)
    with compoff.connect(parts[0], server.address) as remote:
        answer = remote(x, split=split)
        report = remote.last
    assert answer.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(answer[name], tensor, atol=1e-5, rtol=0)
    assert report is not None
    assert report.split == split
    assert report.payload_bytes == len(bytes(parts[0][wrapped.split_points.index(split)](x)))
    assert 0 < report.head_seconds + report.remote_seconds <= report.total_seconds


def test_numpy_in_numpy_out_and_the_answer_can_be_written_to(parts: Parts, server: compoff.Server) -> None:
    with compoff.connect(parts[0][0], server.address) as remote:
        answer = remote(np.zeros((2, 3, 12, 12), np.float32))
        tensors = remote(torch.zeros(2, 3, 12, 12))
    answer["scores"][0, 0] = 7
    tensors["scores"][0, 0] = 7
    assert isinstance(answer["scores"], np.ndarray)
    assert isinstance(tensors["scores"], torch.Tensor)


class Scores(NamedTuple):
    """What a network may return."""

    scores: torch.Tensor
    norms: torch.Tensor


class Named(Net):
    """Takes a keyword and returns a named tuple."""

    def forward(self, x: torch.Tensor, *, weights: dict[str, torch.Tensor], double: bool = False) -> Scores:
        found = super().forward(x * weights["gain"])
        return Scores(found["scores"], found["map"].norm(dim=1) * (2 if double else 1))


def test_keywords_go_in_and_the_models_own_class_comes_out() -> None:
    model = compoff.wrap(Named().eval(), "block", codec="deepcod").eval()
    x, weights = torch.randn(3, 3, 12, 12), {"gain": torch.rand(3, 1, 1, 1)}
    model(x, weights=weights)
    head, tail = compoff.export(model, "block")
    with torch.no_grad(), model.at("block"):
        expected = model(x, weights=weights)

    async def ask(address: str) -> Scores:
        async with await compoff.connect_async(head, address) as remote:
            return await remote(x, weights=weights)

    with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        answers = [
            remote(x, weights=weights),
            remote(x=x, weights=weights, double=False),
            asyncio.run(ask(server.address)),
        ]
        arrays = remote(x.numpy(), double=False, weights={"gain": weights["gain"].numpy()})
        with pytest.raises(compoff.FeatureError, match="'double' is True and became the constant False"):
            remote(x, weights=weights, double=True)
    for answer in answers:
        assert type(answer) is Scores
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)
    assert type(arrays) is Scores
    assert isinstance(arrays.norms, np.ndarray)
    np.testing.assert_allclose(arrays.norms, expected.norms, atol=1e-5)


def test_threads_get_their_own_answers(wrapped: compoff.Wrapped, parts: Parts, server: compoff.Server) -> None:
    inputs = [torch.randn(1, 3, 12, 12) for _ in range(48)]
    with torch.no_grad(), wrapped.at("block"):
        expected = [wrapped(x)["scores"] for x in inputs]
    with compoff.connect(parts[0], server.address) as remote, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: remote(x, split="block")["scores"], inputs))
    for answer, right in zip(answers, expected, strict=True):
        torch.testing.assert_close(answer, right, atol=1e-5, rtol=0)


def test_async_remote_has_many_in_flight(wrapped: compoff.Wrapped, parts: Parts, server: compoff.Server) -> None:
    inputs = [torch.randn(1, 3, 12, 12) for _ in range(12)]
    with torch.no_grad(), wrapped.at("input"):
        expected = [wrapped(x)["scores"] for x in inputs]

    async def main() -> list[torch.Tensor]:
        async with await compoff.connect_async(parts[0], server.address) as remote:
            answers = await asyncio.gather(*(remote(x) for x in inputs))
            return [answer["scores"] for answer in answers]

    for answer, right in zip(asyncio.run(main()), expected, strict=True):
        torch.testing.assert_close(answer, right, atol=1e-5, rtol=0)


def test_an_async_remote_says_that_it_belongs_to_another_loop(parts: Parts, server: compoff.Server) -> None:
    loop = asyncio.new_event_loop()
    remote = loop.run_until_complete(compoff.connect_async(parts[0], server.address))

    async def elsewhere() -> None:
        await remote(torch.zeros(1, 3, 12, 12))

    for work in (elsewhere, remote.close):
        with pytest.raises(compoff.LocalProtocolError, match="belongs to another event loop"):
            asyncio.run(asyncio.wait_for(work(), 5))
    loop.run_until_complete(remote(torch.zeros(1, 3, 12, 12)))
    loop.run_until_complete(remote.close())
    loop.close()


def test_wrong_inputs_never_reach_the_wire(parts: Parts, server: compoff.Server) -> None:
    with compoff.connect(parts[0], server.address) as remote:
        for wrong in (torch.zeros(1, 3, 12, 13), torch.zeros(1, 3, 12, 12).double(), torch.zeros(0, 3, 12, 12), "x"):
            with pytest.raises(compoff.FeatureError):
                remote(wrong)
        with pytest.raises(compoff.SplitError, match="no head is connected for 'layer9'"):
            remote(torch.zeros(1, 3, 12, 12), split="layer9")
        assert remote.last is None
        assert remote(torch.zeros(1, 3, 12, 12))["scores"].shape == (1, 5)


def test_heads_must_be_there_and_of_different_split_points(parts: Parts, server: compoff.Server) -> None:
    for heads in ([], [parts[0][0], parts[0][0]]):
        with pytest.raises(compoff.SplitError, match="each split point once"):
            compoff.connect(heads, server.address)


def test_a_head_of_another_export_is_refused(wrapped: compoff.Wrapped, server: compoff.Server) -> None:
    other = compoff.wrap(Net().eval(), "input", example_input=torch.zeros(2, 3, 12, 12), codec="deepcod")
    head, _ = compoff.export(other, "input")
    with pytest.raises(compoff.ArtifactMismatch):
        compoff.connect(head, server.address)


def test_a_server_of_some_of_the_tails_is_refused_at_first(parts: Parts) -> None:
    missing = parts[0][1].manifest.artifact_id[:8]
    with compoff.serve(parts[1][0]) as server:
        with pytest.raises(compoff.ArtifactMismatch, match=f"holds no tail for the head {missing}; serve"):
            compoff.connect(parts[0], server.address)
        with pytest.raises(compoff.ArtifactMismatch, match=f"holds no tail for the head {missing}; serve"):
            asyncio.run(compoff.connect_async(parts[0], server.address))


def test_a_tail_that_goes_takes_only_the_calls_of_its_own_head_with_it(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(1, 3, 12, 12)
    with compoff.serve(parts[1]) as server, compoff.connect(parts[0], server.address) as remote:
        expected = remote(x, split="input")["scores"], remote(x, split="block")["scores"]
        server.swap(parts[1][0])
        for _ in range(3):
            torch.testing.assert_close(remote(x, split="input")["scores"], expected[0])
            with pytest.raises(compoff.ArtifactMismatch, match="holds no tail for the head"):
                remote(x, split="block")
        assert "calls of the other heads go on" in caplog.text
        server.swap(parts[1])
        torch.testing.assert_close(remote(x, split="block")["scores"], expected[1])
        torch.testing.assert_close(remote(x, split="input")["scores"], expected[0])


def test_an_async_remote_goes_on_with_the_tails_that_are_left(parts: Parts) -> None:
    async def main(server: compoff.Server) -> None:
        x = torch.randn(1, 3, 12, 12)
        async with await compoff.connect_async(parts[0], server.address) as remote:
            expected = (await remote(x, split="block"))["scores"]
            server.swap(parts[1][1])
            torch.testing.assert_close((await remote(x, split="block"))["scores"], expected)
            with pytest.raises(compoff.ArtifactMismatch, match="holds no tail for the head"):
                await remote(x, split="input")
            server.swap(parts[1])
            assert (await remote(x, split="input"))["scores"].shape == (1, 5)

    with compoff.serve(parts[1]) as server:
        asyncio.run(main(server))


def test_a_device_with_its_own_model_goes_on_where_a_tail_is_gone(wrapped: compoff.Wrapped, parts: Parts) -> None:
    x = torch.randn(1, 3, 12, 12)
    with (
        compoff.serve(parts[1]) as server,
        compoff.connect(parts[0], server.address, on_failure="local", local=wrapped.base) as remote,
    ):

        def source(split: str) -> tuple[str, str]:
            assert remote(x, split=split)["scores"].shape == (1, 5)
            assert remote.last is not None
            return remote.last.source, remote.last.reason or ""

        server.swap(parts[1][0])
        eventually(lambda: source("input") == ("edge", ""))  # once it has connected again
        told = source("block")
        assert told[0] == "local"
        assert "holds no tail" in told[1]
        assert source("input") == ("edge", "")


def test_no_server(parts: Parts) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises((compoff.ConnectionLost, compoff.ConnectTimeout), match=address):
        compoff.connect(parts[0], address, timeout=2)
    assert time.monotonic() - began < 20


def test_a_server_that_says_nothing(parts: Parts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(compoff.ConnectTimeout):
            compoff.connect(parts[0], f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        assert time.monotonic() - began < 8


class _Stand:
    """A tail that does as it is told, when the gate is open, if there is one."""

    def __init__(self, tail: compoff.Tail, reply: bytes | None = None, gate: threading.Event | None = None) -> None:
        self.artifact_id = tail.artifact_id
        self.max_payload_bytes = tail.max_payload_bytes
        self.reply = reply
        self.gate = gate

    def answer(self, payload: bytes) -> bytes:
        reply = self.reply
        if self.gate is not None:
            self.gate.wait(30)
        if reply is None:
            raise ValueError("no luck today")
        return reply


def test_a_tail_that_raises_is_a_remote_error(parts: Parts) -> None:
    heads, tails = parts
    with (
        compoff.serve(_Stand(tails[0])) as broken,
        compoff.connect(heads[0], broken.address) as remote,
        pytest.raises(compoff.RemoteError, match="no luck today"),
    ):
        remote(torch.zeros(1, 3, 12, 12))


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage",
        pack([np.zeros((1, 5), np.float32)]),
        pack([np.zeros((2, 5), np.float32), np.zeros((2, 8, 12, 12), np.float32)]),
        pack([np.zeros((1, 5), np.float64), np.zeros((1, 8, 12, 12), np.float32)]),
    ],
    ids=["empty", "garbage", "too few", "another batch", "another dtype"],
)
def test_a_reply_of_another_form_is_refused(parts: Parts, reply: bytes) -> None:
    heads, tails = parts
    with (
        compoff.serve(_Stand(tails[0], reply)) as odd,
        compoff.connect(heads[0], odd.address) as remote,
        pytest.raises(compoff.RemoteProtocolError, match=r"reply|answered"),
    ):
        remote(torch.zeros(1, 3, 12, 12))


def test_a_late_answer_is_a_timeout_and_is_never_taken_for_the_next(parts: Parts) -> None:
    heads, tails = parts
    gate = threading.Event()
    slow = _Stand(tails[0], b"late", gate)
    with compoff.serve(slow) as server, compoff.connect(heads[0], server.address) as remote:
        began = time.monotonic()

        def late() -> bool:
            with pytest.raises(compoff.ReadTimeout):
                remote(torch.zeros(1, 3, 12, 12), timeout=0.1)
            return server.stats().tails[0].running == 1  # it was asked, unless this machine was busy

        eventually(late)
        assert time.monotonic() - began < 20
        slow.reply = pack([np.ones((1, 5), np.float32), np.zeros((1, 8, 12, 12), np.float32)])
        gate.set()
        eventually(lambda: server.stats().pending == 0)
        assert float(remote(torch.zeros(1, 3, 12, 12))["scores"].sum()) == 5.0


def test_a_closed_remote_says_so(parts: Parts, server: compoff.Server) -> None:
    remote = compoff.connect(parts[0], server.address)
    remote.close()
    with pytest.raises(compoff.LocalProtocolError, match="closed"):
        remote(torch.zeros(1, 3, 12, 12))


_EDGE = """
import sys, torch, compoff
tail = compoff.Tail.load(sys.argv[1])
with tail.serve(sys.argv[2]) as server:
    print(server.address, flush=True)
    server.wait()
"""


def _edge(folder: Path, address: str = "127.0.0.1:0") -> tuple[subprocess.Popen[str], str]:
    """A real edge process; returns it and its address."""
    command = [sys.executable, "-c", _EDGE, str(folder), address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _call_until_it_fails(remote: compoff.Remote, x: torch.Tensor) -> None:
    for _ in range(100_000):
        remote(x)


def test_a_killed_edge_process_ends_the_call_and_the_next_call_finds_its_successor(
    wrapped: compoff.Wrapped, parts: Parts, tmp_path: Path
) -> None:
    heads, tails = parts
    tails[1].save(tmp_path / "tail")
    first, address = _edge(tmp_path / "tail")
    x = torch.randn(1, 3, 12, 12)
    with torch.no_grad(), wrapped.at("block"):
        expected = wrapped(x)["scores"]
    successor = None
    try:
        with compoff.connect(heads[1], address, timeout=30) as remote:
            torch.testing.assert_close(remote(x)["scores"], expected, atol=1e-5, rtol=0)
            threading.Timer(0.3, first.kill).start()
            with pytest.raises(compoff.WireError):
                _call_until_it_fails(remote, x)
            with pytest.raises(compoff.WireError):
                remote(x, timeout=1)
            first.wait()
            successor, _ = _edge(tmp_path / "tail", address)
            torch.testing.assert_close(remote(x)["scores"], expected, atol=1e-5, rtol=0)
    finally:
        for process in (first, successor):
            if process is not None:
                process.kill()
                process.wait()
                process.stdout.close()


class Classifier(torch.nn.Module):
    """Logits and a whole number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.classifier = torch.nn.Linear(4, 30)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.classifier(torch.relu(self.stem(x)).mean((2, 3)))
        return logits, logits.argsort(1)


def test_a_reply_in_the_form_that_was_asked_for() -> None:
    torch.manual_seed(0)
    model = compoff.wrap(Classifier().eval(), "input", example_input=torch.zeros(2, 3, 12, 12), codec="deepcod")
    head, tail = compoff.export(model, "input")
    x = torch.randn(3, 3, 12, 12)
    logits, order = tail(head(x))
    with compoff.serve(tail) as server:

        def ask(reply: object) -> tuple[object, torch.Tensor, int]:
            with head.connect(server.address, reply=reply) as remote:  # type: ignore[arg-type]
                found, whole = remote(x)
                assert remote.last is not None
                assert torch.equal(whole, order), "whole numbers come as they are"
                return found, whole, remote.last.reply_bytes

        full, _, full_bytes = ask("full")
        assert torch.equal(full, logits)
        half, _, half_bytes = ask("fp16")
        assert isinstance(half, torch.Tensor)
        assert half.dtype is torch.float32
        torch.testing.assert_close(half, logits, rtol=1e-3, atol=1e-3)
        best, _, best_bytes = ask("argmax")
        assert torch.equal(best, logits.argmax(1))
        top, _, top_bytes = ask(compoff.TopK(5))
        assert isinstance(top, compoff.TopValues)
        assert torch.equal(top.values, logits.topk(5).values)
        assert torch.equal(top.indices, logits.topk(5).indices)
        assert full_bytes > half_bytes > top_bytes > best_bytes > order.numpy().nbytes

        async def main() -> torch.Tensor:
            async with await compoff.connect_async(head, server.address, reply=compoff.ArgMax(-1)) as remote:
                return (await remote(x.numpy()))[0]

        found = asyncio.run(main())
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, logits.argmax(1).numpy())
    with pytest.raises(compoff.FeatureError, match="31 values were asked for along a dimension of 30"):
        head.connect("127.0.0.1:1", reply=compoff.TopK(31))
    with pytest.raises(compoff.LocalProtocolError, match="expected 'full'"):
        head.connect("127.0.0.1:1", reply="fp8")


def test_an_interrupt_while_connecting_leaves_no_thread_that_connects(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compoff.device.link.Link.connection", interrupted)
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as free, pytest.raises(KeyboardInterrupt):
        compoff.connect(parts[0], f"127.0.0.1:{free.getsockname()[1]}")
    eventually(lambda: not {one.name for one in set(threading.enumerate()) - before} & {"compoff-link"})
