"""Forms of a reply: what travels, what comes back, and what is refused. The reference is torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compoff.errors import FeatureError, LocalProtocolError, RemoteProtocolError
from compoff.manifest import TensorSpec
from compoff.wire.replies import (
    FULL,
    ArgMax,
    ReplyForm,
    ReplyKind,
    TopK,
    TopValues,
    reduce_reply,
    reply_form,
    reply_specs,
    restore_leaves,
)
from compoff.wire.tensors import pack, unpack

LOGITS = TensorSpec((10,), "float32")
MASKS = TensorSpec((21, 4, 5), "float32")
COUNTS = TensorSpec((3,), "int64")


def travel(reply: Any, arrays: list[np.ndarray], outputs: list[TensorSpec]) -> list[Any]:
    """What a client gets, through the bytes of the wire; the specs are checked on the way."""
    form = ReplyForm.decode(reply_form(reply).encode())
    specs = reply_specs(form, outputs)
    received = unpack(pack(reduce_reply(form, arrays)), len(specs))
    batch = len(arrays[0])
    expected = [((batch, *spec.shape) if spec.batched else spec.shape, spec.dtype) for spec in specs]
    assert [(array.shape, str(array.dtype)) for array in received] == expected
    return restore_leaves(form, received, outputs, torch.from_numpy)


@pytest.mark.parametrize(
    ("reply", "golden"),
    [
        ("full", "00000000"),
        ("fp32", "01000000"),
        ("fp16", "02000000"),
        ("argmax", "03010000"),
        (ArgMax(-1), "03ff0000"),
        (TopK(5), "04010005"),
        (TopK(65535, dim=-31), "04e1ffff"),
    ],
)
def test_the_bytes_of_a_choice(reply: Any, golden: str) -> None:
    assert reply_form(reply).encode().hex() == golden
    assert ReplyForm.decode(bytes.fromhex(golden)) == reply_form(reply)


@pytest.mark.parametrize(
    ("reply", "golden"),
    [
        ("fp16", "01" + "0002" + "0203" + "0034" + "0042" + "0040" + "00bc" + "0000" + "003c"),
        ("argmax", "01" + "0301" + "02" + "01" + "02"),
        (TopK(1), "02" + "0102" + "0201" + "00004040" + "0000803f" + "0302" + "0201" + "01" + "02"),
    ],
)
def test_the_bytes_of_a_reply(reply: Any, golden: str) -> None:
    logits = np.array([[0.25, 3.0, 2.0], [-1.0, 0.0, 1.0]], np.float32)
    assert pack(reduce_reply(reply_form(reply), [logits])).hex() == golden


@pytest.mark.parametrize("dim", [1, -1, 3])
@pytest.mark.parametrize("k", [1, 3])
def test_top_k_and_argmax_are_those_of_torch(dim: int, k: int) -> None:
    masks = np.random.default_rng(0).permutation(2 * 21 * 4 * 5).reshape(2, 21, 4, 5).astype(np.float32)
    [top] = travel(TopK(k, dim), [masks], [MASKS])
    expected = torch.topk(torch.from_numpy(masks), k, dim)
    assert isinstance(top, TopValues)
    assert torch.equal(top.values, expected.values)
    assert torch.equal(top.indices, expected.indices)
    [index] = travel(ArgMax(dim), [masks], [MASKS])
    assert torch.equal(index, torch.from_numpy(masks).argmax(dim))


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(hnp.arrays(np.float32, (2, 10), elements=floats))
def test_the_first_of_top_k_is_argmax_for_any_numbers(logits: np.ndarray) -> None:
    [index] = travel("argmax", [logits], [LOGITS])
    [top] = travel(TopK(10), [logits], [LOGITS])
    np.testing.assert_array_equal(top.values.numpy(), np.take_along_axis(logits, top.indices.numpy(), 1))
    assert sorted(top.indices[0].tolist()) == list(range(10))
    value = np.take_along_axis(logits, index.numpy()[:, None], 1)
    np.testing.assert_array_equal(value, top.values[:, :1].numpy())


def test_equal_values_come_in_their_order() -> None:
    [top] = travel(TopK(3), [np.array([[1, 2, 2, 2, 0, 0, 0, 0, 0, 0]], np.float32)], [LOGITS])
    assert top.indices.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(("reply", "tolerance"), [("full", 0), ("fp32", 1e-6), ("fp16", 1e-2)])
def test_less_precision_comes_back_in_the_models_own_dtypes(reply: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, 4)), rng.normal(size=(2, 4)).astype(np.float16), np.arange(6).reshape(2, 3)]
    outputs = [TensorSpec((4,), "float64"), TensorSpec((4,), "float16"), COUNTS]
    leaves = travel(reply, arrays, outputs)
    assert [leaf.dtype for leaf in leaves] == [torch.float64, torch.float16, torch.int64]
    for leaf, array in zip(leaves, arrays, strict=True):
        np.testing.assert_allclose(leaf.numpy(), array, atol=tolerance)
    assert torch.equal(leaves[2], torch.from_numpy(arrays[2])), "whole numbers stay whole"


def test_what_float16_cannot_hold_is_no_infinity() -> None:
    logits = np.full((1, 10), 70000.0, np.float32)
    with pytest.raises(FeatureError, match=r"output value of 7e\+04 does not fit float16"):
        reduce_reply(reply_form("fp16"), [logits])
    logits[0, 0] = np.inf
    logits[0, 1:] = np.nan
    [leaf] = travel("fp16", [logits], [LOGITS])
    np.testing.assert_array_equal(leaf.numpy(), logits)


def test_bytes_saved() -> None:
    logits = np.zeros((1, 1000), np.float32)
    sizes = [len(pack(reduce_reply(reply_form(reply), [logits]))) for reply in ("full", "fp16", TopK(5), "argmax")]
    assert sizes == [4006, 2006, 39, 6]


@pytest.mark.parametrize("reply", ["", "fp8", "top5", None, 5])
def test_a_form_that_there_is_not(reply: Any) -> None:
    with pytest.raises(LocalProtocolError, match="expected 'full'"):
        reply_form(reply)


@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        *((TopK, numbers) for numbers in [(0,), (-1,), (70000,), ("5",), (5.0,), (True,), (5, 0), (5, 32), (5, None)]),
        *((ArgMax, (dim,)) for dim in (0, 32, -32, "1", 1.0, True, None)),
    ],
)
def test_a_form_that_there_is_not_cannot_be_made(form: Any, numbers: tuple[Any, ...]) -> None:
    with pytest.raises(LocalProtocolError, match=rf"^{form.__name__}\(.*\) was given; expected a whole "):
        form(*numbers)


@pytest.mark.parametrize("data", ["05000000", "00010000", "00000001", "03000000", "03010001", "04010000", "03200000"])
def test_bytes_that_are_no_form(data: str) -> None:
    with pytest.raises(RemoteProtocolError, match="unknown reply form"):
        ReplyForm.decode(bytes.fromhex(data))


@pytest.mark.parametrize(
    ("reply", "output", "words"),
    [
        (TopK(11), LOGITS, "11 values .* of 10"),
        (ArgMax(2), LOGITS, "no dimension 2"),
        (ArgMax(-2), LOGITS, "no dimension -2"),
        (ArgMax(), TensorSpec((), "float32"), "no dimension 1"),
        (ArgMax(), TensorSpec((0,), "float32"), "of 0"),
    ],
)
def test_a_form_that_does_not_fit_an_output(reply: Any, output: TensorSpec, words: str) -> None:
    with pytest.raises(FeatureError, match=words):
        reply_specs(reply_form(reply), [COUNTS, output])


def test_large_dimensions_have_larger_indices() -> None:
    sizes = (2**8, 2**8 + 1, 2**15, 2**15 + 1)
    dtypes = [reply_specs(reply_form("argmax"), [TensorSpec((size,), "float32")])[0].dtype for size in sizes]
    assert dtypes == ["uint8", "int16", "int16", "int32"]
    assert reply_specs(FULL, [COUNTS, LOGITS]) == [COUNTS, LOGITS]
    assert reply_specs(ReplyForm(ReplyKind.ARGMAX, 1), [TensorSpec((7, 3), "float64", batched=False)]) == [
        TensorSpec((7,), "uint8", batched=False)
    ]
