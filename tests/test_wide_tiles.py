"""Wide tiles of many channels all the way: fitted, saved, exported, compiled, sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import compoff
from compoff.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compoff.wrapping import Wrapped

SHAPES = {"map": (3, 6, 6), "sequence": (3, 34)}


def net(kind: str) -> nn.Module:
    """A network whose feature at '2' has wide tiles."""
    torch.manual_seed(0)
    if kind == "map":
        body = nn.Conv2d(3, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 4, 3, padding=1)
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    line = nn.Conv1d(3, 70, 3, padding=1), nn.ReLU(), nn.Conv1d(70, 4, 3, padding=1)
    return nn.Sequential(*line, nn.Flatten(), nn.Linear(4 * 34, 5)).eval()


def inputs(kind: str, count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, *SHAPES[kind], generator=torch.Generator().manual_seed(seed))


def fitted(kind: str) -> Wrapped:
    model = compoff.wrap(net(kind), "2", example_input=inputs(kind, 2), channels=48, stride=3 if kind == "map" else 8)
    compoff.fit(model, [inputs(kind, 32)], steps=3, target_bytes=150)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def few_numbers() -> Iterator[None]:
    """Tiles that are wide early, described by few numbers: the eigenvectors and products of many waves take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compoff.codec.waves._WHOLE", 512)
        patch.setattr("compoff.codec.waves._DESCRIBED", 64)
        yield


@pytest.fixture(scope="module", params=["map", "sequence"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str) -> Wrapped:
    return fitted(kind)


@pytest.fixture(scope="module")
def pair(model: Wrapped) -> tuple[compoff.Head, compoff.Tail]:
    assert model.bottleneck("2").encoder.mix is not None  # type: ignore[union-attr]
    return compoff.export(model, "2")


def test_head_and_tail_answer_as_the_model_does(
    kind: str, model: Wrapped, pair: tuple[compoff.Head, compoff.Tail], tmp_path: Path
) -> None:
    head, tail = pair
    head.save(tmp_path / "head")
    tail.save(tmp_path / "tail")
    for count in (1, 5):
        x = inputs(kind, count, seed=2)
        with torch.no_grad(), model.at("2", quality=10):
            expected = model(x)
        payload = head(x, quality=10)
        torch.testing.assert_close(tail(payload), expected, atol=1e-5, rtol=1e-5)
        read, answered = compoff.Head.load(tmp_path / "head"), compoff.Tail.load(tmp_path / "tail")
        assert bytes(read(x, quality=10)) == bytes(payload)
        assert torch.equal(answered(payload), tail(payload))


def test_other_runtimes_do_the_same(kind: str, pair: tuple[compoff.Head, compoff.Tail]) -> None:
    head, tail = pair
    x = inputs(kind, 8, seed=3)
    onnx = head.compile("onnx", batches=[x])
    for quality in (0, 5, 10):
        ours, theirs = (tail.payload_format.decode(one(x, quality=quality)).symbols[0] for one in (head, onnx))
        assert float(np.mean(ours == theirs)) > 0.999
    integers = head.compile("onnx", precision="int8", batches=[inputs(kind, 32)], least_agreement=0.6)
    assert len(bytes(integers(x))) > 0
    payload = head(x)
    backends: list[Any] = ["onnx", "inductor"] if kind == "map" else ["onnx"]
    for backend in backends:
        torch.testing.assert_close(tail.compile(backend)(payload), tail(payload), atol=1e-4, rtol=1e-4)


def test_what_is_saved_is_loaded(kind: str, model: Wrapped, tmp_path: Path) -> None:
    model.save(tmp_path / "codec.safetensors")
    again, x = compoff.load(tmp_path / "codec.safetensors", net(kind)).eval(), inputs(kind, 4, seed=4)
    with torch.no_grad(), model.at("2"), again.at("2"):
        assert torch.equal(again(x), model(x))


def test_what_was_saved_with_another_first_factor_is_refused(kind: str, model: Wrapped, tmp_path: Path) -> None:
    encoder = model.bottleneck("2").encoder
    path = tmp_path / "codec.safetensors"
    core = encoder.mix.core  # type: ignore[union-attr]
    try:
        encoder.mix.core = nn.Parameter(core[:, :, None, None].clone())  # type: ignore[union-attr]
        model.save(path)
    finally:
        encoder.mix.core = core  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match=r"encoder\.mix\.core"):
        compoff.load(path, net(kind))


def test_a_server_answers(kind: str, pair: tuple[compoff.Head, compoff.Tail]) -> None:
    head, tail = pair
    x = inputs(kind, 2, seed=5)
    with tail.serve("127.0.0.1:0") as server, head.connect(server.address) as remote:
        torch.testing.assert_close(remote(x), tail(head(x)), rtol=0, atol=1e-5)
