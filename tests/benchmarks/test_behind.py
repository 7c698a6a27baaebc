"""The network behind a split point answers the kept features as the whole network answers the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import compoff
from benchmarks.behind import Behind, KeptFeatures, features_at
from benchmarks.networks import CifarResNet, resnet18

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@pytest.mark.parametrize("split", ["input", "layer2", "layer3"])
@pytest.mark.parametrize("make", [lambda: CifarResNet(8), resnet18])
def test_behind_answers_features_as_the_whole_network_answers_images(make: Callable[[], nn.Module], split: str) -> None:
    torch.manual_seed(0)
    net, images = make().eval(), torch.randn(4, 3, 32, 32)
    features = features_at(net, split, iter(images.split(2)), 3)
    assert features.dtype == torch.float16
    with torch.inference_mode():
        torch.testing.assert_close(Behind(net, split)(features.float()), net(images[:3]), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("split", ["input", "layer2"])
def test_behind_is_distilled_at_the_same_blocks_as_the_whole_network(split: str) -> None:
    net, images = CifarResNet(8).eval(), torch.randn(2, 3, 32, 32)
    whole = compoff.wrap(net, split, example_input=images)
    later = whole.sites[split].later
    features = features_at(whole.unwrap(), split, iter([images]), 2)
    behind = compoff.wrap(Behind(net, split), "input", example_input=features.float())
    assert behind.sites["input"].later == later


def test_behind_in_bfloat16_answers_in_float32() -> None:
    net, images = CifarResNet(8).eval(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        whole, reduced = (Behind(net, "input", reduced=reduced)(images) for reduced in (False, True))
    assert reduced.dtype == torch.float32
    assert not torch.equal(whole, reduced)
    torch.testing.assert_close(whole, reduced, atol=0.05, rtol=0.05)


def test_kept_features_come_in_a_new_order_each_round() -> None:
    kept = KeptFeatures(torch.arange(64, dtype=torch.float16).view(64, 1), batch=16)
    first, second = (torch.cat(list(kept)) for _ in range(2))
    assert len(kept) == 4
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)
