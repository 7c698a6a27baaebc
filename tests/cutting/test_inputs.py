"""What is kept of the inputs that a model was called with."""

from __future__ import annotations

import json

import pytest
import torch

from compoff.cutting.inputs import ExampleInputs
from compoff.errors import ArtifactError
from tests.small_networks import OptionalInputs, Plain


def test_two_samples_of_zeros_are_kept() -> None:
    given = torch.ones(7, 3, 4, dtype=torch.float16)
    example = ExampleInputs.of_call(Plain(), (given,))
    assert example.args[0].shape == (2, 3, 4)
    assert example.args[0].dtype == torch.float16
    assert not example.args[0].any()
    assert given.all()


def test_tensors_of_another_length_have_no_batch() -> None:
    args = (torch.ones(7, 3), torch.ones(5), torch.ones(7), torch.tensor(1.0), 3, None)
    example = ExampleInputs.of_call(Plain(), args)
    assert [tuple(tensor.shape) for tensor in example.tensors] == [(2, 3), (5,), (2,), ()]
    assert example.batched == (True, False, True, False)
    assert example.args[4:] == (3, None)


def test_nested_inputs_are_reduced_too() -> None:
    example = ExampleInputs.of_call(Plain(), ([torch.ones(7, 3), {"a": torch.ones(7, 2)}],))
    assert [tuple(tensor.shape) for tensor in example.tensors] == [(2, 3), (2, 2)]


def test_keywords_go_where_the_model_takes_them_by_position() -> None:
    x, scale = torch.ones(7, 3), torch.ones(8)
    example = ExampleInputs.of_call(OptionalInputs(), (), {"scale": scale, "x": x, "double": True})
    assert [None if value is None else len(value) for value in example.args] == [2, None, 8]
    assert example.keywords == {"double": True}


def test_inputs_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        example = ExampleInputs.of_call(Plain(), (torch.ones(7, 3),))
    assert not example.args[0].is_inference()


def test_map_reaches_every_tensor() -> None:
    example = ExampleInputs.of_call(OptionalInputs(), (torch.ones(7, 3),), {"scale": torch.ones(8)})
    assert {tensor.dtype for tensor in example.map(lambda tensor: tensor.double()).tensors} == {torch.float64}


def test_descriptions_survive_json() -> None:
    example = ExampleInputs.of_call(
        OptionalInputs(), (torch.ones(7, 3, dtype=torch.int32),), {"scale": torch.ones(2), "double": True}
    )
    again = ExampleInputs.of_description(json.loads(json.dumps(example.describe())))
    assert again.keywords == example.keywords
    assert again.batched == example.batched == (True, False)
    assert again.args[1] is None
    assert [(tensor.shape, tensor.dtype) for tensor in again.tensors] == [
        (tensor.shape, tensor.dtype) for tensor in example.tensors
    ]


def test_description_is_golden() -> None:
    example = ExampleInputs.of_call(Plain(), (torch.ones(7, 3), 4))
    assert example.describe() == {
        "inputs": [[[2, 3], "float32", True]],
        "call": {"list": [{"list": [{"leaf": 0}, {"value": 4}]}, {"dict": []}]},
    }


def test_the_first_form_of_a_description_is_still_read() -> None:
    example = ExampleInputs.of_description({"inputs": [[[2, 3, 8, 8], "float32"], [[2, 4], "int64"]]})
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in example.args] == [
        ((2, 3, 8, 8), torch.float32),
        ((2, 4), torch.int64),
    ]
    assert example.batched == (True, True)


def test_what_json_cannot_hold_is_named() -> None:
    with pytest.raises(ArtifactError, match="the model was called with a set"):
        ExampleInputs.of_call(Plain(), (torch.ones(2), {1})).describe()


@pytest.mark.parametrize("dtype", ["float33", "nn", 3])
def test_unknown_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match="there is no dtype"):
        ExampleInputs.of_description({"inputs": [[[2], dtype]]})
