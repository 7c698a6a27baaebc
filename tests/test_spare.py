"""What a model writes and keeps while it is fitted, calibrated, measured or exported is gone afterwards."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.spare import changed_since, kept_by, spare_attributes, spare_buffers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from compoff.recipe import CodecName


class Counting(nn.Module):
    """Counts its calls, remembers the largest value, and computes with it, as observers do."""

    calls: Tensor
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("largest", torch.ones(()))
        self.register_buffer("none", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = torch.relu(self.first(x))
        with torch.no_grad():
            self.largest.copy_(torch.maximum(self.largest, y.max()))
        return self.second(y / self.largest)


def batches() -> list[Tensor]:
    return [torch.randn(16, 32) * scale for scale in (1.0, 4.0)]


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_same(net: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_what_a_fit_passes_through_a_model_leaves_its_buffers_alone(codec: CodecName, tmp_path: Path) -> None:
    net, data = Counting(), batches()
    buffers, before = dict(net.named_buffers()), state_of(net)
    wrapped = compoff.wrap(net, "second", example_input=data[0], codec=codec)
    compoff.calibrate(wrapped, data)
    assert_same(net, before)
    wrapped.distillation_loss(data[0]).backward()
    assert_same(net, before)
    compoff.fit(wrapped, data, steps=4)
    assert_same(net, before)
    compoff.finish(wrapped, data)
    assert_same(net, before)
    assert all(buffers[name] is buffer for name, buffer in net.named_buffers())
    wrapped.save(tmp_path / "fitted.safetensors")
    assert compoff.load(tmp_path / "fitted.safetensors", Counting()).split_points == ("second",)


def test_a_fit_of_a_model_that_counts_can_be_resumed(tmp_path: Path) -> None:
    data = batches()

    class Killed(Exception):
        pass

    class Dying(list[Tensor]):
        rounds = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.rounds += 1
            if self.rounds == 4:
                raise Killed
            return super().__iter__()

    def fit(given: list[Tensor]) -> compoff.FitReport:
        wrapped = compoff.wrap(Counting(), "second", example_input=data[0])
        return compoff.fit(wrapped, given, steps=8, resume=tmp_path / "state.safetensors")

    with pytest.raises(Killed):
        fit(Dying(data))
    assert fit(data).splits["second"].loss == pytest.approx(
        compoff.fit(compoff.wrap(Counting(), "second", example_input=data[0]), data, steps=8).splits["second"].loss
    )


def test_one_buffer_in_two_modules_stays_one() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    net[1].running_mean = net[0].running_mean
    mean = net[0].running_mean
    with spare_buffers(net):
        assert net[0].running_mean is not mean
        assert net[1].running_mean is net[0].running_mean
    assert net[0].running_mean is mean
    assert net[1].running_mean is mean


def test_buffers_come_back_after_an_error() -> None:
    net = Counting()
    calls = net.calls
    with contextlib.suppress(RuntimeError), spare_buffers(net):
        net.calls = torch.ones(3, dtype=torch.long)
        net(torch.zeros(2, 3))
    assert net.calls is calls
    assert not calls


class Keeping(nn.Module):
    """Keeps what it computed: in an attribute, in a list and in a dict of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.end = nn.Linear(4, 4), nn.Linear(4, 2)
        self.last: Tensor | None = None
        self.maps: list[Tensor] = []
        self.info: dict[str, list[Tensor]] = {"maps": []}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        self.maps.append(self.last)
        self.info["maps"].append(self.last)
        self.info["more"] = [self.last]
        self.new = self.last
        return self.end(self.last)


def test_what_a_model_keeps_and_its_hooks_collect_is_put_back() -> None:
    net, seen = Keeping(), [torch.zeros(1)]
    net.body.register_forward_hook(lambda module, args, output: seen.append(output))
    net.body.register_forward_pre_hook(lambda module, args: SEEN.append(args))
    maps, inner = net.maps, net.info["maps"]
    with contextlib.suppress(ZeroDivisionError), spare_attributes(net):
        net(torch.ones(2, 4))
        assert (len(seen), len(SEEN), len(maps)) == (2, 1, 1)
        raise ZeroDivisionError
    assert (net.last, hasattr(net, "new"), len(seen), SEEN) == (None, False, 1, [])
    assert net.maps is maps
    assert net.info == {"maps": []}
    assert net.info["maps"] is inner
    assert not maps


