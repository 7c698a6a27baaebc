"""Calls of a head: as the model is called, by position, by keyword and nested, or an error that says how."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import compoff
from compoff.device.binding import CallForm, Path
from compoff.device.inputs import Inputs
from compoff.errors import FeatureError
from compoff.manifest import Manifest, TensorSpec
from compoff.structure import flatten
from tests.small_networks import tiny_decoder, tiny_encoder


class Sizes(NamedTuple):
    height: Any
    width: Any


class Mark(str):
    """Stands for a tensor."""


def form(parameters: list[str], args: list[Any], keywords: dict[str, Any]) -> CallForm:
    leaves, call = flatten([args, keywords], lambda value: isinstance(value, Mark))
    specs = [TensorSpec((3,) * index, "float32", batched=index != 1) for index in range(len(leaves))]
    return CallForm({"parameters": parameters, "call": call}, specs)


NESTED = form(
    ["x", "pair", "flag"],
    [Mark("x"), (Mark("a"), [Mark("b"), 2]), False],
    {"images": {"left": Mark("l"), "right": Mark("r")}, "sizes": Sizes(Mark("h"), None), "scale": 1.0},
)
TWO = {"left": "L", "right": "R"}
SIZES = Sizes("H", None)
EVERYTHING = ["X", "A", "B", "L", "R", "H"]


def test_says_how_it_is_called() -> None:
    assert repr(NESTED) == (
        "(x: float32 of (batch,), pair: (float32 of (3,), [float32 of (batch, 3, 3), 2]), flag=False, *, "
        "images: {'left': float32 of (batch, 3, 3, 3), 'right': float32 of (batch, 3, 3, 3, 3)}, "
        "sizes: {'height': float32 of (batch, 3, 3, 3, 3, 3), 'width': None}, scale=1.0)"
    )
    assert repr(form([], [], {})) == "()"


def test_labels_are_among_the_names_where_the_head_takes_them() -> None:
    """Of batches as `fit` takes them, others fall away."""
    found: list[frozenset[str] | None] = []
    for labels in (Mark("labels"), None):
        leaves, call = flatten([[Mark("x"), labels], {}], lambda value: isinstance(value, Mark))
        specs = tuple(TensorSpec((3,), "float32") for _ in leaves)
        described = {"parameters": ["x", "labels"], "call": call}
        manifest = Manifest("head", "", "input", "Net", specs, (), {}, (), (), 8, call=described)
        found.append(Inputs(manifest, lambda value: None).names)
    assert found == [{"x", "labels"}, {"x"}]


IN_ANY_WAY = pytest.mark.parametrize(
    ("inputs", "keywords"),
    [
        (("X", ("A", ["B", 2])), {"images": TWO, "sizes": SIZES}),
        (("X", ["A", ("B", 2)], False), {"images": TWO, "sizes": SIZES, "scale": 1.0}),
        ((), {"pair": ("A", ["B", 2]), "x": "X", "sizes": SIZES, "images": TWO}),
        (("X",), {"pair": ("A", ["B", 2]), "images": {"right": "R", "left": "L"}, "sizes": SIZES, "flag": False}),
        (("X", ("A", ["B", 2])), {"images": OrderedDict(TWO), "sizes": {"height": "H", "width": None}}),
        (("X", ("A", ["B", 2])), {"images": SimpleNamespace(**TWO), "sizes": SimpleNamespace(height="H", width=None)}),
    ],
)


@IN_ANY_WAY
def test_the_same_call_in_any_way(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    assert NESTED.bind(inputs, keywords) == EVERYTHING


def followed(path: Path, value: Any) -> Any:
    for key in path:
        value = value[key] if isinstance(key, int) or isinstance(value, dict) else getattr(value, key)
    return value


@IN_ANY_WAY
def test_the_way_to_each_tensor_leads_to_it(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    found = [followed(NESTED.path(index, inputs, keywords), (inputs, keywords)) for index in range(6)]
    assert found == EVERYTHING
    assert NESTED.path(3, [torch.ones(index) for index in range(6)], {}) == (0, 3)


def test_the_tensors_alone_in_order() -> None:
    tensors = [torch.ones(index) for index in range(6)]
    assert all(map(torch.equal, NESTED.bind(tensors, {}), tensors))


@pytest.mark.parametrize(
    "called",
    [
        form(["x", "shift", "scale"], [Mark("x"), Mark("v")], {}),
        form(["x", "shift", "scale"], [Mark("x"), Mark("v"), None], {}),
        form(["x", "shift"], [Mark("x")], {"shift": Mark("v")}),
        form(["x", "shift"], [], {"x": Mark("x"), "shift": Mark("v")}),
        form(["x"], [Mark("x"), Mark("v")], {}),  # *rest
        form(["x"], [Mark("x")], {"shift": Mark("v")}),  # for the model two are too many by position
        form(["pair", "scale"], [(Mark("a"), Mark("b")), None], {}),
        form(["x", "flag"], [Mark("x"), True], {"more": [Mark("m"), Mark("n")]}),
    ],
)
def test_the_tensors_alone_where_python_puts_them_there_or_nowhere(called: CallForm) -> None:
    tensors = [torch.ones(index) for index in range(len(called._inputs))]
    assert all(map(torch.equal, called.bind(tensors, {}), tensors))


@pytest.mark.parametrize(
    "called",
    [
        form(["x", "scale", "shift"], [Mark("x"), None, Mark("v")], {}),
        form(["x", "scale", "shift"], [Mark("x")], {"shift": Mark("v")}),
        form(["x", "scale", "shift"], [], {"x": Mark("x"), "shift": Mark("v")}),
        form(["x", "scale"], [Mark("x"), True], {"shift": Mark("v")}),
        form(["x", "scale"], [], {"scale": Mark("v"), "x": Mark("x")}),
    ],
)
def test_the_tensors_alone_where_the_model_takes_one_for_another_are_refused(called: CallForm) -> None:
    with pytest.raises(FeatureError, match=r"the model takes tensor [01] for '(scale|x)', which is another"):
        called.bind([torch.ones(1), torch.ones(2)], {})


GOOD: dict[str, Any] = {"x": "X", "pair": ("A", ["B", 2]), "images": TWO, "sizes": SIZES}


@pytest.mark.parametrize(
    ("inputs", "keywords", "words"),
    [
        ((), {}, "'x' and 'pair' and 'images' and 'sizes' must be given"),
        ((), {**GOOD, "y": 1, "z": 2}, "there is no 'y' and no 'z'"),
        ((), {**GOOD, "*0": 1}, r"there is no '\*0'"),
        (("X",), GOOD, "'x' cannot be given twice"),
        (("X", ("A", ["B", 2]), False, None), {}, "4 were given by position"),
        ((), {**GOOD, "flag": True}, "'flag' is True and became the constant False at the export; export again"),
        ((), {**GOOD, "flag": 0}, "'flag' is 0 and became the constant False"),
        ((), {**GOOD, "scale": 1}, "'scale' is 1 and became the constant 1.0"),
        ((), {**GOOD, "scale": torch.ones(2)}, r"'scale' is tensor\(\[1., 1.\]\) and became the constant 1.0"),
        ((), {**GOOD, "pair": ("A", ["B", 3])}, r"'pair'\[1\]\[1\] is 3 and became the constant 2"),
        ((), {**GOOD, "pair": ("A",)}, "'pair' is a tuple of 1, expected 2 in a tuple"),
        ((), {**GOOD, "pair": "AB"}, "'pair' is a str, expected 2 in a tuple"),
        ((), {**GOOD, "pair": ("A", {"B": 2})}, r"'pair'\[1\] is a dict of B, expected 2 in a list"),
        ((), {**GOOD, "images": {"left": "L"}}, "'images' is a dict of left, expected left, right"),
        ((), {**GOOD, "images": {**TWO, "more": 1}}, "'images' is a dict of left, right, more, expected left, right"),
        ((), {**GOOD, "images": ["L", "R"]}, "'images' is a list of 2, expected left, right"),
        ((), {**GOOD, "images": {}}, "'images' is a dict of nothing"),
        ((), {**GOOD, "sizes": ("H", None)}, "'sizes' is a tuple of 2, expected height, width"),
        ((), {**GOOD, "sizes": Sizes("H", 1)}, r"'sizes'\['width'\] is 1 and became the constant None"),
        ((), {**GOOD, "sizes": None}, "'sizes' is a NoneType"),
    ],
)
def test_another_call_says_what_is_wrong(inputs: tuple[Any, ...], keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(FeatureError, match=words) as caught:
        NESTED.bind(inputs, keywords)
    assert str(caught.value).startswith(f"the head takes {NESTED!r}, or its tensors alone in this order; ")


def test_a_keyword_beside_all_tensors_is_looked_at() -> None:
    called, x = form(["x", "flag"], [Mark("x"), False], {}), torch.ones(2)
    assert called.bind((x,), {"flag": False}) == [x]
    with pytest.raises(FeatureError, match="'flag' is True and became the constant False at the export"):
        called.bind((x,), {"flag": True})
    with pytest.raises(FeatureError, match="there is no 'y'"):
        called.bind((x,), {"y": 1})


class Alone(NamedTuple):
    x: Any


@pytest.mark.parametrize("taken", [{"x": Mark("x")}, OrderedDict(x=Mark("x")), Alone(Mark("x"))])
def test_a_dict_is_taken_where_the_model_takes_one(taken: Any) -> None:
    assert form(["x"], [taken], {}).bind(({"x": "X"},), {}) == ["X"]


def test_arguments_without_a_name_of_their_own() -> None:
    several = form(["x"], [Mark("x"), Mark("y"), Mark("z")], {})
    assert several.bind(["X", "Y", "Z"], {}) == ["X", "Y", "Z"]
    with pytest.raises(FeatureError, match="must be given"):
        several.bind(["X", "Y"], {})


nested = st.recursive(
    st.builds(Mark, st.text(max_size=3)) | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(nested, max_size=3), st.dictionaries(st.text(max_size=3), nested, max_size=3))
def test_any_call_binds_itself(args: list[Any], keywords: dict[str, Any]) -> None:
    keywords = {f"k{name}": value for name, value in keywords.items()}
    called = form([f"p{index}" for index in range(len(args))], args, keywords)
    marks = flatten([args, keywords], lambda value: isinstance(value, Mark))[0]
    assert called.bind(args, keywords) == marks
    by_name = {**keywords, **{f"p{index}": value for index, value in enumerate(args)}}
    assert called.bind([], by_name) == marks


# -- whole heads


class Several(nn.Module):
    """Takes inputs in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(
        self, x: Tensor, /, y: Tensor, flag: bool = True, *, more: dict[str, Tensor], scale: float = 2.0
    ) -> Any:
        inner = self.stem(torch.cat([x, 2 * y, 3 * more["a"], 4 * more["b"]], 1))
        return self.body(inner) * (scale if flag else 1.0)


