"""strict=False: the tail adapts to what comes out of the bottleneck, and nothing else changes in any way."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import SplitError
from compoff.fingerprint import fingerprint
from tests.small_networks import DataDependent, assert_close, tiny_decoder, tiny_encoder

if TYPE_CHECKING:
    from pathlib import Path


def network() -> nn.Module:
    torch.manual_seed(1)
    first, second = (nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(2))
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
    return nn.Sequential(stem, first, second, nn.Flatten(), nn.Linear(8 * 64, 5))


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


def wrapped(*, strict: bool = False, own: bool = False) -> compoff.Wrapped:
    torch.manual_seed(0)
    factories = {"encoder": tiny_encoder, "decoder": tiny_decoder} if own else {"codec": "deepcod"}
    return compoff.wrap(network(), ["1", "2"], example_input=images(), stride=2, channels=4, strict=strict, **factories)


def student(model: compoff.Wrapped, split: str, x: Tensor) -> Tensor:
    with model.eval().at(split), torch.no_grad():
        return model(x)


@pytest.fixture(scope="module")
def fitted() -> tuple[compoff.Wrapped, compoff.FitReport]:
    model = wrapped()
    report = compoff.fit(model, [images(), images()], steps=12)
    return model.eval(), report


def test_fit_trains_the_adapter_and_says_its_size(fitted: tuple[compoff.Wrapped, compoff.FitReport]) -> None:
    model, report = fitted
    adapter = model.bottleneck("1").adapter
    assert adapter is not None
    assert all(delta.abs().sum() > 0 for delta in adapter.parameters())
    assert report.splits["1"].adapter_bytes == adapter.bytes == 2 * 2 * 8 * 4
    assert report.splits["2"].adapter_bytes == 2 * 8 * 4
    assert model.reports["1"]["adapter_bytes"] == adapter.bytes


def test_the_teacher_and_the_base_never_change(fitted: tuple[compoff.Wrapped, compoff.FitReport]) -> None:
    model, x = fitted[0], images()
    untouched = network().eval()
    assert fingerprint(model.base.state_dict()) == fingerprint(untouched.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), untouched(x))
        with model.at("1", bypass=True):
            assert torch.equal(model(x), untouched(x))


def test_unwrap_takes_the_adapters_out() -> None:
    model, x = wrapped(), images()
    for delta in model.bottlenecks.parameters():
        torch.nn.init.normal_(delta)
    base = model.unwrap()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    assert base.training
    with torch.no_grad():
        assert torch.equal(base.eval()(x), network().eval()(x))


def test_the_adapter_of_one_split_point_is_off_at_another(fitted: tuple[compoff.Wrapped, compoff.FitReport]) -> None:
    model, x = copy.deepcopy(fitted[0]), images()
    before = student(model, "2", x)
    assert model.bottleneck("1").adapter is not None
    for delta in model.bottleneck("1").adapter.parameters():
        torch.nn.init.normal_(delta)
    assert torch.equal(student(model, "2", x), before)


def test_without_its_adapter_the_student_is_the_strict_one() -> None:
    model, strict, x = wrapped(), wrapped(strict=True), images()
    strict.bottlenecks.load_state_dict(
        {key: value for key, value in model.bottlenecks.state_dict().items() if "adapter" not in key}
    )
    assert torch.equal(student(model, "1", x), student(strict, "1", x))  # not trained yet: the identity
    adapter = model.bottleneck("1").adapter
    assert adapter is not None
    torch.nn.init.normal_(adapter.deltas[0])
    assert not torch.allclose(student(model, "1", x), student(strict, "1", x))
    model.bottleneck("1").adapter = None
    assert torch.equal(student(model, "1", x), student(strict, "1", x))


def test_figures_that_were_measured_with_an_adapter_are_not_exported_without_it(
    fitted: tuple[compoff.Wrapped, compoff.FitReport], caplog: pytest.LogCaptureFixture
) -> None:
    model = copy.deepcopy(fitted[0])
    assert compoff.export(model, "1")[0].manifest.report["adapter_bytes"] > 0
    model.bottleneck("1").adapter = None
    report = compoff.export(model, "1")[0].manifest.report
    assert {"agreement", "adapter_bytes"} & {*report} == set()
    assert "the figures at '1' were measured with another adapter" in caplog.text
    compoff.finish(model, [images(), images()])
    assert compoff.export(model, "1")[0].manifest.report["adapter_bytes"] == 0


def test_a_file_saved_without_an_adapter_that_was_taken_off_is_loaded_without_it(tmp_path: Path) -> None:
    model, x = wrapped(), images()
    model.bottleneck("1").adapter = None
    model.save(tmp_path / "fitted.safetensors")
    again = compoff.load(tmp_path / "fitted.safetensors", network())
    assert again.bottleneck("1").adapter is None
    assert again.bottleneck("2").adapter is not None
    assert torch.equal(student(again, "1", x), student(model, "1", x))


def test_tail_adapts_and_head_does_not(tmp_path: Path) -> None:
    model, x = wrapped(own=True), images()
    plain = compoff.export(model, "1")[0]
    for delta in model.bottleneck("1").adapter.parameters():  # pyright: ignore[reportOptionalMemberAccess]
        torch.nn.init.normal_(delta, std=0.3)
    head, tail = compoff.export(model, "1")
    assert head.artifact_id != plain.artifact_id  # another tail, another artifact
    payload = head(x)
    assert len(payload) == len(plain(x))
    assert_close(tail(payload), student(model, "1", x))
    tail.save(tmp_path / "tail")
    assert_close(compoff.Tail.load(tmp_path / "tail")(payload), student(model, "1", x))
    assert fingerprint(model.base.state_dict()) == fingerprint(network().state_dict())


def test_copies_files_and_pickles_hold_the_adapter(
    fitted: tuple[compoff.Wrapped, compoff.FitReport], tmp_path: Path
) -> None:
    model, x = fitted[0], images()
    expected = student(model, "1", x)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.save(tmp_path / "fitted.safetensors")
    copies.append(compoff.load(tmp_path / "fitted.safetensors", network()))
    for one in copies:
        assert torch.equal(student(one, "1", x), expected)


def test_first_phase_reaches_every_parameter() -> None:
    model = wrapped()
    model.distillation_loss(images(), split="1", distill=False).backward()
    assert all(parameter.grad is not None for parameter in model.bottleneck("1").parameters())


def test_a_model_without_layers_to_adapt_is_refused_before_anything_is_changed() -> None:
    net = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Tanh())
    with pytest.raises(SplitError, match=r"strict=False, but behind '1'"):
        compoff.wrap(net, "1", example_input=torch.randn(2, 32), strict=False, codec="deepcod")
    assert net.training


def test_a_tail_that_is_no_program_refuses_an_adapter() -> None:
    model = compoff.wrap(DataDependent(), "input", example_input=images(), strict=False, codec="deepcod")
    with pytest.raises(SplitError, match="knows no adapter"):
        compoff.export(model, "input", tail_factory="tests.small_networks:DataDependent")
