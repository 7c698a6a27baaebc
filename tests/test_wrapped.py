"""Wrapped: the model is not touched, the hooks keep up with everything that a script may do to a module."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FeatureError, FitError, SplitError
from tests.small_networks import (
    FunctionalSkip,
    IdentitySkip,
    InputSkip,
    LeftOut,
    Nested,
    OptionalInputs,
    Plain,
    Skip,
    TwoInputs,
    marks,
    same,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SHAPE = (3, 8, 8)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SHAPE)


def mixed() -> Plain:
    """A model whose flags are not all the same."""
    net = Plain()
    net.block1.eval()
    net.stem[0].weight.requires_grad_(requires_grad=False)
    return net


def wrapped_plain(*splits: str) -> compoff.Wrapped:
    return compoff.wrap(Plain(), splits or ("block1", "block2"), example_input=images(), codec="deepcod").eval()


# -- the student answers as an export


@pytest.mark.parametrize("net", [Plain, Skip])
def test_answers_at_each_quality_as_an_export_does(net: type[nn.Module]) -> None:
    x = images(8)
    wrapped = compoff.wrap(net(), "block1", example_input=x)
    compoff.calibrate(wrapped, [x])
    compoff.finish(wrapped, [x] * 2)
    wrapped.eval().bottleneck("block1").choose(2)
    head, tail = compoff.export(wrapped, "block1")
    with torch.no_grad():
        seen = []
        for quality in (0, 2, 7, None):
            with wrapped.at("block1", quality=quality):
                seen.append(wrapped(x))
                torch.testing.assert_close(seen[-1], tail(head(x, quality=quality)))
        assert torch.equal(seen[1], seen[3])  # the chosen one
        assert not torch.equal(seen[0], seen[1])
        with wrapped.at("block1", quality=0):
            with wrapped.at("block1"):
                assert torch.equal(wrapped(x), seen[3])
            assert torch.equal(wrapped(x), seen[0])


def test_refuses_a_quality_that_there_is_not() -> None:
    wrapped = wrapped_plain("block1")
    for quality in (1, -1, True, 0.0):
        with pytest.raises(FeatureError, match="quality"), wrapped.at("block1", quality=quality):  # type: ignore[arg-type]
            pass
    with wrapped.at("block1", quality=0):  # the codec has only one
        answer = wrapped(x := images())
    with wrapped.at("block1"):
        assert torch.equal(answer, wrapped(x))
    with pytest.raises(SplitError, match=r"call model.eval\(\) first"), wrapped.train().at("block1", quality=0):
        pass


# -- the model is not touched


def act(wrapped: compoff.Wrapped, what: str, folder: Path) -> None:
    if what == "teacher":
        wrapped(images())
    elif what == "student":
        with wrapped.train().at("block1"):
            wrapped(images()).sum().backward()
    elif what == "fit":
        compoff.fit(wrapped, [images(8)], steps=4, progress=False)
    elif what == "own loop":
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, weight_decay=0.1)
        wrapped.train().distillation_loss(images(), split="block1").backward()
        optimizer.step()
    elif what == "export":
        compoff.export(wrapped, "block1")
    elif what == "save":
        wrapped.save(folder / "fitted.safetensors")


@pytest.mark.parametrize("what", ["nothing", "teacher", "student", "fit", "own loop", "export", "save"])
def test_values_never_change_and_unwrap_gives_everything_back(what: str, tmp_path: Path) -> None:
    net = mixed()
    before, flags = values(net), marks(net)
    wrapped = compoff.wrap(net, ["input", "block1", "block2"], example_input=images(), codec="deepcod")
    assert same(values(net), before)
    act(wrapped, what, tmp_path)
    assert same(values(net), before)
    assert wrapped.unwrap() is net
    assert same(values(net), before)
    assert marks(net) == flags


def test_gradients_reach_the_bottlenecks_only() -> None:
    wrapped = wrapped_plain("block1").train()
    wrapped.distillation_loss(images()).backward()
    assert all(parameter.grad is None for parameter in wrapped.base.parameters())
    assert all(parameter.grad is not None for parameter in wrapped.bottleneck_parameters())


def test_bottleneck_parameters_are_all_but_the_models() -> None:
    wrapped = wrapped_plain()
    ours = {id(parameter) for parameter in wrapped.bottleneck_parameters()}
    assert ours == {id(parameter) for parameter in wrapped.parameters()} - {id(p) for p in wrapped.base.parameters()}


def test_parameter_groups_have_the_bottlenecks_of_skip_tensors_too() -> None:
    wrapped = compoff.wrap(Skip(), ["block1", "block2"], example_input=images(), codec="deepcod")
    assert len(wrapped.bottlenecks_at("block2")) == 2

    def held(groups: list[dict[str, Any]]) -> set[int]:
        return {id(parameter) for group in groups for parameter in group["params"]}

    there = {id(parameter) for one in wrapped.bottlenecks_at("block2") for parameter in one.parameters()}
    assert held(wrapped.parameter_groups(1e-3, "block2")) == there
    assert held(wrapped.parameter_groups(1e-3)) == {id(parameter) for parameter in wrapped.bottleneck_parameters()}
    assert all(group["lr"] > 0 for group in wrapped.parameter_groups(1e-3))
    with pytest.raises(compoff.SplitError, match="block3"):
        wrapped.parameter_groups(1e-3, "block3")


def unfreeze(wrapped: compoff.Wrapped, how: str) -> None:
    {
        "wrapped.train": lambda: wrapped.train(),
        "base.train": lambda: wrapped.base.train(),
        "layer.train": lambda: wrapped.base.stem[1].train(),
        "requires_grad": lambda: wrapped.requires_grad_(requires_grad=True),
        "layer.requires_grad": lambda: wrapped.base.stem[1].requires_grad_(requires_grad=True),
    }[how]()


@pytest.mark.parametrize("how", ["wrapped.train", "base.train", "layer.train", "requires_grad", "layer.requires_grad"])
@pytest.mark.parametrize("use", ["forward", "student", "distillation_loss", "fit"])
def test_base_stays_frozen_whatever_the_script_calls(how: str, use: str) -> None:
    wrapped = wrapped_plain("block1")
    before = values(wrapped.base)
    unfreeze(wrapped, how)
    if use == "forward":
        wrapped(images())
    elif use == "student":
        with wrapped.at("block1"):
            wrapped(images()).sum().backward()
    elif use == "distillation_loss":
        wrapped.distillation_loss(images()).backward()
    else:
        compoff.fit(wrapped, [images()], steps=1, progress=False)
    assert same(values(wrapped.base), before)
    assert not any(module.training for module in wrapped.base.modules())
    assert not any(parameter.requires_grad for parameter in wrapped.base.parameters())


# -- teacher and student


@pytest.mark.parametrize("make", [Plain, Skip, IdentitySkip, InputSkip, FunctionalSkip, Nested])
@pytest.mark.parametrize("training", [True, False])
def test_teacher_is_the_model_exactly(make: Callable[[], nn.Module], training: bool) -> None:
    net = make().eval()
    x = images(3)
    expected = torch.utils._pytree.tree_leaves(net(x))
    wrapped = compoff.wrap(net, ["input", "block2"], example_input=x, codec="deepcod").train(training)
    for theirs, ours in zip(expected, torch.utils._pytree.tree_leaves(wrapped(x)), strict=True):
        assert torch.equal(theirs, ours) if isinstance(theirs, Tensor) else theirs == ours


def test_student_is_the_model_run_on_the_decoded_feature() -> None:
    wrapped = wrapped_plain()
    net, x = wrapped.base, images(3)
    y = wrapped.bottleneck("block1")(net.stem(x))
    expected = net.classifier(net.block2(net.block1(y)).mean((2, 3)))
    with wrapped.at("block1"):
        assert torch.equal(wrapped(x), expected)


@pytest.mark.parametrize("make", [Skip, IdentitySkip])
def test_skip_connections_see_the_decoded_feature(make: Callable[[], Plain]) -> None:
    net = make().eval()
    wrapped = compoff.wrap(net, "block1", example_input=images(), codec="deepcod").eval()
    x = images(3)
    y = wrapped.bottleneck("block1")(net.stem(x))
    expected = net.classifier((net.block2(net.block1(y)) + y).mean((2, 3)))
    with wrapped.at("block1"):
        assert torch.equal(wrapped(x), expected)


def test_skip_from_the_input_sees_the_decoded_input() -> None:
    net = InputSkip().eval()
    wrapped = compoff.wrap(net, "stem", example_input=images(), codec="deepcod").eval()
    x = images(3)
    x_hat = wrapped.bottleneck("stem")(x)
    expected = net.classifier((net.block2(net.stem(x_hat)) + x_hat.mean(1, keepdim=True)).mean((2, 3)))
    with wrapped.at("stem"):
        assert torch.equal(wrapped(x), expected)


def test_each_split_point_has_a_student_of_its_own() -> None:
    wrapped = wrapped_plain("input", "stem.2", "block1", "block2.1")
    x = images()
    outputs = [wrapped(x)]
    for split in wrapped.split_points:
        with wrapped.at(split):
            outputs.append(wrapped(x))
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 5


def test_at_nests_and_is_left_after_an_error() -> None:
    wrapped = wrapped_plain()
    x = images()
    teacher = wrapped(x)
    with wrapped.at("block1"):
        outer = wrapped(x)
        with wrapped.at("block2"):
            assert not torch.equal(wrapped(x), outer)
        assert torch.equal(wrapped(x), outer)
        with pytest.raises(KeyError, match="stop"), wrapped.at("block2"):
            raise KeyError("stop")
        assert torch.equal(wrapped(x), outer)
    assert torch.equal(wrapped(x), teacher)


def test_student_refuses_a_feature_of_another_size_and_goes_back_to_the_teacher() -> None:
    wrapped = wrapped_plain()
    larger = torch.randn(2, 3, 16, 16)
    with pytest.raises(FeatureError, match=r"has shape \(8, 16, 16\).*made for \(8, 8, 8\)"), wrapped.at("block1"):
        wrapped(larger)
    assert wrapped(larger).shape == (2, 5)


@pytest.mark.parametrize("size", [(7, 9), (1, 5), (3, 3)])
def test_sizes_that_do_not_fit_the_stride(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    wrapped = compoff.wrap(Plain(), ["input", "block1"], example_input=x, codec="deepcod").eval()
    for split in wrapped.split_points:
        with wrapped.at(split):
            assert wrapped(x).shape == (2, 5)


# -- shapes learnt from the first batch


def test_shapes_are_learnt_from_the_first_batch() -> None:
    wrapped = compoff.wrap(Plain(), "block1", codec="deepcod")
    assert not wrapped.built
    for use in (wrapped.bottleneck, wrapped.gate, lambda split: wrapped.at(split).__enter__()):
        with pytest.raises(SplitError, match="shapes at the split points are not known yet"):
            use("block1")
    with pytest.raises(SplitError, match="not known yet"):
        wrapped.bottleneck_parameters()
    wrapped(images())
    assert wrapped.bottleneck("block1").geometry.shape == (8, 8, 8)


def test_a_first_batch_in_inference_mode_makes_bottlenecks_that_can_be_trained() -> None:
    wrapped = compoff.wrap(Plain(), "block1", codec="deepcod")
    with torch.inference_mode():
        wrapped(images())
    wrapped.train().distillation_loss(images()).backward()
    assert not any(parameter.is_inference() for parameter in wrapped.parameters())


def test_wrong_split_point_found_late_leaves_the_model_as_it_was() -> None:
    net = mixed()
    flags = marks(net)
    wrapped = compoff.wrap(net, ["block1", "block2.2"], codec="deepcod")
    net.block2[2].forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        wrapped(images())
    del net.block2[2].forward
    assert not wrapped.built
    assert list(wrapped.bottlenecks) == []
    wrapped.unwrap()
    assert marks(net) == flags


def test_a_tensor_that_was_left_out_at_wrapping_does_not_take_the_place_of_another() -> None:
    torch.manual_seed(0)
    x, prior, gate = torch.randn(4, 32), torch.randn(4, 32), torch.rand(4, 32)
    wrapped = compoff.wrap(LeftOut(), "input", example_input={"x": x, "gate": gate}, codec="deepcod").eval()
    with wrapped.gate("input").replacing([x * 2.0, gate * 3.0]), torch.no_grad():
        found = wrapped(x, gate=gate, prior=prior)
    assert torch.equal(found, wrapped.base(x * 2.0, prior, gate * 3.0))
    with wrapped.at("input"), pytest.raises(FeatureError, match="has none there"):
        wrapped(x, prior=prior)


def test_keyword_inputs_are_put_where_the_model_takes_them() -> None:
    net = OptionalInputs()
    wrapped = compoff.wrap(net, "block1", codec="deepcod")
    wrapped(images(4), double=True, scale=torch.ones(8))
    example = wrapped.example_inputs()
    assert [None if value is None else tuple(value.shape) for value in example.args] == [(2, 3, 8, 8), None, (8,)]
    assert example.keywords == {"double": True}
    assert example.batched == (True, False)


def test_example_inputs_hold_nothing_of_the_users_data() -> None:
    wrapped = compoff.wrap(TwoInputs(), "block1", example_input=(images(5), images(5)), codec="deepcod")
    assert [tuple(value.shape) for value in wrapped.example_inputs().args] == [(2, *SHAPE)] * 2
    assert all(not value.any() for value in wrapped.example_inputs().args)


# -- copies, files, devices, compilers, several processes


def student(wrapped: compoff.Wrapped, x: Tensor, split: str = "block1") -> Tensor:
    with wrapped.at(split), torch.no_grad():
        return wrapped(x)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_own_their_bottlenecks(copied: Callable[[compoff.Wrapped], compoff.Wrapped]) -> None:
    wrapped = wrapped_plain()
    x = images()
    before = student(wrapped, x)
    twin = copied(wrapped)
    assert torch.equal(student(twin, x), before)
    with torch.no_grad():
        for parameter in twin.bottleneck_parameters():
            parameter.add_(1.0)
    assert not torch.equal(student(twin, x), before)
    assert torch.equal(student(wrapped, x), before)
    net = twin.unwrap()
    assert not any(net.stem[2]._forward_hooks.values())
    assert torch.equal(student(wrapped, x), before)


def test_a_copy_made_inside_at_is_the_student_too() -> None:
    wrapped = wrapped_plain()
    x = images()
    with wrapped.at("block1"):
        twin = copy.deepcopy(wrapped)
    assert torch.equal(twin(x), student(wrapped, x))


STATE = [
    "calibrated",
    "encoder.layer.weight",
    "quantizer.centers",
    "quantizer.gain",
    "decoder.scale",
    "decoder.offset",
    "decoder.stages.0.gain",
    "prior.logits",
]


def test_state_dict_keeps_its_names() -> None:
    state = wrapped_plain("input", "stem.2").state_dict()
    for split in ("input", "stem/2"):
        assert {f"bottlenecks.{split}.{name}" for name in STATE} <= set(state)
    assert {name for name in state if name.startswith("base.")} == {f"base.{name}" for name in Plain().state_dict()}
    assert all(name.startswith(("base.", "bottlenecks.")) for name in state)


def test_state_dict_carries_model_and_bottlenecks_over() -> None:
    source, target = wrapped_plain(), wrapped_plain()
    x = images()
    assert not torch.equal(student(source, x), student(target, x))
    target.load_state_dict(source.state_dict())
    for split in source.split_points:
        assert torch.equal(student(source, x, split), student(target, x, split))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moves_to_another_dtype(dtype: torch.dtype) -> None:
    wrapped = wrapped_plain().to(dtype)
    assert {parameter.dtype for parameter in wrapped.parameters()} == {dtype}
    assert wrapped.example_inputs().args[0].dtype == dtype
    assert student(wrapped, images().to(dtype)).dtype == dtype


def test_moves_to_another_device() -> None:
    wrapped = wrapped_plain().to("meta")
    x = images().to("meta")
    assert wrapped(x).device.type == wrapped.example_inputs().args[0].device.type == "meta"
    assert student(wrapped, x).device.type == "meta"


def test_bottleneck_works_beside_a_model_of_another_dtype() -> None:
    wrapped = compoff.wrap(Plain().double(), "block1", example_input=images().double(), codec="deepcod").eval()
    assert wrapped.bottleneck("block1").quantizer.centers.dtype == torch.float32
    assert student(wrapped, images().double()).dtype == torch.float64


def test_compiles() -> None:
    wrapped = wrapped_plain()
    compiled = torch.compile(wrapped, backend="eager")
    x = images()
    torch.testing.assert_close(compiled(x), wrapped(x))
    with wrapped.at("block1"):
        torch.testing.assert_close(compiled(x), wrapped(x))
    torch.testing.assert_close(compiled(x), wrapped.base(x))


# -- asked for what is not there


def test_what_only_the_model_has_is_said_to_be_in_base() -> None:
    class Scripted(Plain):
        rate = 0.5

        def training_step(self) -> int:
            return 1

        @property
        def later(self) -> int:
            raise RuntimeError("not now")

    wrapped = compoff.wrap(Scripted(), "block1", example_input=images())
    for one in (wrapped, copy.deepcopy(wrapped), torch.compile(wrapped, backend="eager")):
        for name in ("classifier", "training_step", "rate"):
            assert not hasattr(one, name)
            with pytest.raises(AttributeError, match=f"'{name}'; it is the model's own: wrapped.base.{name}$"):
                getattr(one, name)
        for name in ("nothing", "later", "__gone__"):
            with pytest.raises(AttributeError, match=f"no attribute '{name}'$"):
                getattr(one, name)
        assert one.base.rate == 0.5


def test_an_unwrapped_model_says_so() -> None:
    wrapped = wrapped_plain("block1")
    net = wrapped.unwrap().train()
    uses: list[Callable[[], Any]] = [
        lambda: wrapped(images()),
        lambda: wrapped.at("block1").__enter__(),
        lambda: wrapped.build(images()),
        lambda: wrapped.gate("block1"),
        wrapped.unwrap,
    ]
    for use in uses:
        with pytest.raises(SplitError, match="has been unwrapped"):
            use()
    assert net.training


def test_unknown_split_point_of_a_wrapped_model() -> None:
    wrapped = wrapped_plain()
    for use in (wrapped.bottleneck, wrapped.gate, lambda split: wrapped.at(split).__enter__()):
        with pytest.raises(SplitError, match=r"'stem' is not a split point.*wrapped at 'block1', 'block2'"):
            use("stem")
    for split in (["block1", "block2"], None):
        with pytest.raises(SplitError, match="expected the name of one split point: 'block1', 'block2'"):
            compoff.export(wrapped, split)  # type: ignore[arg-type]
    with pytest.raises(SplitError, match="say which one with split="):
        wrapped.distillation_loss(images())


def test_the_teacher_of_a_loss_inside_at_is_the_model_itself() -> None:
    wrapped, x = wrapped_plain(), images(4)
    for split in wrapped.split_points:
        wrapped.distillation_loss(x, split=split)  # sets the units, once
    alone = wrapped.distillation_loss(x, split="block2")
    with wrapped.at("block1"):
        inside = wrapped.distillation_loss(x, split="block2")
        assert wrapped.gate("block1").on
    assert torch.equal(inside, alone)


def test_an_unwrapped_model_stays_so_when_its_base_is_wrapped_again() -> None:
    stale = wrapped_plain("block1", "block2")
    net, x = stale.unwrap(), images()
    anew = compoff.wrap(net, "block1", example_input=x)
    uses: list[Callable[[], Any]] = [
        lambda: stale(x),
        lambda: stale.at("block2").__enter__(),
        lambda: compoff.export(stale, "block1"),
        lambda: compoff.fit(stale, [x], steps=1),
        stale.unwrap,
    ]
    for use in uses:
        with pytest.raises(SplitError, match="has been unwrapped"):
            use()
    assert anew(x).shape == (2, 5)
    assert anew.unwrap() is net
    assert compoff.wrap(net, "block2", example_input=x).unwrap() is net


def test_a_state_is_loaded_once_shapes_are_known() -> None:
    fitted, anew = wrapped_plain("block1"), compoff.wrap(Plain(), "block1", codec="deepcod")
    with pytest.raises(SplitError, match=r"shapes at the split points are not known yet; pass example_input"):
        anew.load_state_dict(fitted.state_dict())
    anew.build(images())
    assert anew.load_state_dict(fitted.state_dict()).missing_keys == []


def test_a_model_without_weights_is_not_fitted() -> None:
    with torch.device("meta"):
        net = Plain()
    with pytest.raises(FitError, match=r"this Plain has no weights yet: '.*' is on the device 'meta'; load them first"):
        compoff.fit(compoff.wrap(net, "block1"), [images()], steps=1)


def test_a_pass_under_a_function_transform_leaves_nothing_of_it_behind() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    x = torch.randn(4, 3, 16, 16)
    wrapped = compoff.wrap(net, "2", example_input=x)
    compoff.calibrate(wrapped, [x])
    trained = {name: value.detach() for name, value in wrapped.named_parameters() if name.startswith("bottlenecks")}

    def energy(parameters: dict[str, Tensor]) -> Tensor:
        with wrapped.train().at("2"):
            return torch.func.functional_call(wrapped, parameters, (x,)).square().mean()

    assert any(bool(gradient.any()) for gradient in torch.func.grad(energy)(trained).values())
    copied = copy.deepcopy(wrapped).eval()
    with wrapped.eval().at("2"), copied.at("2"):
        assert torch.equal(copied(x), wrapped(x))


def test_a_replaced_module_that_a_gate_hangs_in_is_noticed() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(4, 3, 16, 16)
    wrapped = compoff.wrap(net, ["2", "input"], example_input=x)
    compoff.fit(wrapped, [x], steps=2)
    wrapped.base[1] = nn.ReLU()
    for call in (lambda: wrapped.at("2").__enter__(), lambda: compoff.fit(wrapped, [x], steps=1)):
        with pytest.raises(SplitError, match=r"from which '2' takes its tensors has been replaced.*wrap it again"):
            call()
    again = compoff.wrap(wrapped.unwrap(), "2", example_input=x)
    with copy.deepcopy(again).at("2") as student:
        assert student(x).shape == (4, 4, 12, 12)


def test_bypassing_and_coding_nest() -> None:
    net, x = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(8, 32)
    model = compoff.wrap(net, "2", example_input=x)
    compoff.calibrate(model, [x])
    model.eval()
    with torch.no_grad():
        plain = model(x)
        with model.at("2"):
            coded = model(x)
            with model.at("2", bypass=True):
                assert torch.equal(model(x), plain)
                model.distillation_loss(x)
                assert torch.equal(model(x), plain)
                with model.at("2"):
                    assert torch.equal(model(x), coded)
                assert torch.equal(model(x), plain)
            assert torch.equal(model(x), coded)
    assert not torch.equal(plain, coded)


class EarlyExit(nn.Module):
    """Answers some inputs before the block behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(32, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(x if bool(x.sum() > 1e3) else self.block(x))


def test_a_student_that_goes_past_its_codec_is_no_student() -> None:
    net, x = EarlyExit(), torch.randn(8, 32)
    wrapped = compoff.wrap(net, "block", example_input=x)
    compoff.calibrate(wrapped, [x])
    assert wrapped(1e6 * x).shape == (8, 4)
    with wrapped.at("block") as student:
        assert student(x).shape == (8, 4)
        with pytest.raises(SplitError, match="this batch did not pass the split point 'block', so the answer would be"):
            student(1e6 * x)
        assert student(x).shape == (8, 4)
    assert wrapped(1e6 * x).shape == (8, 4)
