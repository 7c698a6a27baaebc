"""The front of a tail in Ray Serve: what it makes of replicas that answer, fail, die or hang.

Ray itself is stood in for, since it takes long to install and to start; `benchmarks/ray_serve.py` runs the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import compoff
from compoff.errors import BackendError, PayloadError, RemoteError
from compoff.operations.ray_serve import RayTail, answers, deploy
from tests.small_networks import tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Pair = tuple[compoff.Head, compoff.Tail]


class ReplicaDiedError(Exception):
    """Stands for Ray's."""


class Response:
    """Stands for what Ray's handle gives."""

    def __init__(self, give: Callable[[], Any]) -> None:
        self._give = give

    def result(self, timeout_s: float) -> Any:
        assert timeout_s <= 5.0
        return self._give()


class Handle:
    """Stands for Ray's handle; each request is answered by the next of the replicas."""

    def __init__(self, *replicas: Callable[[bytes], Any]) -> None:
        self.replicas = list(replicas)
        self.asked: list[bytes] = []

    def remote(self, payload: bytes) -> Response:
        self.asked.append(payload)
        replica = self.replicas.pop(0) if len(self.replicas) > 1 else self.replicas[0]
        return Response(lambda: replica(payload))


@pytest.fixture(scope="module")
def pair() -> Pair:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model = compoff.wrap(net, "2", example_input=torch.zeros(2, 6), encoder=tiny_encoder, decoder=tiny_decoder)
    return compoff.export(model, "2", max_batch=4)


@pytest.fixture
def front(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RayTail, Handle]]:
    pair[1].save(tmp_path)

    def make(*replicas: Callable[[bytes], Any]) -> tuple[RayTail, Handle]:
        handle = Handle(*replicas)
        serve, exceptions = ModuleType("ray.serve"), ModuleType("ray.exceptions")
        serve.get_app_handle = lambda name: {"compoff": handle}[name]  # type: ignore[attr-defined]
        exceptions.RayActorError = ReplicaDiedError  # type: ignore[attr-defined]
        for name, module in {"ray": ModuleType("ray"), "ray.serve": serve, "ray.exceptions": exceptions}.items():
            monkeypatch.setitem(sys.modules, name, module)
        return RayTail(tmp_path, timeout=5.0), handle

    return make


def dead(_: bytes) -> Any:
    raise ReplicaDiedError("the actor died")


def hanging(_: bytes) -> Any:
    raise TimeoutError


def failing(_: bytes) -> Any:
    raise ValueError("out of memory\nsecret")


def test_our_wire_in_front_of_replicas(pair: Pair, front: Any) -> None:
    head, tail = pair
    ray_tail, _ = front(lambda payload: answers(tail, [payload])[0])
    with compoff.serve(ray_tail, workers=2) as server, head.connect(server.address) as remote:
        for batch in (1, 3):
            x = torch.randn(batch, 6)
            torch.testing.assert_close(remote(x), tail(head(x)), rtol=0, atol=1e-6)
    with compoff.serve(ray_tail) as server, head.connect(server.address, reply="argmax") as remote:
        x = torch.randn(3, 6)
        assert remote(x).tolist() == tail(head(x)).argmax(1).tolist()


def test_a_request_whose_replica_dies_is_answered_by_another(pair: Pair, front: Any) -> None:
    head, tail = pair
    payload = bytes(head(torch.randn(2, 6)))
    ray_tail, handle = front(dead, dead, lambda payload: answers(tail, [payload])[0])
    ((leaf,),) = ray_tail.run([ray_tail.decode(payload)])
    np.testing.assert_allclose(leaf, tail(payload).numpy(), atol=1e-6)
    assert handle.asked == [payload] * 3
    assert ray_tail.answer(payload) == tail.answer(payload)


