"""What a watched run makes of objects that a model hands around, in which no tensors are looked for."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import compoff
from compoff.cutting.watching import watch
from compoff.errors import FitError, SplitError
from tests.small_networks import marks

if TYPE_CHECKING:
    from collections.abc import Callable


class Returns(nn.Module):
    """Returns what is made of its answer."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.made = nn.Linear(8, 32), nn.Linear(32, 3), made

    def forward(self, x: Tensor) -> Any:
        return self.made(self.second(self.first(x).relu()))


class Easy(dict[str, Any]):
    """A dict of a class of its own."""


class Several(list[Any]):
    """A list of a class of its own."""


class Registered(OrderedDict[str, Any]):
    """One that PyTorch is told how to look into, as those of transformers are."""


pytree.register_pytree_node(
    Registered,
    lambda value: (list(value.values()), list(value)),
    lambda parts, names: Registered(zip(names, parts, strict=True)),
    serialized_type_name="tests.cutting.test_watching.Registered",
)


@dataclass
class Entries:
    """A dataclass around anything."""

    logits: Any


Named = namedtuple("Named", "logits")


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda y: Easy(logits=y), "Easy"),
        (lambda y: UserDict(logits=y), "UserDict"),
        (lambda y: Several([y]), "Several"),
        (lambda y: SimpleNamespace(logits=y), "SimpleNamespace"),
        (lambda y: (one for one in (y,)), "generator"),
        (lambda y: torch.distributions.Normal(y, 1.0), "Normal"),
        (lambda y: (3, Entries(SimpleNamespace(logits=y))), "SimpleNamespace"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_output_that_hides_its_tensors_is_named(made: Callable[[Tensor], Any], name: str) -> None:
    net, x = Returns(made), torch.randn(4, 8)
    flags = marks(net)
    told = rf"returns an object of class {name}; tensors are looked for in tuples, .*Wrap the model in a module that"
    with pytest.raises(SplitError, match=told):
        compoff.wrap(net, "second", example_input=x)
    with pytest.raises(SplitError, match=told):
        compoff.list_split_points(net, x)
    assert marks(net) == flags
    with pytest.raises(SplitError, match=told):
        compoff.fit(compoff.wrap(net, "second"), [x], steps=1, progress=False)


@pytest.mark.parametrize("made", [lambda y: Registered(logits=y), Entries, Named, lambda y: (y, SimpleNamespace(a=1))])
def test_an_output_that_is_looked_into_is_taken(made: Callable[[Tensor], Any]) -> None:
    compoff.calibrate(compoff.wrap(Returns(made), "second"), [torch.randn(40, 8)])


def test_an_output_without_tensors_is_none_that_hides_them() -> None:
    model = compoff.wrap(Returns(lambda y: {"size": len(y), "name": None}), "second", example_input=torch.randn(2, 8))
    with pytest.raises(FitError, match="returns no floating-point tensor"):
        compoff.fit(model, [torch.randn(4, 8)], steps=1, progress=False)


class Carried(nn.Module):
    """Blocks that hand an object on."""

    class Block(nn.Module):
        """Works on what the object holds."""

        def __init__(self) -> None:
            super().__init__()
            self.work = nn.Linear(8, 8)

        def forward(self, state: SimpleNamespace) -> SimpleNamespace:
            return SimpleNamespace(x=self.work(state.x).relu())

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.Block(), self.Block()])

    def forward(self, x: Tensor) -> Tensor:
        state = SimpleNamespace(x=x)
        for block in self.blocks:
            state = block(state)
        return state.x


def test_an_argument_that_hides_its_tensors_is_named() -> None:
    words = r"enters 'blocks\.1' is an object of class SimpleNamespace; tensors are .* such as one inside it"
    with pytest.raises(SplitError, match=words):
        compoff.wrap(Carried(), "blocks.1", example_input=torch.zeros(2, 8))
    compoff.wrap(Carried(), "blocks.1.work", example_input=torch.zeros(2, 8))


class Spectrum(nn.Module):
    """A block that works on complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.last = nn.Identity(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(torch.fft.rfft(x)).abs())


def test_complex_numbers_are_not_called_tokens() -> None:
    with pytest.raises(SplitError, match=r"is torch\.complex64 \(no symbols .*\); choose .* before or after it"):
        compoff.wrap(Spectrum(), "block", example_input=torch.zeros(2, 8))


class Hookless(nn.Sequential):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self.forward(*args, **keywords)


@pytest.mark.parametrize("split", ["1", "input"])
def test_a_class_that_runs_no_hooks_is_refused_when_it_is_wrapped(split: str) -> None:
    with pytest.raises(SplitError, match=r"Hookless\.__call__ does not run the model's hooks"):
        compoff.wrap(Hookless(nn.Linear(8, 32), nn.Linear(32, 3)), split, example_input=torch.zeros(2, 8))


class Forgiving(nn.Module):
    """Goes on where a part of it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(32, 32), Failing(), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        try:
            x = self.second(x)
        except ValueError:
            x = x.relu()
        return self.last(x)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


def test_a_part_that_fails_and_is_forgiven_does_not_shift_the_others() -> None:
    trace = watch(Forgiving(), (torch.randn(8, 32),))
    assert [(call.path, call.scope) for call in trace.modules] == [("", -1), ("first", 0), ("second", 0), ("last", 0)]
    assert {call.scope for call in trace.functions if call.name in ("relu", "mean")} == {0}
    assert [bool(call.returned) for call in trace.modules] == [True, True, False, True]
