"""Which tensor enters a split point, and which module made it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.codec.layout import Layout
from compoff.cutting.complaints import nearest_clean
from compoff.cutting.points import list_split_points
from compoff.cutting.sites import check_names, locate
from compoff.cutting.watching import frozen, named_modules, watch
from compoff.errors import FeatureError, SplitError
from tests.small_networks import (
    ConcatSkip,
    EarlyOutput,
    FunctionalRelu,
    FunctionalSkip,
    IdentityBehind,
    IdentitySkip,
    InputSkip,
    Nested,
    OptionalInputs,
    Plain,
    Skip,
)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8)


@pytest.mark.parametrize(
    ("net", "path", "place"),
    [
        (Plain(), "block1", "output of stem.2"),  # the ReLU: it changed the BatchNorm's tensor in place
        (Plain(), "block1.1", "output of block1.0"),
        (Plain(), "input", "input 0 of the model"),
        (Plain(), "stem", "input 0 of the model"),
        (Plain(), "stem.0", "input 0 of the model"),
        (Plain(), "classifier", "output of drop"),
        (Skip(), "block1", "output of stem.2"),
        (IdentitySkip(), "block1", "output of stem.2"),
        (IdentityBehind(), "block1", "input of block1"),
        (InputSkip(), "stem", "input 0 of the model"),
        (FunctionalSkip(), "block1", "input of block1"),
        (FunctionalRelu(), "block1", "input of block1"),
    ],
)
def test_the_feature_is_caught_where_it_first_is(net: nn.Module, path: str, place: str) -> None:
    site = locate(net, [path], (images(),))[path]
    assert [str(feature.tap) for feature in site.features] == [place]
    assert not site.sides


def test_a_module_that_runs_twice_is_told_by_its_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.linear(self.relu(self.linear(x))))

    net, x = nn.Sequential(Shared(), nn.Linear(4, 4)), (torch.randn(2, 4),)
    assert str(locate(net, ["1"], x)["1"].features[0].tap) == "output of 0.relu (call 1)"
    assert str(locate(net, ["0.linear#1"], x)["0.linear#1"].features[0].tap) == "output of 0.relu (call 0)"
    with pytest.raises(SplitError, match=r"'0.linear' is called 2 times.*: '0.linear#0', '0.linear#1'"):
        locate(net, ["0.linear"], x)
    with pytest.raises(SplitError, match=r"'0.linear#2' is not one place"):
        locate(net, ["0.linear#2"], x)


# -- several tensors across the cut


def crossing(net: nn.Module, path: str, *args: Any, **options: Any) -> tuple[list[str], list[str]]:
    site = locate(net, [path], args or (images(),), **options)[path]
    return [str(feature.tap) for feature in site.features], [str(side.tap) for side in site.sides]


class FunctionalUNet(nn.Module):
    """The way many write it by hand: activations and pooling are functions, and skips pass them by."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.down1(x))
        second = torch.relu(self.down2(nn.functional.max_pool2d(first, 2)))
        return self.up(torch.cat([nn.functional.interpolate(second, scale_factor=2.0), first], 1))


