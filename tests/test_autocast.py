"""What is called from inside a training script's autocast answers as it does outside of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import compoff
from compoff.autocast import no_autocast
from tests.eager_models import make_picker
from tests.small_networks import tiny_decoder, tiny_encoder


@pytest.fixture(scope="module")
def wrapped() -> compoff.Wrapped:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)).eval()
    example = torch.randn(2, 3, 8, 8)
    return compoff.wrap(net, "2", example_input=example, encoder=tiny_encoder, decoder=tiny_decoder).eval()


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_autocast_is_off_in_the_block_and_on_again_behind_it() -> None:
    with bfloat16():
        with no_autocast():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_heads_and_tails_compute_as_they_were_exported(wrapped: compoff.Wrapped) -> None:
    (head, tail), x = compoff.export(wrapped, "2"), torch.randn(4, 3, 8, 8)
    payload, answer = head(x), tail(head(x))
    with bfloat16():
        assert head(x) == payload
        assert torch.equal(tail(payload), answer)
        compiled = head.compile("onnx"), tail.compile("onnx")
    assert compiled[0](x) == payload
    torch.testing.assert_close(compiled[1](payload), answer)


def test_an_export_holds_nothing_of_the_autocast_around_it(wrapped: compoff.Wrapped) -> None:
    x = torch.randn(4, 3, 8, 8)
    head, tail = compoff.export(wrapped, "2")
    with bfloat16():
        again, behind = compoff.export(wrapped, "2")
    assert again(x) == head(x)
    assert torch.equal(behind(again(x)), tail(head(x)))


def test_a_tail_that_runs_the_model_itself_leaves_autocast_out() -> None:
    picker = compoff.wrap(make_picker(), "body", example_input=torch.randn(2, 3, 8, 8))
    head, tail = compoff.export(picker, "body", tail_factory="tests.eager_models:make_picker")
    payload = head(torch.randn(2, 3, 8, 8))
    expected = [found["scores"] for found in tail(payload)]
    with bfloat16():
        assert all(torch.equal(found["scores"], scores) for found, scores in zip(tail(payload), expected, strict=True))
