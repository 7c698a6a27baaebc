"""Nested values, apart and together again."""

from __future__ import annotations

import importlib
import json
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from compoff.errors import ArtifactError
from compoff.record import Record
from compoff.structure import flatten, importable, imported, unflatten

if TYPE_CHECKING:
    from pathlib import Path


class Leaf:
    """Something that is no constant."""


def is_leaf(value: Any) -> bool:
    return isinstance(value, Leaf)


def nothing(path: str) -> None:
    """Finds no class, as where the model's library is not installed."""


constants = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    constants | st.builds(Leaf),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


@given(nested)
def test_comes_together_as_it_was_through_json(value: Any) -> None:
    leaves, description = flatten(value, is_leaf)
    again = unflatten(json.loads(json.dumps(description)), leaves)
    assert again == value
    assert repr(again) == repr(value)  # 1 == 1.0 == True, and the order of a dict does not count there


def test_description_is_golden() -> None:
    leaf = Leaf()
    leaves, description = flatten({"b": [leaf, None], "a": (leaf, 1.5, "x", True)}, is_leaf)
    assert leaves == [leaf, leaf]
    assert description == {
        "dict": [
            ["b", {"list": [{"leaf": 0}, {"value": None}]}],
            ["a", {"tuple": [{"leaf": 1}, {"value": 1.5}, {"value": "x"}, {"value": True}]}],
        ]
    }


class Mixed(NamedTuple):
    boxes: Any
    labels: Any = 3


@dataclass
class Detection:
    boxes: Any
    scores: Any = None
    name: str = "cat"


@dataclass(frozen=True)
class Frozen:
    values: Any
    area: Any = field(init=False, default=7)


@dataclass
class Slotted:
    __slots__ = ("keys",)
    keys: Any


@dataclass
class Watched:
    """Says when it is made by calling it."""

    value: Any
    made: ClassVar[list[str]] = []

    def __post_init__(self) -> None:
        self.made.append("called")


class Outer:
    @dataclass
    class Inner:
        value: Any


OBJECTS = [
    Mixed(Leaf(), Leaf()),
    [Mixed(Leaf(), 4), Detection((Leaf(), 1), {"a": Leaf()})],
    Detection(Detection(Leaf()), name="dog"),
    Frozen(Leaf()),
    Slotted(Leaf()),
    Outer.Inner(Leaf()),
    OrderedDict([("b", Leaf()), (1, None), ("a", Leaf())]),
    {1: Leaf(), "1": 2, -3: {}},
]


@pytest.mark.parametrize("value", OBJECTS, ids=[type(value).__name__ for value in OBJECTS])
def test_objects_come_back_as_they_were_through_json(value: Any) -> None:
    leaves, description = flatten(value, is_leaf)
    again = unflatten(json.loads(json.dumps(description)), leaves, importable)
    assert type(again) is type(value)
    assert again == value or isinstance(value, Slotted)
    assert repr(again) == repr(value)
    assert flatten(again, is_leaf) == (leaves, description)


def test_the_description_of_an_object_is_golden() -> None:
    leaf = Leaf()
    assert flatten(Detection(leaf, [leaf]), is_leaf) == (
        [leaf, leaf],
        {
            "dataclass": {
                "class": "tests.test_structure:Detection",
                "fields": [["boxes", {"leaf": 0}], ["scores", {"list": [{"leaf": 1}]}], ["name", {"value": "cat"}]],
                "empty": [],
            }
        },
    )