class Masked(nn.Module):
    """A mask and a step number go all the way; the mask is made wide at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.step = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(1, 24)

    def forward(self, x: Tensor, mask: Tensor, step: Tensor) -> Tensor:
        wide = (1.0 - mask.float())[:, None, :].expand(-1, 5, -1) * -1e4
        late = self.step(step.float()[:, None])
        y = self.first(x).relu() + wide.mean(1, keepdim=True)[..., :1]
        return self.second(y) + wide.mean(1, keepdim=True)[..., :1] + late[:, None]


def test_skips_are_features_of_their_own() -> None:
    assert crossing(Skip(), "block2")[0] == ["output of block1.2", "output of stem.2"]
    assert crossing(InputSkip(), "block2")[0] == ["output of stem.2", "input 0 of the model"]
    assert crossing(EarlyOutput(), "block2")[0] == ["output of block1.2", "output of stem.2"]
    assert crossing(ConcatSkip(), "block1")[0] == ["input of block1", "output of stem.2"]


def test_skips_that_functions_make_are_caught_at_the_function() -> None:
    assert crossing(FunctionalUNet(), "down2")[0] == ["input of down2", "relu() in the model"]
    assert crossing(FunctionalUNet(), "up")[0] == ["input of up"]


def test_masks_and_numbers_cross_as_they_are_as_the_inputs_they_come_from() -> None:
    inputs = (torch.randn(2, 5, 24), torch.ones(2, 7, dtype=torch.long), torch.tensor([3, 4]))
    features, sides = crossing(Masked(), "second", *inputs)
    assert features == ["input of second"]
    assert sides == ["input 1 of the model", "input 2 of the model"]


def test_skips_are_sent_or_forbidden_when_asked() -> None:
    features, sides = crossing(Skip(), "block2", skips="send")
    sizes = [locate(Skip(), ["block2"], (images(),), skips=skips)["block2"].raw_bytes for skips in ("send", "encode")]
    assert sizes == [2 * 8 * 64 * 4] * 2
    assert (features, sides) == (["output of block1.2"], ["output of stem.2"])
    with pytest.raises(SplitError) as caught:
        crossing(Skip(), "block2", skips="forbid")
    assert str(caught.value) == (
        "2 tensors cross at 'block2': the feature (8, 8, 8), 2,048 bytes a sample; skip (8, 8, 8) (output of stem.2), "
        "2,048 bytes a sample. Choose 'block1' or 'classifier', which one tensor enters, or let each of them have a "
        "bottleneck of its own with skips='encode'"
    )


def test_nested_inputs_are_searched() -> None:
    class Takes(nn.Module):
        def forward(self, parts: dict[str, Any], *, also: list[Tensor]) -> Tensor:
            return parts["a"][0] + also[0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.block = nn.Linear(32, 32), nn.Linear(32, 32), Takes()

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.block({"a": [self.one(pair[0])]}, also=[self.two(pair[1])])

    features, _ = crossing(Net(), "block", (torch.randn(2, 32), torch.randn(2, 32)))
    assert features == ["output of two", "output of one"]  # the one that was made last, then the other


@pytest.mark.parametrize(
    ("make", "sample", "path", "packed"),
    [
        (lambda: nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3)), (2, 3, 9, 8), "1", (3, 9, 8)),
        (lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(6)), (2, 9, 8, 6), "1", (6, 9, 8)),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), (2, 9, 6), "1", (6, 9)),
        (lambda: nn.Sequential(nn.ReLU(), nn.Conv1d(9, 2, 1)), (2, 9, 6), "1", (9, 6)),
        (lambda: nn.Sequential(nn.ReLU(), nn.LSTM(6, 4, batch_first=True)), (2, 9, 6), "1", (6, 9)),
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), (2, 6), "1", (6,)),
        (lambda: nn.Sequential(nn.ReLU(), nn.Conv3d(3, 2, 1)), (2, 3, 4, 5, 6), "1", (3, 20, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Dropout()), (2, 9, 6), "1", (5, 9)),  # by its maker
    ],
)
def test_channels_are_found_by_what_reads_the_feature_or_makes_it(
    make: Any, sample: tuple[int, ...], path: str, packed: tuple[int, ...]
) -> None:
    assert locate(make(), [path], (torch.randn(sample),))[path].features[0].packed_shape == packed


def test_tokens_of_an_image_are_a_map_with_the_class_token_below_it() -> None:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.block = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 16)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.block(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))

    feature = locate(Vit(), ["block"], (torch.randn(2, 3, 16, 24),))["block"].features[0]
    assert feature.layout == Layout((0, 2, 1), grid=(4, 6), leading=1)
    assert feature.packed_shape == (16, 5, 6)


def test_a_batch_that_comes_second_is_found() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.transpose(0, 1).relu())[0].transpose(0, 1)

    feature = locate(TimeFirst(), ["rnn"], (torch.randn(2, 9, 6),))["rnn"].features[0]
    assert feature.layout == Layout((1, 2, 0))
    assert (feature.shape, feature.packed_shape) == ((9, 6), (6, 9))


class TimeFirst(nn.Module):
    """Puts time before the batch, with a mask beside it, and counts how often it runs."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1  # what an instance keeps is put back
        y = self.a(x).relu().transpose(0, 1)
        loud = y.sum(2) > 0
        return (self.b(y) * loud[:, :, None]).sum(0)


