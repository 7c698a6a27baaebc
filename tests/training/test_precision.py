"""Mixed and reduced precision: the bottlenecks keep their own, the model whatever the script gave it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import compoff
from compoff.errors import FitError
from compoff.fingerprint import fingerprint
from tests.small_networks import Plain, same, tiny_encoder, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from compoff.recipe import CodecName


def images(batch: int = 8, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size)


def trained(steps: int, step: Callable[[compoff.Wrapped, torch.optim.Optimizer, Tensor], Tensor]) -> list[float]:
    """Losses of a loop of one's own on one batch."""
    x = images(size=16)
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod").train()
    before = values(model.base)
    optimizer = torch.optim.Adam(model.bottleneck_parameters(), lr=3e-3)
    losses = [float(step(model, optimizer, x).detach()) for _ in range(steps)]
    assert same(values(model.base), before)
    assert {value.dtype for value in model.bottleneck_parameters()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in model.bottleneck_parameters())
    return losses


def plain_step(model: compoff.Wrapped, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    loss = model.distillation_loss(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def autocast_step(model: compoff.Wrapped, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.distillation_loss(x)
    assert loss.dtype == torch.float32
    optimizer.zero_grad()
    loss.backward()
    assert {value.grad.dtype for value in model.bottleneck_parameters() if value.grad is not None} == {torch.float32}
    optimizer.step()
    return loss


def test_autocast_trains_as_full_precision_does() -> None:
    torch.manual_seed(0)
    full = trained(30, plain_step)
    torch.manual_seed(0)
    mixed = trained(30, autocast_step)
    assert mixed[-1] < 0.9 * mixed[0]
    assert mixed[-1] == pytest.approx(full[-1], rel=0.05)


def test_a_gradient_scaler_trains_as_full_precision_does() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(model: compoff.Wrapped, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            loss = model.distillation_loss(x)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.bottleneck_parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    torch.manual_seed(0)
    full = trained(30, plain_step)
    torch.manual_seed(0)
    mixed = trained(30, step)
    assert mixed[-1] == pytest.approx(full[-1], rel=0.1)


def test_student_and_teacher_under_autocast_are_near_those_without() -> None:
    x = images()
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod").eval()
    outputs = {}
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            outputs[enabled, "teacher"] = model(x).float()
            with model.at("block1"):
                outputs[enabled, "student"] = model(x).float()
    for role in ("teacher", "student"):
        difference = (outputs[True, role] - outputs[False, role]).norm() / outputs[False, role].norm()
        assert 0 < difference < 0.05, role


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_trains(dtype: torch.dtype) -> None:
    x = images(size=16).to(dtype)
    model = compoff.wrap(Plain().to(dtype), "block1", example_input=x, codec="deepcod").train()
    optimizer = torch.optim.Adam(model.bottleneck_parameters(), lr=3e-3)
    losses = [float(plain_step(model, optimizer, x).detach()) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert {value.dtype for value in model.bottleneck_parameters()} == {torch.float32}
    with model.eval().at("block1"):
        assert model(x).dtype == dtype


def test_fit_inside_autocast() -> None:
    x = images(32)
    model = compoff.wrap(Plain(), "block1", example_input=x, codec="deepcod")
    with torch.autocast("cpu", torch.bfloat16):
        report = compoff.fit(model, [x], steps=40, progress=False)
    loss = report.splits["block1"].loss
    assert loss[-1] < 0.9 * loss[0]


def test_a_fit_inside_autocast_ends_where_one_outside_does() -> None:
    batches = list(torch.nn.functional.interpolate(torch.randn(128, 3, 4, 4), size=16, mode="bilinear").split(32))
    found: list[compoff.FitReport] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = Plain()
        model = compoff.wrap(net.eval(), "input", example_input=batches[0][:2])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(compoff.fit(model, batches, steps=6, target_bytes=60))
    plain, mixed = (report.splits["input"] for report in found)
    assert mixed.bytes == pytest.approx(plain.bytes, rel=0.1)  # it was ten times as much
    assert mixed.loss[-1] == pytest.approx(plain.loss[-1], rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_a_wrapped_model_moved_to_another_dtype_is_fitted_in_it(codec: CodecName, dtype: torch.dtype) -> None:
    model = compoff.wrap(Plain(), "block1", example_input=images(2), codec=codec).to(dtype)
    compoff.fit(model, [images(32).to(dtype)], steps=3)
    assert {value.dtype for value in model.bottleneck_parameters()} == {dtype}
    assert all(torch.isfinite(value).all() for value in model.bottleneck_parameters())


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_bottlenecks_in_float16_are_refused_before_they_are_started(codec: CodecName) -> None:
    model = compoff.wrap(Plain(), "block1", example_input=images(2), codec=codec).half()
    with pytest.raises(FitError, match=r"in float16.*wrapped.bottlenecks.float\(\)"):
        compoff.fit(model, [images(32).half()], steps=3)
    assert not model.bottleneck("block1").calibrated
    model.bottlenecks.float()
    compoff.fit(model, [images(32).half()], steps=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{"strict": False}, {"codec": "deepcod"}, {"encoder": tiny_encoder}])
def test_bottlenecks_are_made_in_float32_whatever_the_scripts_default_is(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    x, net, made = images(32), Plain(), []
    for default in (torch.float32, dtype):
        torch.manual_seed(0)
        torch.set_default_dtype(default)
        try:
            model = compoff.wrap(net, "block1", example_input=x[:2], **options)
            made.append(values(model.bottlenecks))
            if default == dtype:
                compoff.fit(model, [x], steps=2)
            assert torch.get_default_dtype() == default
        finally:
            torch.set_default_dtype(torch.float32)
        model.unwrap()
    assert same(*made)
    assert {value.dtype for value in model.bottlenecks.parameters()} == {torch.float32}


def test_a_far_from_orthogonal_encoder_does_not_overflow_in_float16() -> None:
    model, x = compoff.wrap(Plain(), "block1", example_input=images(2)), images(32)
    compoff.calibrate(model, [x])
    with torch.no_grad():
        model.bottleneck("block1").encoder.weight.mul_(300)  # the directions' rows may well be as long
    assert float(model.bottleneck("block1").semi_orthogonality_error().detach()) > 7e4
    with torch.autocast("cpu", torch.float16):
        assert bool(torch.isfinite(model.bottleneck("block1").semi_orthogonality_error()))
        assert bool(torch.isfinite(model.distillation_loss(x)))


def fitted_under(context: Any, folder: Path) -> tuple[str, float]:
    """What becomes of one fit, from wrapping to loading."""
    torch.manual_seed(0)
    net, x = Plain().eval(), images(32)
    with context:
        model = compoff.wrap(net, "block1", example_input=x[:2])
        compoff.fit(model, [x], steps=4)
        error = compoff.finish(model, [x]).splits["block1"].output_error
        head, tail = compoff.export(model, "block1")
        assert tail(head(x)).device.type == "cpu"
        model.save(folder / "fitted")
        net = model.unwrap()
        before = torch.get_rng_state()
        again = compoff.load(folder / "fitted", net)
        assert torch.equal(torch.get_rng_state(), before)
    return fingerprint(again.bottlenecks.state_dict()), error


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def fitted_under_nothing(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    return fitted_under(contextlib.nullcontext(), tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("default", [default_dtype(torch.float64), default_dtype(torch.bfloat16), torch.device("meta")])
def test_defaults_of_the_script_change_no_fit(
    default: Any, fitted_under_nothing: tuple[str, float], tmp_path: Path
) -> None:
    assert fitted_under(default, tmp_path) == fitted_under_nothing
