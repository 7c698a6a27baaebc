"""In which form an answer travels: whole, in less precision, or only what the client will look at.

The client chooses, the server reduces, the client puts back types and places. ``messages`` carries the choice in HELLO,
``tensors`` makes the arrays bytes. Knows no sockets and no models: only arrays and what the manifest says of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from compoff.errors import FeatureError, LocalProtocolError, RemoteProtocolError
from compoff.manifest import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "FULL",
    "REPLY_FORM_BYTES",
    "ArgMax",
    "Reply",
    "ReplyForm",
    "ReplyKind",
    "TopK",
    "TopValues",
    "reduce_reply",
    "reply_form",
    "reply_specs",
    "restore_leaves",
]

_FORM = struct.Struct(">BbH")
REPLY_FORM_BYTES = _FORM.size
_MAX_K = 2**16 - 1
_MAX_DIM = 31
_DIMS = f"a whole dim from -{_MAX_DIM} to {_MAX_DIM} that is not 0, the batch"
_FLOATS = ("float16", "float32", "float64")


class ReplyKind(IntEnum):
    """How an answer is reduced; the numbers are on the wire and never change their meaning."""

    FULL = 0
    FP32 = 1
    FP16 = 2
    ARGMAX = 3
    TOP_K = 4


@dataclass(frozen=True)
class ArgMax:
    """Ask for the index of the largest value only.

    Args:
        dim: Dimension that holds the classes, the batch counted as dimension 0; -1 is the last.

    Raises:
        LocalProtocolError: `dim` is the batch's, out of range or no whole number.

    Examples:
        >>> ArgMax()
        ArgMax(dim=1)

    Source: this project.
    """

    dim: int = 1

    def __post_init__(self) -> None:
        if not _is_dim(self.dim):
            raise LocalProtocolError(f"{self!r} was given; expected {_DIMS}")


@dataclass(frozen=True)
class TopK:
    """Ask for the largest values and their indices only.

    Args:
        k: How many.
        dim: Dimension that holds the classes, the batch counted as dimension 0; -1 is the last.

    Raises:
        LocalProtocolError: `k` is no whole number from 1 to 65,535, or `dim` is the batch's, out of range or no whole
            number.

    Examples:
        >>> TopK(5)
        TopK(k=5, dim=1)

    Source: this project.
    """

    k: int
    dim: int = 1

    def __post_init__(self) -> None:
        if not (_is_count(self.k) and _is_dim(self.dim)):
            raise LocalProtocolError(f"{self!r} was given; expected a whole k from 1 to {_MAX_K} and {_DIMS}")


class TopValues(NamedTuple):
    """What stands in an output's place after ``TopK``: the largest first, of equal ones the first.

    Attributes:
        values: In the output's own dtype.
        indices: Their places along the dimension, int64.

    Examples:
        >>> values, indices = TopValues([9.5, 2.0], [7, 3])
        >>> indices
        [7, 3]

    Source: this project.
    """

    values: Any
    indices: Any


Reply: TypeAlias = "str | ArgMax | TopK"
"""What a caller may ask for: ``"full"``, ``"fp32"``, ``"fp16"``, ``"argmax"``, `ArgMax` or `TopK`."""


class ReplyForm(NamedTuple):
    """A choice as HELLO carries it.

    Args:
        kind: How to reduce.
        dim: Along which dimension; 0 where there is none to choose.
        k: How many values; 0 where that says nothing.

    Examples:
        >>> ReplyForm(ReplyKind.TOP_K, 1, 5).encode().hex()
        '04010005'

    Source: this project.
    """

    kind: ReplyKind = ReplyKind.FULL
    dim: int = 0
    k: int = 0

    def encode(self) -> bytes:
        """The 4 bytes of the choice."""
        return _FORM.pack(self.kind, self.dim, self.k)

    @classmethod
    def decode(cls, data: bytes) -> ReplyForm:
        """A choice from its 4 bytes.

        Raises:
            RemoteProtocolError: There is no such choice.
        """
        kind, dim, k = _FORM.unpack(data)
        known = kind in ReplyKind.__members__.values()
        along = kind in (ReplyKind.ARGMAX, ReplyKind.TOP_K)
        if not known or bool(k) != (kind == ReplyKind.TOP_K) or (dim and not along) or (along and not _is_dim(dim)):
            message = f"HELLO asks for the unknown reply form {data.hex()}; install the same compoff on both"
            raise RemoteProtocolError(message)
        return cls(ReplyKind(kind), dim, k)


FULL = ReplyForm()


def _is_dim(dim: int) -> bool:
    return _is_whole(dim) and dim != 0 and -_MAX_DIM <= dim <= _MAX_DIM


def reply_form(reply: Reply) -> ReplyForm:
    """The choice that a caller made.

    Args:
        reply: What was asked for.

    Raises:
        LocalProtocolError: There is no such form of a reply.

    Examples:
        >>> reply_form("argmax") == reply_form(ArgMax(dim=1))
        True

    Source: this project.
    """
    plain = {"full": ReplyKind.FULL, "fp32": ReplyKind.FP32, "fp16": ReplyKind.FP16}
    if isinstance(reply, str) and reply in plain:
        return ReplyForm(plain[reply])
    if reply == "argmax":
        reply = ArgMax()
    if isinstance(reply, ArgMax):
        return ReplyForm(ReplyKind.ARGMAX, reply.dim)
    if isinstance(reply, TopK):
        return ReplyForm(ReplyKind.TOP_K, reply.dim, reply.k)
    raise LocalProtocolError(
        f"reply={reply!r:.80} was given; expected 'full', 'fp32', 'fp16', 'argmax', ArgMax(dim) or TopK(k, dim)"
    )


def _is_count(k: int) -> bool:
    return _is_whole(k) and 1 <= k <= _MAX_K


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def reply_specs(form: ReplyForm, outputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Shapes and dtypes of the arrays that travel.

    Args:
        form: The form of the reply.
        outputs: What the model returns.

    Returns:
        One spec an array; ``TOP_K`` makes two of a floating-point output, its values and its indices.

    Raises:
        FeatureError: An output has no such dimension, or fewer values along it than were asked for.

    Examples:
        >>> reply_specs(ReplyForm(ReplyKind.TOP_K, 1, 5), [TensorSpec((1000,), "float32")])
        [TensorSpec(shape=(5,), dtype='float32', batched=True), TensorSpec(shape=(5,), dtype='int16', batched=True)]

    Source: this project.
    """
    return [spec for output in outputs for spec in _reduced(form, output)]