def test_the_outputs_of_transformers_come_back_without_what_is_none() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput

    value = BaseModelOutputWithPooling(last_hidden_state=torch.ones(2, 3), attentions=(torch.zeros(1), torch.ones(1)))
    leaves, description = flatten(value, lambda part: isinstance(part, torch.Tensor))
    again = unflatten(json.loads(json.dumps(description)), leaves, importable)
    assert type(again) is BaseModelOutputWithPooling
    assert isinstance(again, ModelOutput)
    assert list(again) == ["last_hidden_state", "attentions"] == list(value)
    assert again.pooler_output is None
    assert again[0] is again["last_hidden_state"] is again.last_hidden_state is leaves[0]
    assert again.to_tuple()[1] is again.attentions
    again.pooler_output = leaves[0]
    assert list(again) == ["last_hidden_state", "attentions", "pooler_output"]
    record = unflatten(description, leaves, nothing)
    assert list(record) == list(value)
    assert record.pooler_output is None
    assert record[0] is record["last_hidden_state"] is record.last_hidden_state is leaves[0]


def test_what_torch_returns_from_max_comes_back() -> None:
    value = torch.tensor([[1.0, 3.0], [5.0, 2.0]]).max(dim=1)
    leaves, description = flatten(value, lambda part: isinstance(part, torch.Tensor))
    assert list(description) == ["namedtuple"]
    again = unflatten(description, leaves, imported)
    assert type(again) is type(value)
    assert again.values is leaves[0]
    record = unflatten(description, leaves, nothing)
    values, indices = record
    assert (record.values is values, record.indices is indices is leaves[1]) == (True, True)


class Setter:
    """A data descriptor that says when it is used."""

    used: ClassVar[list[Any]] = []

    def __set__(self, instance: Any, value: Any) -> None:
        self.used.append(value)


@dataclass
class Described:
    value: Any
    other: Any = 1


Described.value = Setter()  # type: ignore[assignment]


class Opinionated(type):
    """A metaclass that refuses to be looked at."""

    def __getattr__(cls, name: str) -> Any:
        raise RuntimeError(name)


def test_nothing_of_a_class_runs_or_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("opinionated")
    vars(module).update(Refusing=Opinionated("Refusing", (), {}), Described=Described)
    monkeypatch.setitem(sys.modules, "opinionated", module)
    fields = [["value", {"leaf": 0}], ["other", {"value": 1}]]
    for name in ("Described", "Refusing"):
        for form in ("dataclass", "namedtuple", "mapping"):
            description = {form: {"class": f"opinionated:{name}", "fields": fields, "empty": []}}
            assert type(unflatten(description, [Leaf()], importable)) is Record
    assert Setter.used == []


def test_no_class_is_called() -> None:
    leaves, description = flatten(Watched(Leaf()), is_leaf)
    Watched.made.clear()
    assert unflatten(description, leaves, importable).value is leaves[0]
    assert Watched.made == []


class Extended(Detection):
    """Has a dictionary of its own."""


def extended(value: Any) -> Any:
    value.extra = 1
    return value


class Subclass(OrderedDict[str, Any]):
    """An ordered dict that may keep attributes."""


@pytest.mark.parametrize(
    "value",
    [
        {1.5: 2},
        {True: 2},
        {(1, 2): 2},
        OrderedDict({None: 1}),
        defaultdict(list),
        extended(Subclass()),
        extended(Extended(1)),
        {1, 2},
        b"bytes",
        1j,
        object(),
        torch.Size([1]),
    ],
)
def test_what_cannot_be_described_is_named(value: Any) -> None:
    with pytest.raises(ArtifactError, match=f"the model returns a {type(value).__name__}; expected tensors and plain"):
        flatten([value], is_leaf)


def test_values_that_hold_themselves_are_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ArtifactError, match="nested without end"):
        flatten(value, is_leaf)


def described(path: str, form: str = "dataclass", names: tuple[Any, ...] = ("boxes", "scores", "name")) -> Any:
    return {form: {"class": path, "fields": [[name, {"value": 1}] for name in names], "empty": []}}