@pytest.mark.parametrize(("batch", "runs"), [(1, 2), (2, 2), (5, 2), (6, 2)])
def test_the_batch_is_what_changes_with_the_number_of_samples(batch: int, runs: int) -> None:
    net, inputs, before = TimeFirst(), torch.randn(batch, 5, 8), TimeFirst.runs
    (feature,), (side,) = (site := locate(net, ["b"], (inputs,))["b"]).features, site.sides
    assert feature.layout is not None
    assert (feature.layout.order, feature.shape) == ((1, 2, 0), (5, 6))
    assert not side.batched  # its first axis is time
    assert net.runs - before == runs
    assert [point.shape for point in list_split_points(net, inputs)] == [(5, 8), (5, 6)]


def test_a_second_run_is_made_where_it_is_needed_only() -> None:
    class Counting(Plain):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            type(self).runs += 1  # what an instance keeps is put back
            return super().forward(x)

    net = Counting()
    assert locate(net, ["block1"], (images(4),))["block1"].features[0].shape == (8, 8, 8)
    assert net.runs == 1
    assert locate(net, ["block1"], (images(8),))["block1"].features[0].shape == (8, 8, 8)
    assert net.runs == 3


@pytest.mark.parametrize("batch", [4, 8])
def test_a_batch_that_views_are_folded_into_is_no_batch(batch: int) -> None:
    class Views(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    with pytest.raises(SplitError, match=rf"expected a batch of {batch} features"):
        locate(Views(), ["block1"], (torch.randn(batch, 2, 3, 8, 8),))


def test_a_model_of_one_size_of_batch_is_taken_at_its_word() -> None:
    class One(TimeFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.reshape(6, 5, 8))

    layout = locate(One(), ["b"], (torch.randn(6, 5, 8),))["b"].features[0].layout
    assert layout is not None
    assert layout.order[0] == 1


def test_auto_chooses_block_starts_that_span_the_network() -> None:
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(8)))
    sites = locate(net, ["auto"], (torch.randn(2, 8, 8, 8),))
    assert list(sites) == ["1", "3", "5", "7"]


def test_shape_is_that_of_one_sample() -> None:
    sites = locate(Plain(), ["input", "block1", "classifier"], (images(5),))
    assert {path: site.features[0].shape for path, site in sites.items()} == {
        "input": (3, 8, 8),
        "block1": (8, 8, 8),
        "classifier": (8,),
    }


def test_later_blocks_are_those_with_parameters_in_order_of_their_calls() -> None:
    sites = locate(Plain(), ["input", "block1.1", "block2"], (images(),))
    assert sites["input"].later == ("stem", "block1", "block2", "classifier")
    assert sites["block1.1"].later == ("block1.1", "block2", "classifier")
    assert sites["block2"].later == ("block2", "classifier")


def test_a_module_called_input_gives_way_to_the_models_own_input() -> None:
    net = nn.Sequential()
    net.add_module("input", nn.Linear(4, 6))
    net.add_module("next", nn.Linear(6, 2))
    site = locate(net, ["input"], (torch.randn(2, 4),))["input"]
    assert (site.features[0].shape, str(site.features[0].tap)) == ((4,), "input 0 of the model")


def test_keyword_inputs_are_inputs() -> None:
    site = locate(OptionalInputs(), ["input", "block1"], (), {"x": images(), "double": True})
    assert str(site["input"].features[0].tap) == "input 0 of the model"
    assert site["block1"].features[0].shape == (8, 8, 8)


def test_inputs_are_named_where_the_first_is_not_as_long_as_the_batch() -> None:
    class WordsFirst(Plain):
        def forward(self, words: Tensor, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x) * words.mean()

    with pytest.raises(SplitError, match=r"a batch of 7 features.*its inputs are \(7, 5\), \(4, 3, 8, 8\)"):
        locate(WordsFirst(), ["block1"], (torch.randn(7, 5), images(4)))


def test_the_run_leaves_no_trace() -> None:
    net = Nested()
    net.block1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = {name: module.training for name, module in net.named_modules()}
    locate(net, ["block2"], (images(),))
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_an_error_of_the_model_leaves_no_trace() -> None:
    net = Plain()
    with pytest.raises(FeatureError, match="channels"):
        locate(net, ["block2"], (torch.randn(2, 4, 8, 8),))
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_outputs_are_not_kept_alive() -> None:
    # What all modules of a large model return does not fit into memory together.
    alive: list[int] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(1 for tensor in made if tensor() is not None))
            y = x + 1.0
            made.append(weakref.ref(y))
            return y

    made: list[Any] = []
    locate(nn.Sequential(*[Counting() for _ in range(6)]), ["5"], (torch.randn(2, 4),))
    assert max(alive) <= 2