def _reduced(form: ReplyForm, output: TensorSpec) -> list[TensorSpec]:
    if form.kind is ReplyKind.FULL or output.dtype not in _FLOATS:
        return [output]
    if form.kind in (ReplyKind.FP32, ReplyKind.FP16):
        return [TensorSpec(output.shape, _narrower(form.kind, output.dtype), output.batched)]
    lead = int(output.batched)
    ndim = lead + len(output.shape)
    axis = form.dim + ndim if form.dim < 0 else form.dim
    if not lead <= axis < ndim:
        message = f"an output of shape {output.shape} for each sample has no dimension {form.dim} of classes"
        raise FeatureError(f"{message}; give another dim, or ask for reply='full'")
    before, size, after = output.shape[: axis - lead], output.shape[axis - lead], output.shape[axis - lead + 1 :]
    if size < max(1, form.k):
        message = f"{form.k} values were asked for along a dimension of {size}; ask for fewer, or for reply='full'"
        raise FeatureError(message)
    if form.kind is ReplyKind.ARGMAX:
        return [TensorSpec(before + after, _index_dtype(size), output.batched)]
    shape = (*before, form.k, *after)
    return [TensorSpec(shape, output.dtype, output.batched), TensorSpec(shape, _index_dtype(size), output.batched)]


def _narrower(kind: ReplyKind, dtype: str) -> str:
    return min("float32" if kind is ReplyKind.FP32 else "float16", dtype, key=lambda name: np.dtype(name).itemsize)


def _index_dtype(size: int) -> str:
    return "uint8" if size <= 2**8 else "int16" if size <= 2**15 else "int32"


def reduce_reply(form: ReplyForm, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Reduce an answer, on the server.

    Args:
        form: What the client asked for.
        arrays: The model's outputs, in order; the form fits them, as ``reply_specs`` has checked.

    Returns:
        The arrays to send.

    Raises:
        FeatureError: A value is too large for float16.

    Examples:
        >>> reduce_reply(ReplyForm(ReplyKind.TOP_K, 1, 2), [np.array([[0.5, 3.0, 2.0]])])
        [array([[3., 2.]]), array([[1, 2]], dtype=uint8)]

    Source: this project.
    """
    if form.kind is ReplyKind.FULL:
        return list(arrays)
    reduced: list[NDArray[Any]] = []
    for array in arrays:
        if array.dtype.kind != "f":
            reduced.append(array)
        elif form.kind in (ReplyKind.FP32, ReplyKind.FP16):
            reduced.append(_narrow(array, _narrower(form.kind, str(array.dtype))))
        elif form.kind is ReplyKind.ARGMAX:
            reduced.append(array.argmax(form.dim).astype(_index_dtype(array.shape[form.dim])))
        else:
            reduced += _top_k(array, form)
    return reduced


def _narrow(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype, copy=False)
    if narrow.dtype != array.dtype and np.isinf(narrow).sum() != np.isinf(array).sum():
        largest = np.abs(array[np.isfinite(array)]).max()
        raise FeatureError(f"an output value of {largest:.4g} does not fit {dtype}; ask for reply='full'")
    return narrow


def _top_k(array: NDArray[Any], form: ReplyForm) -> list[NDArray[Any]]:
    # Not a number counts as the largest, as in torch and in argmax: it must not vanish from the answer.
    order = np.lexsort((-array, ~np.isnan(array)), form.dim).take(range(form.k), form.dim)
    return [np.take_along_axis(array, order, form.dim), order.astype(_index_dtype(array.shape[form.dim]))]


def restore_leaves(
    form: ReplyForm, arrays: Sequence[NDArray[Any]], outputs: Sequence[TensorSpec], convert: Callable[[Any], Any]
) -> list[Any]:
    """Make the arrays of a reply into what stands in the places of the model's outputs, on the client.

    Args:
        form: What was asked for.
        arrays: The arrays, of the shapes and dtypes of ``reply_specs``.
        outputs: What the model returns.
        convert: Makes an array a tensor of the caller's runtime.

    Returns:
        One leaf an output, in the output's own dtype; indices are int64, `TopValues` holds values and indices.

    Examples:
        >>> outputs = [TensorSpec((3,), "float32")]
        >>> restore_leaves(ReplyForm(ReplyKind.FP16), [np.ones((1, 3), np.float16)], outputs, lambda array: array)
        [array([[1., 1., 1.]], dtype=float32)]

    Source: this project.
    """
    leaves: list[Any] = []
    rest = iter(arrays)
    for output in outputs:
        array = next(rest)
        if output.dtype not in _FLOATS or form.kind in (ReplyKind.FULL, ReplyKind.FP32, ReplyKind.FP16):
            leaves.append(convert(array.astype(output.dtype, copy=False)))
        elif form.kind is ReplyKind.ARGMAX:
            leaves.append(convert(array.astype(np.int64)))
        else:
            leaves.append(TopValues(convert(array), convert(next(rest).astype(np.int64))))
    return leaves
