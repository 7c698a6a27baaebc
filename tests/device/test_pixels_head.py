"""A head that takes pixels sends what it would send of the same picture, normalized by hand: in every runtime."""

from __future__ import annotations

import functools
from collections import UserDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.device.local import whole_model
from compoff.errors import FeatureError
from compoff.operations.inspecting import describe
from compoff.pixels import Pixels

if TYPE_CHECKING:
    from pathlib import Path

    from compoff.pixels import PixelLayout

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Net(nn.Module):
    """Two convolutions, the first with edges; a picture and a number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        y = self.body(self.stem(x).relu()).relu()
        return self.last(y.mean((2, 3))) * gain[:, None]


def pictures(layout: PixelLayout, batch: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pixels, and what they are for the model, by hand."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (batch, 1, 16, 3)) + np.cumsum(rng.integers(-9, 10, (batch, 32, 16, 3)), 1)
    pixels = np.clip(rows, 0, 255).astype(np.uint8)[:, :16]
    mean, std = (np.array(numbers, np.float32) for numbers in (MEAN, STD))
    normalized = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    given = pixels if layout == "hwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return given, np.ascontiguousarray(normalized)


@functools.cache
def exported(split: str, layout: PixelLayout) -> tuple[compoff.Head, compoff.Tail, Net, np.ndarray[Any, Any]]:
    """A head that takes pixels with its tail, the model, and the symbols of the picture normalized by hand."""
    torch.manual_seed(0)
    net, x, gain = Net().eval(), torch.from_numpy(pictures(layout)[1]), torch.ones(3)
    with torch.no_grad():
        net.stem.weight.mul_(8)  # else the paper's codec, not fitted, has one symbol for all
    codec = "transform" if split == "input" else "deepcod"
    wrapped = compoff.wrap(net, split, example_input=(x[:2], gain[:2]), codec=codec)
    if codec == "transform":
        compoff.calibrate(wrapped, [((x, gain),)], target_bytes=200)
    head, tail = compoff.export(wrapped, split, pixels=Pixels(MEAN, STD, layout))
    bottleneck = wrapped.bottleneck(split)
    wrapped.unwrap()
    with torch.inference_mode():
        symbols = bottleneck.encode(x if split == "input" else net.stem(x).relu())
    return head, tail, net, symbols.numpy()


GAIN = np.ones(3, np.float32)
EVERYWHERE = pytest.mark.parametrize(("split", "layout"), [("input", "hwc"), ("body", "chw")])


@EVERYWHERE
def test_the_symbols_are_those_of_the_picture_normalized_by_hand(split: str, layout: PixelLayout) -> None:
    head, _, _, expected = exported(split, layout)
    found = head.symbols(pictures(layout)[0], GAIN)[0]
    assert len(np.unique(expected)) > 3, "all alike: the test shows nothing"
    assert (found == expected).mean() > 0.995
    assert np.abs(found.astype(int) - expected).max() <= 1


@EVERYWHERE
def test_onnxruntime_gives_the_same_and_int8_nearly(split: str, layout: PixelLayout, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    head, _, _, expected = exported(split, layout)
    pixels, x = pictures(layout)
    batches = [((torch.from_numpy(x), torch.from_numpy(GAIN)),)]  # as `fit` takes them: normalized
    quick = head.compile("onnx", batches=batches)
    small = head.compile("onnx", precision="int8", batches=batches, least_agreement=0.3)
    for one, most in ((quick, 0), (small, 3)):
        found = one.symbols(pixels, GAIN)[0].astype(int)
        assert (np.abs(found - expected) > most).mean() < 0.05
        kinds = [node.op_type for node in onnx.load_from_string(one.runner.files["head.onnx"]).graph.node]
        assert "Mul" not in kinds, "the scale is not in the layer"
        assert kinds[:2] != ["Transpose", "QuantizeLinear"], "pixels are rounded before they are shifted"
        assert ("Cast" in kinds) == (one is quick or split == "body"), "whether pixels become numbers first"
        for quality in range(one.payload_format.num_qualities):
            sent = one.payload_format.decode(one(pixels, GAIN, quality=quality)).symbols[0]
            kept = one.payload_format.codes[0].sent(found.astype(np.uint8), quality)
            np.testing.assert_array_equal(sent, kept)
    small.save(tmp_path)
    again = compoff.Head.load(tmp_path, runtime="onnx")
    assert again(pixels, GAIN) == small(pixels, GAIN)
    assert again.manifest.pixels == Pixels(MEAN, STD, layout)


def test_executorch_gives_the_same() -> None:
    pytest.importorskip("executorch", reason="needs the extra executorch")
    head, _, _, expected = exported("body", "hwc")
    quick = head.compile("executorch")
    assert (quick.symbols(pictures("hwc")[0], GAIN)[0] == expected).mean() > 0.995


def test_over_a_connection_and_by_the_whole_model_where_there_is_none() -> None:
    head, tail, net, _ = exported("input", "hwc")
    pixels, x = pictures("hwc")
    expected = net(torch.from_numpy(x), torch.from_numpy(GAIN)).detach().numpy()
    server = compoff.serve(tail)
    with compoff.connect(head, server.address, on_failure="local", local=net, timeout=60) as remote:
        answer = remote(torch.from_numpy(pixels), torch.from_numpy(GAIN))
        assert (remote.last.source, answer.shape) == ("edge", (3, 5))
        server.close()
        local = remote(torch.from_numpy(pixels), gain=torch.from_numpy(GAIN))
        assert remote.last.source == "local"
        np.testing.assert_allclose(local, expected, atol=1e-5)


def test_the_whole_model_gets_numpy_for_numpy() -> None:
    head = exported("input", "hwc")[0]
    pixels, x = pictures("hwc")
    taken = whole_model(lambda *inputs, **named: (inputs, named), head)
    (picture, gain), named = taken(pixels, GAIN)
    np.testing.assert_allclose(picture, x, atol=1e-5)
    assert (picture.dtype, gain is GAIN, named) == (np.float32, True, {})
    inputs, named = taken(x=pixels, gain=GAIN)
    assert inputs == ()
    np.testing.assert_allclose(named["x"], x, atol=1e-5)


class Parcel(nn.Module):
    """Takes what a processor gives: a mapping of its own class."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        return self.net(given["x"], given["gain"])


