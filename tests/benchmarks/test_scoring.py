"""Measured in two parts the network answers as it does whole, in either runtime; what a fit costs is counted right."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

import compoff
from benchmarks.fit_cost import TRAININGS, fit_cost
from benchmarks.networks import CifarResNet
from benchmarks.scoring import Scorer, WholeScorer
from compoff.fitting.calibrating import SAMPLES


@pytest.mark.parametrize(
    ("split", "runtime"), [("input", "torch"), ("layer2", "torch"), ("layer2", "onnxruntime")], ids=str
)
def test_two_parts_answer_as_the_whole_network(split: str, runtime: Literal["torch", "onnxruntime"]) -> None:
    net, images = CifarResNet(8).eval(), torch.randn(60, 3, 32, 32)
    scorer = Scorer(net, split, images[:2], runtime=runtime)
    features = scorer.features(images)
    assert features is scorer.features(images)
    with torch.inference_mode():
        torch.testing.assert_close(scorer.scores(features), net(images), atol=1e-4, rtol=1e-4)


class Shortcut(torch.nn.Module):
    """A block whose input goes around it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        y = self.stem(images)
        return y + self.block(y)


@pytest.mark.parametrize("split", ["input", "block"])
def test_a_network_without_stages_answers_from_its_features_alone(split: str) -> None:
    net, images = Shortcut().eval(), torch.randn(60, 3, 8, 8)
    scorer = WholeScorer(net, split, images[:2])
    features = scorer.features(images)
    assert features.shape[1:] == ((3, 8, 8) if split == "input" else (4, 6, 6))
    with torch.inference_mode():
        torch.testing.assert_close(scorer.scores(features), net(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scorer.scores(features[1:2] * 2)[0], scorer.scores(features * 2)[1])
    assert not net._forward_pre_hooks  # a copy was wrapped


def test_a_fit_costs_its_passes() -> None:
    net, images = CifarResNet(8).eval(), torch.randn(2, 3, 32, 32)
    prefix, rest = _forward_macs(net, images)
    model = compoff.wrap(net, "layer2", example_input=images, codec="deepcod", channels=4)
    compoff.calibrate(model, [images])
    once = fit_cost(model, "layer2", images, steps=100, batch=16, kept=None)
    kept = fit_cost(model, "layer2", images, steps=100, batch=16, kept=3000)
    epochs, samples = TRAININGS[10]
    stem_gradient = 9 * 3 * 16 * 32 * 32  # training needs no gradient at the images
    assert once["training_macs"] == epochs * samples * (3 * (prefix + rest) - stem_gradient)
    assert once["fit_macs"] - kept["fit_macs"] == (2 * 1600 + SAMPLES - 3000) * prefix
    assert kept["fit_macs"] > 1600 * 3 * rest  # teacher, student and the way back
    assert once["fit_share"] == once["fit_macs"] / once["training_macs"]


def _forward_macs(net: CifarResNet, images: torch.Tensor) -> tuple[int, int]:
    """Before and behind layer2, by hand: the sizes of the maps times those of the kernels."""
    found = [0, 0]
    layers = {name: one for name, one in net.named_modules() if isinstance(one, (torch.nn.Conv2d, torch.nn.Linear))}

    def count(name: str, layer: torch.nn.Module, made: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        found[name.startswith(("layer2", "layer3", "linear"))] += layer.weight.numel() * made[0, 0].numel()

    handles = [
        layer.register_forward_hook(lambda layer, _, made, name=name: count(name, layer, made))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return found[0], found[1]
