"""Hooks at inputs, ends of modules and results of functions: which tensor of which call is caught."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FeatureError
from compoff.hooks import Tap, catchers, hang, stop_listening

if TYPE_CHECKING:
    from collections.abc import Callable


class Negating:
    """Takes every tensor and gives back its negative."""

    def __init__(self) -> None:
        self.passes = 0
        self.active = True
        self.at_work = False
        self.seen: list[int] = []

    def begin(self) -> None:
        self.passes += 1

    def catch(self, index: int, tensor: Tensor) -> Tensor:
        self.seen.append(index)
        self.at_work = True
        negative = torch.neg(tensor)
        self.at_work = False
        return negative


@dataclass
class Pair:
    first: Tensor
    second: Tensor


class Inner(nn.Module):
    def forward(self, scale: float, y: Tensor, mask: Tensor | None = None) -> Any:
        y = torch.relu(y) * scale
        return {"a": [y, Pair(y + 1.0, y + 2.0)], "mask": mask}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Any:
        first = self.inner(1.0, torch.relu(x))
        return first, self.inner(2.0, y=torch.relu(x) + 1.0)


def run(*taps: Tap) -> tuple[Any, Negating]:
    net, catcher = Net(), Negating()
    handles = hang(net, catcher, taps)
    output = net(torch.ones(2, 3))
    for handle in handles:
        handle.remove()
    assert not catchers(net)
    return output, catcher


def first_values(output: Any) -> list[float]:
    """One number of every tensor that the net returns."""
    return [
        float(tensor[0, 0]) for entry in output for tensor in (entry["a"][0], entry["a"][1].first, entry["a"][1].second)
    ]


@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        (Tap("input", 0), [0, 1, 2, 2, 3, 4]),  # relu of -1
        (Tap("entry", 0, "inner", 0, repeated=True), [0, 1, 2, 4, 5, 6]),
        (Tap("entry", 0, "inner", 1, repeated=True), [1, 2, 3, 0, 1, 2]),
        (Tap("output", 0, "inner", 0, repeated=True), [-1, 2, 3, 4, 5, 6]),
        (Tap("output", 1, "inner", 0, repeated=True), [1, -2, 3, 4, 5, 6]),
        (Tap("output", 2, "inner", 1, repeated=True), [1, 2, 3, 4, 5, -6]),
        (Tap("function", 0, "", function="relu", number=0), [0, 1, 2, 4, 5, 6]),
        (Tap("function", 0, "", function="relu", number=2), [1, 2, 3, 0, 1, 2]),  # counted with those inside
        (Tap("function", 0, "inner", 1, repeated=True, function="mul"), [1, 2, 3, -4, -3, -2]),
        (Tap("function", 0, "inner", 1, repeated=True, function="add", number=1), [1, 2, 3, 4, 5, -6]),
    ],
)
def test_the_tensor_is_caught_where_the_tap_says(tap: Tap, expected: list[int]) -> None:
    output, catcher = run(tap)
    assert first_values(output) == expected
    assert (catcher.seen, catcher.passes) == ([0], 1)
    assert str(tap)


@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        (Tap("input", 0, place=(0, 0)), [0, 1, 2, 2, 3, 4]),
        (Tap("output", 0, "inner", 0, repeated=True, place=("a", 1, "first")), [1, -2, 3, 4, 5, 6]),
        (Tap("entry", 0, "inner", 1, repeated=True, place=(1, "y")), [1, 2, 3, 0, 1, 2]),
        (Tap("function", 5, "", function="relu", place=()), [0, 1, 2, 4, 5, 6]),
    ],
)
def test_a_place_says_more_than_a_number(tap: Tap, expected: list[int]) -> None:
    assert first_values(run(tap)[0]) == expected


@pytest.mark.parametrize("place", [("a", 1, "third"), ("mask",), ("a", 7), ("b",)])
def test_a_place_without_a_tensor_is_named(place: tuple[str | int, ...]) -> None:
    with pytest.raises(FeatureError, match=r"crosses is output of inner.*has none there.*wrap it again"):
        run(Tap("output", 0, "inner", place=place))


def test_what_a_catcher_itself_raises_is_not_taken_for_a_missing_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def catch(self: Negating, index: int, tensor: Tensor) -> Tensor:
        raise KeyError("of the catcher")

    monkeypatch.setattr(Negating, "catch", catch)
    with pytest.raises(KeyError, match="of the catcher"):
        run(Tap("output", 0, "inner", place=("a", 0)))


def test_the_first_tensor_comes_last_where_several_are_caught_at_one_place() -> None:
    taps = (Tap("output", 0, "inner", 0, repeated=True), Tap("output", 1, "inner", 0, repeated=True))
    output, catcher = run(*taps)
    assert catcher.seen == [1, 0]
    assert first_values(output)[:3] == [-1, -2, 3]


def test_who_does_not_listen_costs_nothing_and_changes_nothing() -> None:
    net, catcher = Net(), Negating()
    catcher.active = False
    hang(net, catcher, [Tap("function", 0, "", function="relu"), Tap("output", 0, "inner")])
    output = net(torch.ones(2, 3))
    assert first_values(output) == [1, 2, 3, 4, 5, 6]
    assert (catcher.seen, catcher.passes) == ([], 0)


def test_functions_are_listened_to_no_longer_after_an_error() -> None:
    net, catcher = Net(), Negating()
    hang(net, catcher, [Tap("function", 0, "", function="relu")])
    with pytest.raises(TypeError):
        net("no tensor")
    catcher.seen.clear()
    torch.relu(torch.ones(1))
    assert catcher.seen == []


class Interrupted(nn.Module):
    """Leaves its pass by Ctrl-C, while a function's result is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.score, self.breaks = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4), False

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        if self.breaks:
            raise KeyboardInterrupt
        beside = torch.sin(x)
        return self.score(torch.relu(self.b(torch.tanh(x))) * beside)