@pytest.fixture(scope="module")
def several() -> tuple[compoff.Wrapped, compoff.Head, compoff.Tail]:
    torch.manual_seed(0)
    wrapped = compoff.wrap(Several(), "body", encoder=tiny_encoder, decoder=tiny_decoder).eval()
    wrapped(torch.ones(2, 1), torch.ones(2, 2), more={"a": torch.ones(2, 1), "b": torch.ones(2, 2)})
    return wrapped, *compoff.export(wrapped, "body")


def test_a_head_takes_what_the_model_takes(several: tuple[compoff.Wrapped, compoff.Head, compoff.Tail]) -> None:
    wrapped, head, tail = several
    x, y, a, b = torch.randn(3, 1), torch.randn(3, 2), torch.randn(3, 1), torch.randn(3, 2)
    with wrapped.at("body"), torch.no_grad():
        expected = wrapped(x, y, more={"a": a, "b": b})
    for payload in (
        head(x, y, more={"b": b, "a": a}),
        head(x, y.numpy(), True, more={"a": a, "b": b}, scale=2.0),
        head(x, y=y, flag=True, more={"a": a, "b": b}, quality=0),
        head(x, y, a, b),
    ):
        torch.testing.assert_close(tail(payload), expected, rtol=0, atol=1e-5)
    with pytest.raises(FeatureError, match=r"'flag' is False and became the constant True at the export"):
        head(x, y, False, more={"a": a, "b": b})
    with pytest.raises(FeatureError, match=r"\(x: float32 of \(batch, 1\), y: .*, flag=True, \*, more: \{'a': .*, 'b'"):
        head(x, y)
    with pytest.raises(FeatureError, match=r"input 2 has shape \(3, 2\); expected float32 of shape"):
        head(x, y, more={"a": b, "b": a})
    assert len(head.symbols(x, y, more={"a": a, "b": b})) == 1


def test_a_head_that_knows_no_call_takes_tensors_in_order(
    several: tuple[compoff.Wrapped, compoff.Head, compoff.Tail],
) -> None:
    from dataclasses import replace

    head = several[1]
    old = compoff.Head(replace(head.manifest, call={}), head.tables, head.runner)
    x, y, a, b = torch.randn(3, 1), torch.randn(3, 2), torch.randn(3, 1), torch.randn(3, 2)
    assert bytes(old(x, y, a, b)) == bytes(head(x, y, a, b)) == bytes(old(x, [y, None], {"a": a, "b": b}))
    with pytest.raises(FeatureError, match=r"3 inputs were given, and by name none; this head of Several takes 4"):
        old(x, y, a)
    with pytest.raises(FeatureError, match="by name b"):
        old(x, y, a, b, b=b)
