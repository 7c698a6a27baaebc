"""What to_batch takes out of the items of a loader."""

from __future__ import annotations

import collections
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compoff.errors import FitError
from compoff.fitting.batches import to_batch

X, LABELS = torch.ones(2, 3), torch.tensor([0, 1])


class Two(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0, labels: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Anything(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        raise NotImplementedError


Pair = collections.namedtuple("Pair", ["image", "label"])


@pytest.mark.parametrize("item", [X, (X,), (X, LABELS), [X, LABELS], ((X,), LABELS), ([X], LABELS), Pair(X, LABELS)])
def test_inputs_come_first_and_labels_fall_away(item: Any) -> None:
    batch = to_batch(item, nn.Linear(3, 1))
    assert len(batch.args) == 1
    assert batch.args[0] is X
    assert batch.kwargs == {}
    assert batch.size == 2


def test_several_inputs_are_nested() -> None:
    batch = to_batch(((X, LABELS), "label"), Two())
    assert batch.args == (X, LABELS)


@pytest.mark.parametrize("kind", [dict, collections.UserDict, collections.OrderedDict])
@pytest.mark.parametrize("paired", [False, True])
def test_a_dict_gives_the_models_arguments(kind: type, paired: bool) -> None:
    item = kind(ids=X, mask=LABELS, scale=2.0, labels=LABELS, name=["a", "b"])
    batch = to_batch((item, LABELS) if paired else item, Two())
    assert batch.args == ()
    assert batch.kwargs == {"ids": X, "mask": LABELS, "scale": 2.0}


def test_a_model_that_takes_any_name_gets_all_but_labels() -> None:
    assert to_batch({"ids": X, "target": LABELS}, Anything()).kwargs == {"ids": X}


def test_tensors_are_moved_and_other_values_kept() -> None:
    batch = to_batch(((X, 3, None), LABELS), Two(), torch.device("meta"))
    assert batch.args[0].device.type == "meta"
    assert batch.args[1:] == (3, None)
    assert to_batch({"ids": X}, Two(), torch.device("meta")).kwargs["ids"].device.type == "meta"


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
        to_batch(item, Two())


@pytest.mark.parametrize("item", [torch.zeros(0, 3), torch.tensor(1.0), (torch.zeros(0), X), {"ids": X, "mask": X[:0]}])
def test_an_empty_batch_is_refused(item: Any) -> None:
    with pytest.raises(FitError, match="a batch is empty"):
        to_batch(item, Two())