SEEN: list[object] = []


def test_an_export_leaves_no_tensors_without_numbers_in_the_model() -> None:
    net, seen = Keeping().eval(), []
    net.body.register_forward_hook(lambda module, args, output: seen.append(output))
    net(torch.ones(2, 4))
    kept = net.last
    wrapped = compoff.wrap(net, "end", example_input=torch.ones(2, 4), codec="deepcod", channels=1)
    compoff.export(wrapped, "end")
    assert net.last is kept
    assert len(net.maps) == len(seen) == 1


@pytest.mark.parametrize("codec", ["transform", "deepcod"])
def test_what_is_fitted_leaves_no_trace_in_plain_attributes(codec: CodecName) -> None:
    net, heard = Keeping().eval(), []
    net.body.register_forward_hook(lambda module, args, output: heard.append(len(output)))
    net(torch.ones(2, 4))
    before, kept = kept_by(net), net.last
    data = [torch.randn(8, 4), torch.randn(8, 4)]
    wrapped = compoff.wrap(net, "end", example_input=data[0], codec=codec, channels=1)
    calls = len(heard)
    for called in (compoff.calibrate, compoff.fit, compoff.finish):
        called(wrapped, data)
        assert len(heard) > calls  # who listens on purpose still hears it
        calls = len(heard)
        with pytest.raises(compoff.errors.FeatureError):
            compoff.fit(wrapped, [data[0], data[0][:, :3]], steps=2)
    assert wrapped.unwrap().last is kept
    assert net.maps == [kept]
    assert changed_since(before, net) == []


def test_what_changed_is_told_by_what_it_holds() -> None:
    net = nn.Sequential(nn.ReLU())
    net.calls, net.rates, net.nan, net.other = 0, {"a": [0.5, (1,)]}, float("nan"), object()
    net[0].last, net.own = torch.ones(2), [net.rates]
    net.rates["itself"] = net.rates
    before = kept_by(net)
    net[0].last, net.other = torch.ones(2), object()
    assert changed_since(before, net) == []
    net[0].last.add_(0)  # not looked at, but said to have changed
    before = kept_by(net)
    net[0].last, net.rates["a"][0], net.new = torch.zeros(2), 1.0, None
    assert changed_since(before, net) == ["rates", "own", "0.last"]
    net.calls, net.rates["b"], net.nan = True, 0, 1.0
    net[0].last = torch.zeros(3)
    assert changed_since(before, net) == ["calls", "rates", "nan", "own", "0.last"]


class Remembers(nn.Module):
    """Keeps what it saw in every kind of container, and a running mean in a tensor that no state has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 4)
        self.mean = torch.zeros(32)
        self.held = {"inside": [torch.zeros(2)]}
        self.last: deque[float] = deque(maxlen=3)
        self.ordered, self.counted = OrderedDict[str, int](), Counter[str]()
        self.grouped: defaultdict[str, list[int]] = defaultdict(list)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.held["inside"][0].add_(1)
        self.last.append(float(x.detach().sum()))
        self.ordered[str(len(self.ordered))] = 1
        self.counted["passes"] += 1
        self.grouped["passes"].append(1)
        return self.second(torch.tanh(self.first(x - self.mean)))


def test_whatever_a_model_keeps_is_as_it_was_after_a_look_a_wrap_and_a_fit() -> None:
    net, x = Remembers().eval(), torch.randn(8, 32)
    net(x)
    before = copy.deepcopy(net)
    compoff.list_split_points(net, x)
    model = compoff.wrap(net, "second", example_input=x)
    compoff.fit(model, [x], steps=2)
    model.unwrap()
    assert torch.equal(net.mean, before.mean)
    assert torch.equal(net.held["inside"][0], before.held["inside"][0])
    for name in ("last", "ordered", "counted", "grouped"):
        ours, theirs = getattr(net, name), getattr(before, name)
        assert (ours, type(ours)) == (theirs, type(theirs)), name
    assert net.last.maxlen == 3
    assert torch.equal(net(x), before(x))
