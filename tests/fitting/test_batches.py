"""What to_batch takes out of the items of a loader."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import compoff
from compoff.errors import FitError
from compoff.fitting.batches import check_seed, to_batch
from compoff.signature import by_name

if TYPE_CHECKING:
    from compoff.batch import Batch

X, LABELS = torch.ones(2, 3), torch.tensor([0, 1])


class Two(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Anything(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        raise NotImplementedError


def taken(item: Any, net: nn.Module, device: torch.device | None = None) -> Batch:
    """What is taken where nothing is known yet of the model's inputs."""
    return to_batch(item, compoff.wrap(net, "input"), device)


Pair = collections.namedtuple("Pair", ["image", "label"])


@pytest.mark.parametrize("item", [X, (X,), (X, LABELS), [X, LABELS], ((X,), LABELS), ([X], LABELS), Pair(X, LABELS)])
def test_inputs_come_first_and_labels_fall_away(item: Any) -> None:
    batch = taken(item, nn.Linear(3, 1))
    assert len(batch.args) == 1
    assert batch.args[0] is X
    assert batch.kwargs == {}
    assert batch.size == 2


def test_several_inputs_are_nested() -> None:
    batch = taken(((X, LABELS), "label"), Two())
    assert batch.args == (X, LABELS)


@pytest.mark.parametrize("kind", [dict, collections.UserDict, collections.OrderedDict])
@pytest.mark.parametrize("paired", [False, True])
def test_a_dict_gives_the_models_arguments(kind: type, paired: bool) -> None:
    item = kind(ids=X, mask=LABELS, scale=2.0, labels=LABELS, name=["a", "b"])
    batch = taken((item, LABELS) if paired else item, Two())
    assert batch.args == ()
    assert batch.kwargs == {"ids": X, "mask": LABELS, "scale": 2.0}


def test_a_model_that_takes_any_name_gets_all_but_labels() -> None:
    assert taken({"ids": X, "target": LABELS}, Anything()).kwargs == {"ids": X}


def test_tensors_are_moved_and_other_values_kept() -> None:
    batch = taken(((X, 3, None), LABELS), Two(), torch.device("meta"))
    assert batch.args[0].device.type == "meta"
    assert batch.args[1:] == (3, None)
    assert taken({"ids": X}, Two(), torch.device("meta")).kwargs["ids"].device.type == "meta"


# -- what the model was wrapped with ---------------------------------------------------------------------------------


