"""Every rate from one export: qualities, byte limits, cut payloads, and what the tail makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import compoff
from compoff.errors import FeatureError, PayloadError
from compoff.onnx_narrowing import QUALITY, with_quality
from compoff.onnx_session import OnnxSession
from tests.fitting.test_fit import batches, signals, trained_net

if TYPE_CHECKING:
    from pathlib import Path

    Export = tuple[compoff.Head, compoff.Tail, compoff.Wrapped, nn.Module]


@pytest.fixture(scope="module")
def exported() -> Export:
    torch.manual_seed(0)
    net = trained_net()
    model = compoff.wrap(net, "body", example_input=signals(2), codec="transform", stride=4)
    compoff.fit(model, batches(8), steps=20, target_bytes=25)
    head, tail = compoff.export(model, "body")
    return head, tail, model.eval(), net


def test_qualities_cost_more_and_more_and_are_answered_as_the_model_does(exported: Export) -> None:
    head, tail, model, net = exported
    x, bottleneck = signals(40, seed=9), model.bottleneck("body")
    sizes: list[int] = []
    for index, quality in enumerate(bottleneck.qualities()):
        payload = head(x, quality=index)
        assert payload.quality == index
        sizes.append(len(payload))
        gate = model.gate("body")
        gate.replace = lambda features, quality=quality: [
            bottleneck.decode(bottleneck.received(bottleneck.encode(y), quality)) for y in features
        ]
        try:
            with torch.no_grad():
                expected = net(x)
        finally:
            gate.replace = None
        torch.testing.assert_close(tail(payload), expected, atol=1e-5, rtol=1e-4)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


def test_the_default_is_the_best_within_the_target(exported: Export) -> None:
    head, _, model, _ = exported
    report = model.reports["body"]
    assert head.quality == report["quality"]
    assert head(signals(1)).quality == head.quality
    assert report["curve"][head.quality]["bytes"] <= 1.02 * 25


@pytest.mark.parametrize("limit", [400, 60, 30, 20, 12])
def test_a_limit_holds_for_any_input(exported: Export, limit: int) -> None:
    head, tail, _, _ = exported
    for x in (signals(1, seed=4), 50 * torch.randn(1, 2, 16), torch.zeros(1, 2, 16)):
        payload = head(x, quality=10, max_bytes=limit)
        assert len(payload) <= limit
        assert tail(payload).shape == (1, 4)
        assert tail(bytes(payload)).shape == (1, 4)


@pytest.mark.parametrize(("samples", "limit"), [(1, 7), (8, 12)])
def test_a_limit_that_leaves_nothing_to_answer_from_is_refused(exported: Export, samples: int, limit: int) -> None:
    head = exported[0]
    words = "of the 1 sample would" if samples == 1 else "of the 8 samples would"
    with pytest.raises(FeatureError, match=f"max_bytes is {limit}, in which not one channel {words} be whole"):
        head(50 * signals(samples, seed=4), max_bytes=limit)


@pytest.mark.parametrize("wrong", [{"quality": "best"}, {"quality": 1.5}, {"quality": True}, {"max_bytes": "40"}])
def test_what_is_no_whole_number_is_refused(exported: Export, wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(FeatureError, match=f"{name} is {value!r}; expected a whole number"):
        exported[0](signals(1), **wrong)


def test_a_limit_takes_the_best_quality_that_fits(exported: Export) -> None:
    head, _, _, _ = exported
    x = signals(1, seed=4)
    sizes = [len(head(x, quality=quality)) for quality in range(11)]
    for quality, size in enumerate(sizes):
        assert head(x, quality=10, max_bytes=size).quality >= quality
        assert head(x, quality=quality, max_bytes=10_000).quality == quality


def test_a_quality_and_a_limit_may_be_numbers_of_numpy(exported: Export) -> None:
    head, x = exported[0], 50 * signals(1)
    for quality, limit in ((0, 12), (5, 20), (10, 30)):
        expected = bytes(head(x, quality=quality, max_bytes=limit))
        for kind in (np.uint8, np.int8, np.int64):
            assert bytes(head(x, quality=kind(quality), max_bytes=kind(limit))) == expected
        assert bytes(head(x, quality=np.uint8(quality))) == bytes(head(x, quality=quality))


def test_a_limit_below_the_header_is_refused(exported: Export) -> None:
    with pytest.raises(FeatureError, match="max_bytes is 6; header and checksum alone take 7"):
        exported[0](signals(1), max_bytes=6)


def test_a_limit_that_a_huffman_coded_payload_does_not_keep_names_the_other_coding(exported: Export) -> None:
    head, x = exported[0], signals(8, seed=4)
    with pytest.raises(FeatureError, match=r'bytes at quality 0 and cannot be cut, since it is Huffman.*"range"'):
        head(x, max_bytes=40, coding="huffman")
    assert len(head(x, max_bytes=40)) <= 40


class Masked(nn.Module):
    """A mask crosses the cut beside the feature."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rest = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.rest(self.body(x)) * mask


