"""wrap(): what cannot be wrapped is refused before anything is changed."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.codec import Bottleneck, TransformBottleneck
from compoff.errors import FeatureError, FitError, SplitError
from tests.small_networks import (
    Plain,
    block,
    marks,
    same,
    tiny_encoder,
    values,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (3, 8, 8)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SHAPE)


def mixed() -> Plain:
    """A model whose flags are not all the same."""
    net = Plain()
    net.block1.eval()
    net.stem[0].weight.requires_grad_(requires_grad=False)
    return net


def student(wrapped: compoff.Wrapped, x: Tensor, split: str) -> Tensor:
    with wrapped.at(split), torch.no_grad():
        return wrapped(x)


class Several(nn.Module):
    """A module of each kind that cannot be a split point."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.twice = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.joined = Joined()
        self.empty = nn.Identity()
        self.scalar = nn.Identity()
        self.last = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.twice(self.twice(self.embed(ids).mean(1)))
        self.empty(y[:0])
        self.scalar(y.sum())
        return self.last(self.joined([y, y]))


class Joined(nn.Module):
    def forward(self, parts: list[Tensor]) -> Tensor:
        return parts[0] + parts[1]


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ("lost", r"'lost' is not a module of Several; did you mean 'last'\? modules at that depth: embed, twice"),
        ("joined.lost", "'joined.lost' is not a module of Several"),
        (["last", "last"], "'last' was given twice"),
        ([], "no split point was given"),
        ([3], "split point 3 is a int; expected module paths"),
        ("twice", "'twice' is called 2 times"),
        (["last", "never"], "'never' is never called"),
        ("twice#2", r"'twice' is called 2 times.*name the call: 'twice#0', 'twice#1'"),
        ("embed", r"what enters 'embed' is torch.int64 \(token ids"),
        ("input", r"what enters 'input' is torch.int64 \(token ids"),
        ("empty", r"crosses at 'empty' .* has shape \(0, 8\)"),
        ("scalar", r"crosses at 'scalar' .* has shape \(\)"),
    ],
)
def test_unusable_split_points_say_why_and_change_nothing(splits: Any, reason: str) -> None:
    net = Several()
    net.last.eval()
    before, flags = values(net), marks(net)
    with pytest.raises(SplitError, match=reason):
        compoff.wrap(net, splits, example_input=torch.zeros(2, 4, dtype=torch.long))
    assert same(values(net), before)
    assert marks(net) == flags


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"channels": 0}, FeatureError, "channels is 0"),
        ({"num_centers": 1}, FeatureError, "num_centers is 1"),
        ({"stride": 0}, FeatureError, "stride is 0"),
        ({"decoder": lambda _z, _y: nn.Identity()}, FeatureError, "your decoder turns"),
    ],
)
def test_unusable_options_change_nothing(options: dict[str, Any], error: type[Exception], reason: str) -> None:
    net = mixed()
    flags = marks(net)
    with pytest.raises(error, match=reason):
        compoff.wrap(net, ["block1", "block2"], example_input=images(), **options)
    assert marks(net) == flags


def test_an_empty_batch_is_refused() -> None:
    net = mixed()
    flags = marks(net)
    with pytest.raises(SplitError, match=r"shape \(0, 3, 8, 8\) and holds no sample"):
        compoff.wrap(net, "block1", example_input=images(0))
    assert marks(net) == flags


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(SplitError, match="the model is a function"):
        compoff.wrap(images, "block1")  # type: ignore[arg-type]


@pytest.mark.parametrize("example", [None, images()])
def test_a_model_is_wrapped_once(example: Tensor | None) -> None:
    net = Plain()
    wrapped = compoff.wrap(net, "block1", example_input=example)
    flags = marks(net)
    for again in (net, nn.Sequential(net), wrapped, copy.deepcopy(wrapped).base):
        with pytest.raises(SplitError, match="is wrapped already; give every split point"):
            compoff.wrap(again, "input", example_input=images())
    assert marks(net) == flags
    assert compoff.wrap(wrapped.unwrap(), "block2", example_input=images()).split_points == ("block2",)


@pytest.mark.parametrize("example", [None, images()])
def test_a_copy_of_the_model_alone_is_told_from_the_wrapped_one(example: Tensor | None) -> None:
    net = Plain()
    wrapped = compoff.wrap(net, "block1", example_input=example)
    for alone in (copy.deepcopy(net), pickle.loads(pickle.dumps(nn.Sequential(net)))):
        with pytest.raises(SplitError, match=r"copy of one that was wrapped already, .*after unwrap\(\), or copy what"):
            compoff.wrap(alone, "input", example_input=images())
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped)), wrapped):
        compoff.wrap(copy.deepcopy(twin).unwrap(), "block2", example_input=images())
        compoff.wrap(twin.unwrap(), "block2", example_input=images())


def test_modules_may_have_the_names_of_a_dicts_methods() -> None:
    net = nn.Sequential()
    for name in ("keys", "values", "items"):
        net.add_module(name, block(3, 3))
    wrapped = compoff.wrap(net, ["keys", "values", "items"], example_input=images()).eval()
    for split in wrapped.split_points:
        assert student(wrapped, images(), split).shape == (2, *SHAPE)