@pytest.mark.parametrize(
    ("replica", "words"),
    [
        (hanging, "no replica answered within 5.0 s"),
        (failing, "a replica could not answer: ValueError: out of memory$"),
        (lambda _: "BackendError: no", "a replica could not answer: BackendError: no"),
    ],
)
def test_what_goes_wrong_is_said(pair: Pair, front: Any, replica: Any, words: str) -> None:
    head, _ = pair
    ray_tail, _ = front(replica)
    with pytest.raises(BackendError, match=words):
        ray_tail.run([ray_tail.decode(bytes(head(torch.randn(2, 6))))])
    with compoff.serve(ray_tail) as server, head.connect(server.address) as remote, pytest.raises(RemoteError):
        remote(torch.randn(1, 6))


def test_replicas_that_keep_dying_do_not_hold_a_request_for_ever(pair: Pair, front: Any, monkeypatch: Any) -> None:
    clock = iter([0.0, *(index * 0.9 for index in range(100))])
    monkeypatch.setattr("compoff.operations.ray_serve.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("compoff.operations.ray_serve.time.sleep", lambda _: None)
    ray_tail, handle = front(dead)
    with pytest.raises(BackendError, match="no replica lived"):
        ray_tail.run([ray_tail.decode(bytes(pair[0](torch.randn(2, 6))))])
    assert 3 < len(handle.asked) < 12


def test_damaged_payloads_never_reach_a_replica(pair: Pair, front: Any) -> None:
    ray_tail, handle = front(dead)
    data = bytes(pair[0](torch.randn(2, 6)))
    for damaged in (b"", data[:-1], data + b"0", bytes([data[0] ^ 1]) + data[1:]):
        with pytest.raises(PayloadError):
            ray_tail.answer(damaged)
    assert handle.asked == []


def test_an_application_that_is_not_there(pair: Pair, front: Any, tmp_path: Path) -> None:
    front(dead)
    with pytest.raises(BackendError, match=r"runs no application 'other'.*deploy it first"):
        RayTail(tmp_path, name="other")


def test_payloads_go_through_the_tail_in_as_few_runs_as_fit(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    head, tail = pair
    payloads = [bytes(head(torch.randn(batch, 6))) for batch in (1, 2, 1, 4, 3)]
    runs: list[list[int]] = []
    run = compoff.Tail.run
    monkeypatch.setattr(compoff.Tail, "run", lambda self, group: runs.append([*map(len, group)]) or run(self, group))
    found = answers(tail, payloads)
    assert runs == [[1, 2, 1], [4], [3]]
    for payload, answer in zip(payloads, found, strict=True):
        np.testing.assert_allclose(answer[0], tail(payload).numpy(), atol=1e-6)  # type: ignore[arg-type]


def test_one_that_breaks_the_tail_does_not_cost_the_others_their_answers(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, tail = pair
    payloads = [bytes(head(torch.randn(batch, 6))) for batch in (1, 2)]
    run = compoff.Tail.run

    def breaking(self: compoff.Tail, group: Any) -> Any:
        if any(len(one) == 2 for one in group):
            raise RuntimeError("too much")
        return run(self, group)

    monkeypatch.setattr(compoff.Tail, "run", breaking)
    right, wrong = answers(tail, payloads)
    assert not isinstance(right, str)
    assert wrong == "RuntimeError: too much"


def test_a_payload_that_cannot_be_decoded_costs_the_others_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    head, tail = pair
    first, second = (bytes(head(torch.randn(1, 6))) for _ in range(2))
    runs: list[int] = []
    run = compoff.Tail.run
    monkeypatch.setattr(compoff.Tail, "run", lambda self, group: runs.append(len(group)) or run(self, group))
    found = answers(tail, [first, b"junk", second])
    assert runs == [2]
    for payload, answer in ((first, found[0]), (second, found[2])):
        np.testing.assert_allclose(answer[0], tail(payload).numpy(), atol=1e-6)  # type: ignore[arg-type]
    assert str(found[1]).startswith("PayloadError: ")
    assert [type(one) for one in answers(tail, [b"junk"])] == [str]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_the_error_says_what_to_install(pair: Pair, tmp_path: Path) -> None:
    pair[1].save(tmp_path)
    for make in (RayTail, deploy):
        with pytest.raises(BackendError, match=r'pip install "compoff\[ray\]"'):
            make(tmp_path)
