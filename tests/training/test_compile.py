"""torch.compile around the wrapped model, around the loss, and around the model before it is wrapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from tests.small_networks import Plain, tiny_decoder, tiny_encoder

BACKEND = "aot_eager"  # traces forward and backward as the default one does, and needs no C++ compiler


@pytest.fixture(autouse=True)
def _compiled_afresh() -> None:
    torch.compiler.reset()


def wrapped_plain(x: Tensor) -> compoff.Wrapped:
    return compoff.wrap(Plain().eval(), ["block1", "block2"], example_input=x, codec="deepcod").eval()


def test_each_student_and_the_teacher_stay_themselves() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = wrapped_plain(x)
    compiled = torch.compile(model, backend=BACKEND)
    seen = []
    for _ in range(2):  # the second time from what was compiled
        seen.append(compiled(x))
        torch.testing.assert_close(seen[-1], model(x))
        for split in model.split_points:
            with model.at(split):
                seen.append(compiled(x))
                torch.testing.assert_close(seen[-1], model(x))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_each_quality_stays_itself() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = compoff.wrap(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 3)).eval(), "2", example_input=x)
    compoff.calibrate(model, [x])
    model.eval()
    model.bottleneck("2").choose(1)
    compiled, seen = torch.compile(model, backend="eager"), []
    with torch.no_grad():
        for quality in (0, 1, None):
            with model.at("2", quality=quality):
                seen.append(compiled(x))
                torch.testing.assert_close(seen[-1], model(x))
    assert torch.equal(seen[1], seen[2])
    assert not torch.equal(seen[0], seen[1])


# The compiler looks at a gradient that it does not need.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_loss_has_the_same_value_and_gradients() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = wrapped_plain(x)
    loss = compoff.DistillationLoss(model, "block1")
    loss.calibrate(x)
    found = []
    for call in (loss, torch.compile(loss, backend=BACKEND)):
        model.zero_grad()
        value = call(x)
        value.backward()
        gradients = [value.grad.flatten() for value in model.bottleneck_parameters() if value.grad is not None]
        found.append((value.detach(), torch.cat(gradients)))
    assert found[0][1].abs().max() > 0
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])


def test_a_compiled_model_can_be_wrapped_by_the_names_it_had() -> None:
    x = torch.randn(2, 3, 8, 8)
    net = Plain().eval()
    expected = net(x).detach()
    model = compoff.wrap(
        torch.compile(net, backend="eager"), ["_orig_mod.block1"], example_input=x, codec="deepcod"
    ).eval()
    torch.testing.assert_close(model(x), expected)
    with model.at("_orig_mod.block1"):
        assert not torch.equal(model(x), expected)
    model.distillation_loss(x).backward()


def test_a_model_compiled_in_place_is_fitted_and_stays_compiled() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = Plain().eval()
    expected = net(x).detach()
    net.compile(backend="eager")
    model = compoff.wrap(net, "block1", example_input=x, codec="deepcod").eval()
    compoff.fit(model, [x], steps=2, progress=False)
    torch.testing.assert_close(model(x), expected)
    assert net._compiled_call_impl is not None


class Functional(Plain):
    """Its blocks are followed by functions, so that hooks on the model itself catch what they return."""

    def trunk(self, x: Tensor) -> Tensor:
        for part in (self.stem, self.block1, self.block2):
            x = torch.relu(part(x))
        return x


def fitted(net: nn.Module, split: str, x: Tensor) -> compoff.Wrapped:
    """A model whose codec has seen data, so that it answers otherwise than the teacher; one that is soon compiled."""
    coders: dict[str, Any] = {"encoder": tiny_encoder, "decoder": tiny_decoder}
    model = compoff.wrap(net, split, example_input=x, codec="deepcod", **coders)
    model.distillation_loss(x)
    return model.eval()


def require_student(compiled: Any, model: compoff.Wrapped, split: str, x: Tensor) -> None:
    with torch.no_grad():
        teacher = model.base(x)
        torch.testing.assert_close(compiled(x), teacher)
        with model.at(split):
            found, expected = compiled(x), model(x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, teacher)


def test_models_of_one_class_that_are_wrapped_in_different_places_do_not_share_what_was_compiled() -> None:
    x = torch.randn(4, 3, 8, 8)
    models = [(split, fitted(Functional().eval(), split, x)) for split in ("block1", "block2", "classifier")]
    compiled = [torch.compile(model, backend="eager") for _, model in models]
    for _ in range(2):
        for (split, model), one in zip(models, compiled, strict=True):
            require_student(one, model, split, x)


@pytest.mark.parametrize("split", ["block1", "block2"])
def test_a_model_that_has_run_compiled_is_compiled_anew_when_it_is_wrapped(split: str) -> None:
    x, net = torch.randn(4, 3, 8, 8), Functional().eval()
    plain = Functional().eval()
    for one in (net, plain):
        one.compile(backend="eager")
        one(x)
    for again in (split, "block1", "block2"):
        model = fitted(net, again, x)
        plain(x)  # another one of the class, without hooks, whose code it shares
        with torch.no_grad(), model.at(again):
            student = model(x)
            with torch.compiler.set_stance("force_eager"):
                torch.testing.assert_close(student, model(x))
        assert not torch.allclose(student, net(x))
        torch.testing.assert_close(model.unwrap()(x), net(x))


# The compiler looks at a gradient that it does not need.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_block_hears_of_the_codec_in_it() -> None:
    x = torch.randn(4, 3, 8, 8)
    first = fitted(Functional().eval(), "block1", x)
    first.base.get_submodule("block2").compile(backend="eager")
    first(x)
    net = Functional().eval()
    net.block2.compile(backend="eager")
    net(x)
    model = fitted(net, "block2", x)
    with torch.no_grad(), model.at("block2"):
        student = model(x)
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(student, model(x))
    assert not torch.allclose(student, net(x))


# The compiler looks at a gradient that it does not need.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_compiled_losses_of_two_models_go_by_their_own_split_points() -> None:
    x = torch.randn(4, 3, 8, 8)
    for split in ("block1", "block2"):
        loss = compoff.DistillationLoss(fitted(Functional().eval(), split, x).train(), split)
        compiled = torch.compile(loss, backend=BACKEND)
        torch.testing.assert_close(compiled(x), loss(x), rtol=0.5, atol=0.5)  # each draws its own noise
