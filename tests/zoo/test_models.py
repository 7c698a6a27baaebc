"""The hand-written parts of the zoo against what is known of them: file formats, and real weights on real data."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.zoo.bcresnet import BcResNet, bcresnet2, log_mel
from benchmarks.zoo.darknet import Darknet, load_weights, parse_sections
from benchmarks.zoo.detection import best_boxes, yolo_fastest, yolo_fastest_sections

if TYPE_CHECKING:
    from pathlib import Path

TINY = """
[net]
width=32   # pixels
height=32
channels=3
[convolutional]
filters=4
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky
[convolutional]
filters=6
size=1
stride=1
activation=linear
[route]
layers=-2,-1
"""


def test_darknet_weights_are_read_in_their_order(tmp_path: Path) -> None:
    network = Darknet(parse_sections(TINY))
    numbers = np.arange(4 * 4 + 4 * 27 + 6 + 24, dtype="<f4")
    path = tmp_path / "tiny.weights"
    path.write_bytes(struct.pack("<3iq", 0, 2, 5, 64) + numbers.tobytes())
    load_weights(network, path)
    first, second = network.layers[0], network.layers[1]
    assert first[1].bias.tolist() == [0, 1, 2, 3]
    assert first[1].weight.tolist() == [4, 5, 6, 7]
    assert first[1].running_mean.tolist() == [8, 9, 10, 11]
    assert first[1].running_var.tolist() == [12, 13, 14, 15]
    assert first[0].weight.flatten().tolist() == list(range(16, 16 + 108))
    assert second[0].bias.tolist() == list(range(124, 130))
    assert second[0].weight.flatten().tolist() == list(range(130, 154))


@pytest.mark.parametrize(
    ("count", "reason"), [(10, "ends after 10 numbers"), (155, "holds 155 numbers, the network 154")]
)
def test_darknet_weights_of_another_network_are_refused(tmp_path: Path, count: int, reason: str) -> None:
    path = tmp_path / "tiny.weights"
    path.write_bytes(struct.pack("<3iq", 0, 2, 5, 64) + np.zeros(count, "<f4").tobytes())
    with pytest.raises(ValueError, match=reason):
        load_weights(Darknet(parse_sections(TINY)), path)


def test_what_is_no_darknet_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: 'nonsense' is no option"):
        parse_sections("[net]\nnonsense")
    with pytest.raises(ValueError, match="kind 'crop' is not known"):
        Darknet([("net", {"width": "8", "height": "8", "channels": "3"}), ("crop", {})])


def test_boxes_are_decoded_around_their_cell() -> None:
    network = yolo_fastest(reduced=True).eval()
    boxes = network(torch.zeros(1, 3, 64, 64))
    assert boxes.shape == (1, 3 * 2 * 2 + 3 * 4 * 4, 85)
    layer = network.layers[network.detections[0]]
    raw = torch.zeros(1, 3 * 85, 2, 2)  # every box in the middle of its cell, as large as its anchor
    found = layer(raw).view(3, 2, 2, 85)
    assert found[0, 0, 1, :5].tolist() == pytest.approx([0.75, 0.25, 115 / 64, 73 / 64, 0.5])


def test_greedy_suppression() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1.0, 1, 11, 11], [20.0, 20, 30, 30]])
    assert best_boxes(boxes, torch.tensor([0.5, 0.9, 0.1]), overlap=0.5, limit=10) == [1, 2]
    assert best_boxes(boxes, torch.tensor([0.5, 0.9, 0.1]), overlap=0.9, limit=2) == [1, 0]


def test_bcresnet_has_the_published_size() -> None:
    assert sum(parameter.numel() for parameter in BcResNet(2).parameters()) == 30_939


def test_a_tone_is_loudest_in_its_own_mel_band() -> None:
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16_000) / 16_000)[None]
    mel = log_mel(tone)
    assert mel.shape == (1, 1, 40, 32)
    # 41 steps on the HTK mel scale from 0 to 8 kHz: 1 kHz, 1000 mel, lies between centers 14 and 15.
    assert int(mel[0, 0, :, 16].argmax()) in (13, 14)


@pytest.mark.data
def test_yolo_fastest_is_the_configuration_that_comes_with_its_weights(data: Path) -> None:
    theirs = parse_sections((data / "weights" / "yolo-fastest-1.1.cfg").read_text())
    ours = yolo_fastest_sections()
    assert [kind for kind, _ in ours] == [kind for kind, _ in theirs]
    defaults = {"groups": "1", "batch_normalize": "0"}
    for (kind, options), (_, given) in zip(ours[1:], theirs[1:], strict=True):
        named = {**defaults, **given}
        compared = [name for name in options if name not in ("pad", "anchors", "probability")]
        assert {name: options[name] for name in compared} == {name: named[name] for name in compared}, kind


# The best box of 50 of the first 60 pictures is a labeled object of its class, at an overlap of one half.
@pytest.mark.data
def test_yolo_fastest_finds_objects_in_real_pictures(data: Path) -> None:
    network, right, seen = yolo_fastest().eval(), 0, 0
    for path in sorted((data / "coco_val128" / "images").glob("*.jpg"))[:20]:
        labels = data / "coco_val128" / "labels" / f"{path.stem}.txt"
        objects = np.loadtxt(labels, ndmin=2) if labels.is_file() and labels.stat().st_size else np.zeros((0, 5))
        picture = np.asarray(Image.open(path).convert("RGB").resize((320, 320)), np.float32) / 255
        with torch.inference_mode():
            boxes = network(torch.from_numpy(picture).permute(2, 0, 1)[None])[0]
        scores = boxes[:, 4:5] * boxes[:, 5:]
        best, kind = divmod(int(scores.argmax()), 80)
        right += any(overlap(boxes[best, :4].tolist(), one[1:]) > 0.5 for one in objects if int(one[0]) == kind)
        seen += 1
    assert seen == 20
    assert right >= 14


def overlap(left: list[float], right: np.ndarray) -> float:
    sides = [
        max(0.0, min(a + c / 2, b + d / 2) - max(a - c / 2, b - d / 2))
        for a, c, b, d in zip(left[:2], left[2:], right[:2], right[2:], strict=True)
    ]
    return sides[0] * sides[1] / (left[2] * left[3] + right[2] * right[3] - sides[0] * sides[1])


@pytest.mark.data
def test_bcresnet_weights_fit(data: Path) -> None:
    del data  # the network looks for them itself
    network = bcresnet2().eval()
    trained = network.get_buffer("t1.f1.1.running_var")
    assert not torch.equal(trained, torch.ones_like(trained))
    with torch.inference_mode():
        scores = network(log_mel(torch.randn(2, 16_000)))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))