@pytest.mark.parametrize(
    "description",
    [
        described("os:system"),
        described("subprocess:Popen"),
        described("builtins:eval"),
        described("no.such.module:Thing"),
        described("tests.test_structure:Missing"),
        described("tests.test_structure:Detection", names=("boxes", "scores")),
        described("tests.test_structure:Detection", names=("scores", "boxes", "name")),
        described("tests.test_structure:Detection", names=("boxes", "scores", "__class__")),
        described("tests.test_structure:Detection", form="namedtuple"),
        described("tests.test_structure:Detection", form="mapping"),
        described("tests.test_structure:Mixed", form="dataclass", names=("boxes", "labels")),
        described("tests.test_structure:Mixed", form="namedtuple", names=("boxes",)),
        described("collections:OrderedDict", form="dataclass"),
        described("collections:defaultdict", form="mapping"),
        described("builtins:tuple", form="namedtuple", names=()),
        described("tests.test_structure:Outer.Inner.value", names=("value",)),
        described("a b:c"),
        described(""),
        described(":"),
        described("..:x"),
    ],
)
def test_what_is_no_class_of_these_fields_becomes_a_record(description: Any) -> None:
    for find in (importable, imported, nothing):
        found = unflatten(description, [], find)
        assert type(found) is Record
        ((_, content),) = description.items()
        assert [name for name, _ in found.items()] == [name for name, _ in content["fields"]]


def test_names_from_elsewhere_import_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_by_mistake.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    description = described("imported_by_mistake:Thing")
    assert type(unflatten(description, [])) is Record


def test_a_module_that_cannot_be_imported_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_on_import.py").write_text("raise RuntimeError('no')")
    monkeypatch.syspath_prepend(tmp_path)
    assert type(unflatten(described("raises_on_import:Thing"), [], importable)) is Record


def test_the_caller_says_where_the_value_is_from() -> None:
    with pytest.raises(ArtifactError, match=r"^the caller gave a set"):
        flatten({1}, is_leaf, "the caller gave")


@pytest.mark.parametrize(
    "description",
    [
        None,
        3,
        "leaf",
        [],
        {},
        {"leaf": 2},
        {"leaf": -1},
        {"leaf": True},
        {"leaf": "0"},
        {"leaf": 0, "value": 1},
        {"value": [1]},
        {"value": object()},
        {"tuple": 3},
        {"list": {"leaf": 0}},
        {"dict": {"a": {"leaf": 0}}},
        {"dict": [["a"]]},
        {"dict": [["a", {"leaf": 0}, 1]]},
        {"dict": [[1.5, {"leaf": 0}]]},
        {"dict": [[True, {"leaf": 0}]]},
        {"dict": [["a", {"leaf": 0}], ["a", {"leaf": 1}]]},
        {"dataclass": []},
        {"dataclass": {}},
        {"dataclass": {"class": "a:b", "fields": []}},
        {"dataclass": {"class": "a:b", "fields": [], "empty": [], "more": 1}},
        {"dataclass": {"class": 1, "fields": [], "empty": []}},
        {"dataclass": {"class": "a:b", "fields": {}, "empty": []}},
        {"dataclass": {"class": "a:b", "fields": [["a"]], "empty": []}},
        {"mapping": {"class": "a:b", "fields": [], "empty": [1]}},
        {"mapping": {"class": "a:b", "fields": [], "empty": "a"}},
        {"object": {"class": "a:b", "fields": [], "empty": []}},
        {"dict": ["ab"]},
        {"dict": [[["a"], {"leaf": 0}]]},
        {"set": [{"leaf": 0}]},
        {"tuple": [{"leaf": 5}]},
        {1: 2},
        {"leaf" * 1000: 1},
    ],
)
def test_damaged_descriptions_are_errors_of_ours(description: Any) -> None:
    for find in (importable, nothing):
        with pytest.raises(ArtifactError, match="is damaged") as caught:
            unflatten(description, ["x", "y"], find)
        assert len(str(caught.value)) < 300


def test_a_class_that_comes_later_is_found_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importable("comes_later:Out") is None
    (tmp_path / "comes_later.py").write_text("class Out: pass\n")
    importlib.invalidate_caches()
    found = importable("comes_later:Out")
    assert found is not None
    assert found.__name__ == "Out"