def test_the_default_codec_is_the_one_with_the_fewest_bytes() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert isinstance(compoff.wrap(Plain(), "block1", example_input=x).bottleneck("block1"), TransformBottleneck)
    own = compoff.wrap(Plain(), "block1", example_input=x, encoder=tiny_encoder)
    assert type(own.bottleneck("block1")) is Bottleneck
    with pytest.raises(FeatureError, match="an encoder of your own goes with"):
        compoff.wrap(Plain(), "block1", example_input=x, encoder=tiny_encoder, codec="transform")


def test_a_feature_too_wide_for_the_default_codec_is_refused_before_anything_is_changed() -> None:
    net = nn.Linear(5000, 2)
    with pytest.raises(FeatureError, match=r"shape \(5000,\) has 5000 numbers at a position.*codec=\"deepcod\""):
        compoff.wrap(net, "input", example_input=torch.randn(2, 5000))
    assert net.training
    assert net.weight.requires_grad
    compoff.wrap(net, "input", example_input=torch.randn(2, 5000), codec="deepcod")


def test_a_loop_without_calibration_says_what_to_call() -> None:
    model, x = compoff.wrap(Plain(), "block1"), torch.randn(4, 3, 8, 8)
    with pytest.raises(FitError, match=r"compoff\.calibrate\(model, batches\) first"):
        model.distillation_loss(x)
    compoff.calibrate(model, [x])
    model.distillation_loss(x).backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())


class Branches(Plain):
    """A branch that torch runs by functions of its own."""

    def trunk(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return torch.cond(y.sum() > 0, self.block1, lambda y: y * 2, (y,))


def test_operators_that_run_functions_are_refused_by_name() -> None:
    net = Branches().eval()
    words = r"such as torch\.cond .*HigherOrderOperator cond.*torch\.where"
    with pytest.raises(SplitError, match=words):
        compoff.wrap(net, "block1", example_input=images())
    with pytest.raises(SplitError, match=words):
        compoff.list_split_points(net, images())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("scripted", [torch.jit.script, lambda part: torch.jit.trace(part, images())])
def test_a_part_that_is_compiled_by_torch_jit_is_refused_and_nothing_is_left_in_the_model(scripted: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), scripted(nn.ReLU()), nn.Conv2d(8, 8, 3))
    for door in (lambda x: compoff.list_split_points(net, x), lambda x: compoff.wrap(net, "2", example_input=x)):
        with pytest.raises(SplitError, match=r"'1' was compiled by torch\.jit"):
            door(torch.zeros(2, 3, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (net, net[0], net[2]))


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(2, 4, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2)),
        {"picture": torch.zeros(2, 3, 8, 8)},
    ],
    ids=["channels", "dtype", "too many", "name"],
)
def test_an_example_that_the_model_refuses_is_named(example: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3))
    for door in (
        lambda: compoff.list_split_points(net, example),
        lambda: compoff.wrap(net, "1", example_input=example),
    ):
        with pytest.raises(FeatureError, match=r"the model refuses a batch of (float32|uint8) \(2, "):
            door()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_loaders_batch_as_the_example_is_told_to_be_one() -> None:
    batch = next(iter(torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 1)] * 2, batch_size=2)))
    words = r"refuses a list of float32 \(2, 3, 8, 8\), int64 \(2,\): .*[^:,]\. A list .* give its inputs .* batch\[0\]"
    for net in (nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Sequential(Shaped(), nn.Conv2d(3, 8, 3))):
        with pytest.raises(FeatureError, match=words):
            compoff.wrap(net, "0", example_input=batch)
        compoff.wrap(net, "0", example_input=batch[0])


class Shaped(nn.Module):
    """Asks its input for what a list does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape)


class TrainOnly(Plain):
    """Cannot be put into eval mode, and finds that out in the middle."""

    def train(self, mode: bool = True) -> TrainOnly:
        self.stem.train(mode)
        if not mode:
            raise RuntimeError("train only")
        return self


class NoMode(Plain):
    """Its train() takes no mode."""

    def train(self) -> NoMode:  # type: ignore[override]
        return super().train()


@pytest.mark.parametrize("example", [None, images()], ids=["later", "example"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (TrainOnly, r"TrainOnly\.eval\(\) fails \(RuntimeError: train only\)"),
        (NoMode, r"NoMode\.eval\(\) fails \(TypeError: .*give one whose train\(mode\)"),
        (
            lambda: torch.export.export(Plain().eval(), (images(),)).module(),
            "eval.* fails .*as it was written",
        ),
    ],
    ids=["train only", "no mode", "exported"],
)
def test_a_model_that_cannot_be_put_into_eval_mode_is_refused_and_as_it_was(
    make: Callable[[], nn.Module], reason: str, example: Tensor | None
) -> None:
    net = make()
    flags = marks(net)
    for _ in range(2):
        with pytest.raises(SplitError, match=reason):
            compoff.wrap(net, "input", example_input=example)
        with pytest.raises(SplitError, match=reason):
            compoff.list_split_points(net, images())
    assert marks(net) == flags


@pytest.mark.parametrize("later", [False, True])
def test_a_device_without_room_for_bottlenecks_leaves_no_hooks(later: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    net, x = mixed(), images()
    flags = marks(net)
    wrapped = compoff.wrap(net, "block1") if later else None
    with monkeypatch.context() as patched:
        patched.setattr(Bottleneck, "to", full)
        with pytest.raises(torch.OutOfMemoryError):
            _ = compoff.wrap(net, "block1", example_input=x) if wrapped is None else wrapped(x)
    if wrapped is not None:
        assert not wrapped.built
        wrapped.unwrap()
    assert marks(net) == flags