def test_a_limit_that_a_payload_with_a_mask_does_not_keep_says_which_does() -> None:
    x, mask = torch.randn(2, 16), torch.randint(0, 2, (2, 4))
    head, _ = compoff.export(compoff.wrap(Masked(), "rest", example_input=(x, mask)), "rest")
    lowest, enough = len(head(x, mask, quality=0)), head.payload_format.max_bytes(2, 0)
    with pytest.raises(FeatureError, match=rf"the payload takes {lowest} bytes at quality 0 .* max_bytes={enough},"):
        head(x, mask, max_bytes=lowest - 1)
    assert len(head(1e3 * x, 10**12 * mask, max_bytes=enough)) <= enough


def test_any_prefix_decodes_to_its_whole_channels(exported: Export) -> None:
    head, tail, model, _ = exported
    payload = head(signals(3, seed=4), quality=10)
    whole = head.payload_format.decode(payload).symbols[0]
    counts: list[int] = []
    for length in range(7, len(payload)):
        shorter = head.payload_format.shortened(payload, length)
        assert len(shorter) == length
        assert shorter.cut
        assert f"quality={payload.quality}, cut" in repr(shorter)
        found = head.payload_format.decode(shorter).symbols[0]
        assert (found == whole[:, : found.shape[1]]).all()
        counts.append(found.shape[1])
        tail(shorter)
    assert counts == sorted(counts)
    assert counts[-1] >= model.bottleneck("body").latent_shape[0] // 2


def test_a_cut_payload_has_a_checksum_of_its_own(exported: Export) -> None:
    head, tail, _, _ = exported
    data = bytearray(bytes(head.payload_format.shortened(head(signals(1), quality=6), 15)))
    data[8] ^= 1
    with pytest.raises(PayloadError, match="checksum"):
        tail(bytes(data))
    with pytest.raises(PayloadError, match="checksum"):
        tail(bytes(head(signals(1), quality=6))[:15])  # cut by someone else


def test_payloads_of_several_qualities_run_as_one_batch(exported: Export) -> None:
    head, tail, _, _ = exported
    x = signals(3, seed=4)
    payloads = [head(x, quality=quality) for quality in (0, 5, 2)] + [head(x, max_bytes=12)]
    for together, alone in zip(tail(payloads), map(tail, payloads), strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_folder_keeps_qualities_and_default(exported: Export, tmp_path: Path) -> None:
    head, tail, _, _ = exported
    head.save(tmp_path / "head")
    tail.save(tmp_path / "tail")
    x = signals(2, seed=4)
    again, edge = compoff.Head.load(tmp_path), compoff.Tail.load(tmp_path)
    assert again.quality == head.quality
    for quality in (0, 3, None):
        payload = again(x, quality=quality)
        assert bytes(payload) == bytes(head(x, quality=quality))
        torch.testing.assert_close(edge(payload), tail(payload))


def test_a_model_that_was_saved_keeps_them_too(exported: Export, tmp_path: Path) -> None:
    _, _, model, _ = exported
    model.save(tmp_path / "fitted.safetensors")
    again = compoff.load(tmp_path / "fitted.safetensors", trained_net()).eval()
    assert again.bottleneck("body").qualities() == model.bottleneck("body").qualities()
    assert compoff.export(again, "body")[0].quality == exported[0].quality


@pytest.fixture(scope="module")
def heads(exported: Export) -> dict[str, compoff.Head]:
    head = exported[0]
    batches = list(signals(64, seed=5).split(16))
    return {
        "torch": head,
        "onnx": head.compile("onnx", threads=1),
        "int8": head.compile("onnx", precision="int8", batches=batches, least_agreement=0.0, threads=1),
    }


@pytest.mark.parametrize("runtime", ["torch", "onnx", "int8"])
def test_a_quality_computes_its_channels_and_no_others(heads: dict[str, compoff.Head], runtime: str) -> None:
    head, x = heads[runtime], signals(3, seed=9).numpy()
    sent = head.manifest.codes[0].qualities
    assert len(set(sent)) > 1
    whole = head.runner.run([x])[0]
    assert whole.shape[1:] == head.manifest.codes[0].latent_shape
    for quality, channels in enumerate(sent):
        part = head.runner.run([x], quality)[0]
        assert part.shape[1] == channels
        assert np.array_equal(part, whole[:, :channels])
    for unknown in (-1, len(sent)):
        assert np.array_equal(head.runner.run([x], unknown)[0], whole)


@pytest.mark.parametrize("runtime", ["torch", "onnx", "int8"])
def test_payloads_are_those_of_all_channels(heads: dict[str, compoff.Head], runtime: str) -> None:
    head, x = heads[runtime], signals(1, seed=4)
    code = head.payload_format.codes[0]
    symbols = head.symbols(x)[0]
    for quality in range(11):
        expected = head.payload_format.encode([code.sent(symbols, quality)], quality=quality)
        assert bytes(head(x, quality=quality)) == bytes(expected)
        limited = head(x, quality=10, max_bytes=len(expected))
        assert bytes(limited) == bytes(head(x, quality=limited.quality, max_bytes=len(expected)))


def test_an_onnx_program_without_such_a_layer_stays_as_it_is(heads: dict[str, compoff.Head]) -> None:
    program = heads["onnx"].runner.files["head.onnx"]
    assert OnnxSession(program, "head").names[-1] == QUALITY
    assert with_quality(program, [[1]]) == program, "its symbols come from a choice, which is no layer"
    whole = heads["onnx"].manifest.codes[0].latent_shape[0]
    assert with_quality(program, [[whole], [whole]]) == program