def at(model: compoff.Wrapped, x: Tensor) -> None:
    with model.at("b"):
        model(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: compoff.fit(model, [x], steps=1),
        lambda model, x: compoff.finish(model, [x]),
        lambda model, x: model.distillation_loss(x),
        lambda model, x: compoff.calibrate(model, [x]),
        at,
    ],
)
def test_functions_are_listened_to_no_longer_after_ctrl_c(call: Callable[[compoff.Wrapped, Tensor], Any]) -> None:
    net, x = Interrupted(), torch.randn(16, 32)
    model = compoff.wrap(net, "b", example_input=x)
    assert "function" in {feature.tap.kind for feature in model.sites["b"].features}
    if "calibrate" not in call.__code__.co_names:
        compoff.calibrate(model, [x])
    net.breaks = True
    try:
        with pytest.raises(KeyboardInterrupt):
            call(model, x)
        assert torch.overrides._get_current_function_mode() is None
    finally:
        stop_listening(net)  # or every test behind this one would be listened to


def test_of_another_model_nothing_is_ended() -> None:
    nets = [Net(), Net()]
    for net in nets:
        hang(net, Negating(), [Tap("function", 0, "", function="relu")])
        next(hook for hook in net._forward_pre_hooks.values() if hasattr(hook, "mode"))(net, ())
    stop_listening(nets[0])
    assert torch.overrides._get_current_function_mode() is not None
    stop_listening(nets[1])
    stop_listening(nets[0])
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_model_has_a_catcher_of_its_own(copied: Any) -> None:
    net, catcher = Net(), Negating()
    hang(net, catcher, [Tap("output", 0, "inner", 0, repeated=True), Tap("function", 0, "", function="relu")])
    again = copied(net)
    again(torch.ones(2, 3))
    assert catcher.seen == []
    owners = {id(found) for module in again.modules() for found in catchers(module)}
    assert len(owners) == 1
    assert id(catcher) not in owners