def test_works_inside_inference_mode() -> None:
    with torch.inference_mode():
        assert str(locate(Skip(), ["block1"], (images(),))["block1"].features[0].tap) == "output of stem.2"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("blok1", r"'blok1' is not a module of Plain; did you mean 'block1'\? modules at that depth: stem, block1"),
        ("Input", r"did you mean 'input'\?"),
        ("block1.7", r"'block1.7' is not a module of Plain.*at that depth: stem.0, stem.1"),
        ("a.b.c.d", r"'a.b.c.d' is not a module of Plain; modules at that depth: stem, block1|did you mean"),
    ],
)
def test_unknown_names_come_with_near_ones(path: str, reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        check_names(Plain(), [path])


def test_frozen_gives_every_module_its_own_mode_back() -> None:
    net = Plain()
    net.block1.eval()
    with frozen(net):
        assert not any(module.training for module in net.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(KeyError, match="stop"), frozen(net):
        raise KeyError("stop")
    assert net.training
    assert not net.block1[0].training
    assert net.block2[0].training


def test_named_modules_lists_the_model_itself() -> None:
    net = Plain()
    assert named_modules(net)[""] is net
    assert list(named_modules(net)) == [name for name, _ in net.named_modules()]


def test_what_the_wire_does_not_know_may_not_cross_as_it_is() -> None:
    net, x = Skip().bfloat16(), images().bfloat16()
    with pytest.raises(SplitError, match=r"a tensor of bfloat16.*would cross as it is.*skips=\"encode\""):
        locate(net, ["block2"], (x,), skips="send")
    assert locate(net, ["block2"], (x,))["block2"].features[1].dtype == torch.bfloat16


class Twice(nn.Module):
    """One layer runs again between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.r, self.z = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        early = self.q(self.p(x))
        late = self.p(self.r(early) + early)
        return self.z(late)


def test_the_nearest_places_are_those_of_the_right_call() -> None:
    x = torch.randn(4, 32)
    trace = watch(Twice(), (x,))
    call = next(one for one in trace.modules if one.path == "r")
    assert nearest_clean(trace, call) == "'q' or 'p#1', which one tensor enters"


class Returns(nn.Module):
    """Gives back what enters its block, which shares the input's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = x.flatten(1)
        return self.block(z), z


def test_what_the_model_returns_too_is_the_decoded_one() -> None:
    x = torch.randn(4, 8, 4)
    model = compoff.wrap(Returns().eval(), "block", example_input=x)
    compoff.calibrate(model, [x])
    with model.at("block"), torch.no_grad():
        score, feature = model(x)
    assert not torch.equal(feature, x.flatten(1))
    assert torch.equal(model.base.get_submodule("block")(feature), score)


def test_what_enters_a_block_twice_is_decoded_in_both_places() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
            seen.append((x, y))
            return x + y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Pair()

        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)
            return self.block(z, y=z)

    x, seen = torch.randn(4, 8, 4), list[tuple[Tensor, Tensor]]()
    model = compoff.wrap(Net().eval(), "block", example_input=x, codec="deepcod")
    with model.at("block"), torch.no_grad():
        model(x)
    first, second = seen[-1]
    assert torch.equal(first, second)
    assert not torch.equal(first, x.flatten(1))


def test_a_view_of_a_view_that_crosses_is_decoded_for_itself() -> None:
    """What is decoded in place of a view is another tensor: who looks at the view's memory would see the old one."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block, self.rest = nn.Linear(8, 96), nn.Linear(8, 8), nn.Linear(8, 32)

        def forward(self, x: Tensor) -> Tensor:
            wide = self.first(x)[:, :64]
            part = wide[:, :32]
            return self.rest(self.block(x)) * part + wide[:, 32:]

    assert crossing(Views(), "rest", torch.randn(2, 8))[0] == [
        "output of block",
        "__getitem__() in the model",
        "__getitem__() in the model",
    ]