def test_a_picture_in_a_mapping_that_is_no_dict_is_normalized_for_the_whole_model() -> None:
    pixels, x = pictures("hwc")
    given = {"x": torch.from_numpy(x), "gain": torch.from_numpy(GAIN)}
    wrapped = compoff.wrap(Parcel().eval(), "input", example_input=(given,))
    head, _ = compoff.export(wrapped, "input", pixels=Pixels(MEAN, STD))
    batch = UserDict(x=pixels, gain=GAIN)
    for called in (lambda whole: whole(batch), lambda whole: whole(given=batch), lambda whole: whole(pixels, GAIN)):
        inputs, named = called(whole_model(lambda *inputs, **named: (inputs, named), head))
        taken = [*inputs, *named.values()]
        picture, gain = taken if len(taken) == 2 else (taken[0]["x"], taken[0]["gain"])
        np.testing.assert_allclose(picture, x, atol=1e-5)
        assert gain is GAIN
        assert len(taken) == 2 or type(taken[0]) is UserDict
    assert batch["x"] is pixels


def test_each_call_is_normalized_as_its_own_head_says() -> None:
    pixels, x = pictures("hwc")
    net = Net().eval()
    wrapped = compoff.wrap(net, ["input", "body"], example_input=(torch.from_numpy(x), torch.from_numpy(GAIN)))
    heads, tails = zip(
        compoff.export(wrapped, "input", pixels=Pixels(MEAN, STD)), compoff.export(wrapped, "body"), strict=True
    )
    expected = net(torch.from_numpy(x), torch.from_numpy(GAIN)).detach().numpy()
    for first in (0, 1):
        server = compoff.serve(tails)
        ordered = [heads[first], heads[1 - first]]
        with compoff.connect(
            ordered, server.address, on_failure="local", local=net, timeout=60, heartbeat=30
        ) as remote:
            server.close()
            np.testing.assert_allclose(remote(pixels, GAIN, split="input"), expected, atol=1e-5)
            np.testing.assert_allclose(remote(x, GAIN, split="body"), expected, atol=1e-5)
            assert remote.stats.local == 2


def test_inspect_says_what_is_taken(tmp_path: Path) -> None:
    head = exported("input", "hwc")[0]
    head.save(tmp_path)
    (part,) = describe(tmp_path)
    assert part["pixels"]["mean"] == MEAN
    assert part["taken"][0] == {"shape": (16, 16, 3), "dtype": "uint8", "batched": True}
    assert part["inputs"][0]["dtype"] == "float32"


def test_a_normalized_picture_is_refused() -> None:
    head = exported("input", "hwc")[0]
    with pytest.raises(FeatureError, match=r"input 0 is float32; expected uint8 of shape \('batch', 16, 16, 3\)"):
        head(pictures("hwc")[1], GAIN)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mean": (0.5,), "std": (0.5,)}, "no picture of 1 channels"),
        ({"input": 1}, "no picture of 3 channels"),
        ({"input": 2}, "takes 2 tensors"),
    ],
)
def test_pixels_that_are_not_the_models_are_refused(wrong: dict[str, Any], told: str) -> None:
    wrapped = compoff.wrap(Net(), "input", example_input=(torch.zeros(2, 3, 16, 16), torch.ones(2)))
    with pytest.raises(FeatureError, match=told):
        compoff.export(wrapped, "input", pixels=Pixels(**{"mean": MEAN, "std": STD, **wrong}))


def test_a_model_in_half_precision_gets_pixels_that_were_normalized_in_single() -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    pixels, x = pictures("hwc")
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval().half()
    halves = torch.from_numpy(x).half()
    wrapped = compoff.wrap(net, "input", example_input=halves[:2])
    compoff.calibrate(wrapped, [halves], target_bytes=200)
    expected = compoff.export(wrapped, "input")[0].symbols(halves)[0]
    assert len(np.unique(expected)) > 3, "all alike: the test shows nothing"
    head = compoff.export(wrapped, "input", pixels=Pixels(MEAN, STD))[0]
    for one in (head, head.compile("onnx", batches=[halves])):
        assert (one.symbols(pixels)[0] == expected).mean() > 0.995