class Masked(nn.Module):
    """Reads a mask before its codec, and labels behind it, as models of text do."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(32, 4)

    def forward(self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        scores = self.score(x * scale if mask is None else x * mask)
        return scores if labels is None else (scores, scores[:, :2] - labels.view(-1, 1))


SIGNAL, MASK, CLASSES = torch.randn(6, 32), torch.ones(6, 32), torch.arange(6)


def masked(**example: Tensor) -> compoff.Wrapped:
    return compoff.wrap(Masked().eval(), "score", example_input={"x": SIGNAL, **example}, codec="deepcod")


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((SIGNAL, MASK), "of a tuple the first entry is the input"),
        ([SIGNAL, MASK, CLASSES], "of a tuple the first entry is the input"),
        (((SIGNAL,), {"mask": MASK}, CLASSES), "of a tuple the first entry is the input"),
        (((SIGNAL,), {"mask": MASK, "boxes": CLASSES}), "of a tuple the first entry is the input"),
        ({"x": SIGNAL, "masks": MASK}, "of a dict the model's own arguments are taken, and 'masks' is none"),
    ],
)
def test_an_input_that_the_model_was_wrapped_with_does_not_fall_away(item: Any, words: str) -> None:
    forms = r"Give \(\(x, 1.0, mask\), label\) or a dict {'x': …, 'mask': …}, None for what is left out"
    expected = f"the model was wrapped with 'mask', which a batch does not give: {words}.*{forms}"
    with pytest.raises(FitError, match=expected):
        to_batch(item, masked(mask=MASK))
    if isinstance(item, tuple):
        with pytest.raises(FitError, match=expected):
            compoff.fit(masked(mask=MASK), [item], steps=1)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("named", [{"mask": MASK}, {"mask": MASK, "scale": 2.0}, {"mask": None}])
def test_a_call_in_the_form_of_an_example_is_taken(named: dict[str, Any], kind: type) -> None:
    for model in (masked(mask=MASK), compoff.wrap(Masked(), "input")):
        call = kind([kind([SIGNAL]), named])
        for item in (call, kind([call]), kind([call, CLASSES])):
            batch = to_batch(item, model)
            assert batch.args == (SIGNAL,)
            assert batch.kwargs == named


@pytest.mark.parametrize(
    "other", [{"labels": CLASSES}, {"x": SIGNAL}, {"mask": MASK}, {"number": CLASSES}, {0: CLASSES}, {}]
)
def test_a_dict_behind_the_inputs_that_may_be_labels_falls_away(other: dict[Any, Any]) -> None:
    assert to_batch(((SIGNAL,), other), masked()).kwargs == {}


@pytest.mark.parametrize(
    "item",
    [
        SIGNAL,
        (SIGNAL,),
        (SIGNAL, ["a.png"] * 6),
        (SIGNAL, {"boxes": MASK}),
        ((SIGNAL,), CLASSES),
        ((SIGNAL, 1.0, None), CLASSES),
        {"x": SIGNAL, "labels": CLASSES, "name": ["a"] * 6},
        ({"x": SIGNAL}, CLASSES),
        {"x": SIGNAL, "mask": None, "number": CLASSES},
    ],
)
def test_an_input_may_be_left_out_on_purpose(item: Any) -> None:
    batch = to_batch(item, masked(mask=MASK))
    assert [name for name, value in by_name(Masked(), batch.args, batch.kwargs).items() if torch.is_tensor(value)] == [
        "x"
    ]


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"x": SIGNAL, "mask": MASK, "labels": CLASSES}, "mask"),
        (({"x": SIGNAL, "mask": MASK}, CLASSES), "mask"),
        (((SIGNAL, 1.0, MASK), CLASSES), "mask"),
        (((SIGNAL, MASK), CLASSES), "scale"),
    ],
)
def test_a_tensor_that_the_model_was_not_wrapped_with_is_refused(item: Any, name: str) -> None:
    words = f"gives the model '{name}', which it was not wrapped with.* in example_input, or take it out of the batches"
    for called in (compoff.fit, compoff.calibrate):
        model = masked()
        with pytest.raises(FitError, match=words):
            called(model, [item])
        assert not model.bottleneck("score").calibrated
    with pytest.raises(FitError, match=words):
        compoff.fit(masked(), [SIGNAL], validation=[item], steps=1)
    to_batch(item, compoff.wrap(Masked().eval(), "score"))  # learned from the first batch


def test_a_loss_of_a_tensor_that_the_model_was_not_wrapped_with_is_refused() -> None:
    model = masked()
    words = "gives the model 'scale', which it was not wrapped with"
    with pytest.raises(FitError, match=words):
        model.distillation_loss(SIGNAL, CLASSES.float().view(-1, 1))
    with pytest.raises(FitError, match=words):
        compoff.DistillationLoss(model)(SIGNAL, scale=MASK)
    assert bool(model.distillation_loss(SIGNAL, 1.0, keywords={"mask": None}).isfinite())


def test_labels_that_the_model_was_wrapped_with_are_inputs() -> None:
    model, batches = masked(labels=CLASSES), [{"x": SIGNAL, "labels": CLASSES}]
    assert to_batch(batches[0], model).kwargs["labels"] is CLASSES
    compoff.fit(model, batches, steps=2)
    head, tail = compoff.export(model, "score")
    assert len(tail(head(**batches[0]))) == 2


@pytest.mark.parametrize(
    ("example", "item", "words"),
    [
        ((SIGNAL[:1], MASK[:1]), (SIGNAL, MASK[:1]), r"'mask' of a batch has shape \(1, 32\), and 'x' is 6 long"),
        ((SIGNAL[:2], MASK[:2]), (SIGNAL[:1], MASK), r"'mask' of a batch has shape \(6, 32\), and 'x' is 1 long"),
        ((SIGNAL, MASK[:1]), (SIGNAL, MASK), r"'mask' of a batch has shape \(6, 32\), one for each.* all, \(1, 32\)"),
    ],
)
@pytest.mark.parametrize("kind", ["nested", "dict", "other order"])
def test_inputs_have_a_batch_axis_where_they_had_one_in_the_example(
    example: tuple[Tensor, Tensor], item: tuple[Tensor, Tensor], words: str, kind: str
) -> None:
    model = compoff.wrap(Masked().eval(), "score", example_input={"x": example[0], "mask": example[1]})
    named = {"x": item[0], "mask": item[1]} if kind == "dict" else {"mask": item[1], "x": item[0]}
    with pytest.raises(FitError, match=words):
        compoff.fit(model, [((item[0], 1.0, item[1]), CLASSES) if kind == "nested" else named], steps=1)
    assert not model.bottleneck("score").calibrated


@pytest.mark.parametrize("mask", [MASK[:1], MASK])
def test_a_batch_of_any_size_is_taken(mask: Tensor) -> None:
    model = masked(mask=mask)
    for size in (1, 2, 6):
        assert to_batch({"x": SIGNAL[:size], "mask": mask[:size]}, model).size == size


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, "a NoneType"),
        ("text", "a str"),
        ((), "a NoneType"),
        (("text", X), "a str"),
        ({}, r"a dict of \[\]"),
        ({"pixels": X, "labels": LABELS}, r"a dict of \['labels', 'pixels'\].*ids, mask, scale, labels"),
        ([[1, 2], X], "a list"),
    ],
)
def test_an_item_without_an_input_is_refused(item: Any, words: str) -> None:
    with pytest.raises(FitError, match=f"a batch is {words}"):
        taken(item, Two())


@pytest.mark.parametrize("item", [torch.zeros(0, 3), torch.tensor(1.0), (torch.zeros(0), X), {"ids": X, "mask": X[:0]}])
def test_an_empty_batch_is_refused(item: Any) -> None:
    with pytest.raises(FitError, match="a batch is empty"):
        taken(item, Two())


def test_seeds_are_those_that_torch_takes() -> None:
    for seed in (-(2**63), 2**64 - 1):
        torch.Generator().manual_seed(check_seed(seed))
    for seed in (-(2**63) - 1, 2**64):
        with pytest.raises(FitError, match="expected a whole number of at most 64 bits"):
            check_seed(seed)
