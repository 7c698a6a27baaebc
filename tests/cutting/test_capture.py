"""One export with the marker in it, and what it leaves behind: nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.cutting.capture import capture, marker
from compoff.errors import SplitError
from tests.small_networks import BatchInside, DataDependent, FunctionalSkip, Plain, tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Callable


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def programs_of(net: nn.Module, split: str, encoder: Any = None, decoder: Any = None) -> tuple[compoff.Wrapped, Any]:
    own = {"encoder": encoder, "decoder": decoder, "codec": "deepcod"}
    wrapped = compoff.wrap(net, split, example_input=images(), **own).eval()
    return wrapped, capture(wrapped.base, wrapped.gate(split), split, wrapped.example_inputs(), most=8)


def test_the_marker_gives_back_what_it_is_given() -> None:
    symbols = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    assert torch.equal(marker(symbols), symbols)
    torch.library.opcheck(torch.ops.compoff.cut.default, (symbols,))


def test_halves_are_the_student_at_any_batch() -> None:
    wrapped, programs = programs_of(BatchInside(), "block1", tiny_encoder, tiny_decoder)
    head, tail = (part.module(check_guards=False) for part in (programs.head, programs.tail))
    for batch in (1, 2, 3, 64):
        x = images(batch)
        with wrapped.at("block1"), torch.no_grad():
            expected = wrapped(x)
        torch.testing.assert_close(tail(head(x)[0])[0], expected, rtol=0, atol=1e-6)


def test_symbols_are_bytes() -> None:
    _, programs = programs_of(Plain(), "block1")
    symbols, finite = programs.head.module(check_guards=False)(images(3))
    assert (symbols.dtype, tuple(symbols.shape)) == (torch.uint8, (3, 8, 2, 2))
    assert finite.tolist() == [True, True, True]


def test_programs_hold_each_only_its_own_weights_and_no_inputs() -> None:
    wrapped, programs = programs_of(Plain(), "block1")
    count = {
        part: sum(value.numel() for value in getattr(programs, part).state_dict.values()) for part in ("head", "tail")
    }
    stem = sum(value.numel() for value in wrapped.base.stem.state_dict().values())
    encoder = sum(value.numel() for value in wrapped.bottleneck("block1").encoder.state_dict().values())
    assert count["head"] <= stem + encoder + 10
    assert count["tail"] > 10 * encoder
    assert programs.head.example_inputs is None
    assert programs.tail.example_inputs is None


def test_the_power_iteration_is_not_shipped() -> None:
    _, programs = programs_of(Plain(), "block1")
    assert not [
        node for node in programs.tail.graph.nodes if "norm" in str(node.target) and "batch" not in str(node.target)
    ]


@pytest.mark.parametrize("sequential", [True, False])
def test_containers_do_not_run_the_codec_as_a_layer_of_theirs(sequential: bool) -> None:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten()]
    net = nn.Sequential(*layers) if sequential else nn.Sequential(nn.Sequential(*layers[:2]), *layers[2:])
    split = "2" if sequential else "1"
    wrapped, programs = programs_of(net, split, tiny_encoder, tiny_decoder)
    x = images(3)
    with wrapped.at(split), torch.no_grad():
        expected = wrapped(x)
    head, tail = (part.module(check_guards=False) for part in (programs.head, programs.tail))
    torch.testing.assert_close(tail(head(x)[0])[0], expected, rtol=0, atol=1e-6)


def test_a_model_without_a_weight_can_be_cut() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Flatten())
    wrapped, programs = programs_of(net, "input", tiny_encoder, tiny_decoder)
    with wrapped.at("input"), torch.no_grad():
        expected = wrapped(images(3) * 0)
    head, tail = (part.module(check_guards=False) for part in (programs.head, programs.tail))
    torch.testing.assert_close(tail(head(images(3) * 0)[0])[0], expected, rtol=0, atol=1e-6)


def everything(model: nn.Module) -> Any:
    return [
        (name, id(module), module.training, sorted(vars(module)), list(module._modules), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


class WrittenBatch(Plain):
    """The batch size of the example is written into the model."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(2, 5)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Plain, None),
        (
            DataDependent,
            r"DataDependent cannot be exported at 'block1' \(.*small_networks.py:\d+\).*depends on tensor values",
        ),
        (WrittenBatch, "WrittenBatch cannot be exported at 'block1'.*a batch size written into it"),
        (FunctionalSkip, None),
    ],
)
def test_nothing_is_left_behind(make: Callable[[], nn.Module], reason: str | None) -> None:
    wrapped = compoff.wrap(make(), "block1", example_input=images(), encoder=tiny_encoder, decoder=tiny_decoder)
    before, gate = everything(wrapped), wrapped.gate("block1")
    if reason is None:
        capture(wrapped.base, gate, "block1", wrapped.example_inputs(), most=8)
    else:
        with pytest.raises(SplitError, match=reason):
            capture(wrapped.base, gate, "block1", wrapped.example_inputs(), most=8)
    assert everything(wrapped) == before
    assert gate.replace is None
    assert not gate.on


def test_symbols_arrive_in_one_layout_whatever_they_had_on_the_device() -> None:
    symbols = torch.zeros(2, 8, 4, 4, dtype=torch.uint8).to(memory_format=torch.channels_last)
    assert marker(symbols).is_contiguous()

    class Marked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return marker(x.to(memory_format=torch.channels_last), 0, None).movedim(1, -1).flatten(0, -2)

    # What is recorded has to hold for what arrives: a view of the device's own layout would not.
    program = torch.export.export(Marked(), (torch.zeros(2, 8, 4, 4, dtype=torch.uint8),)).module()
    assert program(torch.zeros(2, 8, 4, 4, dtype=torch.uint8)).shape == (32, 8)
    (marked,) = [node for node in program.graph.nodes if node.target is torch.ops.compoff.cut.default]
    assert marked.meta["val"].is_contiguous()


class Softened(Plain):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        answer = super().__call__(*args, **keywords)
        return answer.softmax(1) if isinstance(answer, Tensor) else answer


class Named(Plain):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        answer = super().__call__(*args, **keywords)
        return {"logits": answer} if isinstance(answer, Tensor) else {"logits": answer[0]}


class Twice(Plain):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return super().__call__(*args, **keywords) * 2


class Scaled(Plain):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return super().__call__(*args, **keywords) * 2.0


class Prepared(Plain):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return super().__call__(args[0] * 3 + 1, **keywords)


@pytest.mark.parametrize("kind", [Softened, Named, Twice, Scaled])
def test_a_class_that_goes_on_after_forward_is_refused(kind: type[Plain]) -> None:
    wrapped = compoff.wrap(kind(), "block1", example_input=images(), codec="deepcod")
    with pytest.raises(SplitError, match=rf"{kind.__name__}\.__call__ changes what {kind.__name__}\.forward returns"):
        compoff.export(wrapped, "block1")


def test_a_class_that_prepares_its_inputs_is_cut_with_that() -> None:
    wrapped = compoff.wrap(Prepared(), "block1", example_input=images(), codec="deepcod").eval()
    head, tail = compoff.export(wrapped, "block1")
    x = images(3)
    with wrapped.at("block1"), torch.no_grad():
        expected = wrapped(x)
    torch.testing.assert_close(tail(head(x)), expected)
