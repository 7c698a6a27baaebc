"""What a call over the wire needs besides the wire: which head runs, and the reply made into the model's output.

Shared by the blocking and the asyncio remote. Knows no connection.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from compoff.errors import FeatureError, RemoteProtocolError, SplitError
from compoff.structure import CONSTANTS, importable, unflatten
from compoff.wire.messages import Offer
from compoff.wire.nested import MOST_LEAVES, restore_nested
from compoff.wire.replies import FULL, reply_form, reply_specs, restore_leaves
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.coding import Coding, Payload
    from compoff.device.sender import Sender
    from compoff.manifest import Manifest, TensorSpec
    from compoff.wire.replies import Reply, ReplyForm

__all__ = ["CallReport", "Heads", "Source", "all_numpy", "longest_reply", "restore"]

Source: TypeAlias = Literal["edge", "local"]
"""Where an answer was made."""

_PLAIN = (np.ndarray, *CONSTANTS)
_ONE_LEAF = {"leaf": 0}  # what most models return: one tensor
_NUMBER_BYTES = 5  # the longest that a count or a dimension is written in


@dataclass(frozen=True)
class CallReport:
    """Where one call's answer came from, and where its time and bytes went.

    Args:
        split: The split point that was used, or would have been.
        payload_bytes: Bytes made by the head to be sent, without the frame around them; 0 where nothing was.
        reply_bytes: Bytes received, without the frame around them.
        head_seconds: Time of the head: its part of the model, the encoder and the coder, in seconds.
        remote_seconds: Time from sending to the reply, or to giving it up: link, queue and tail, in seconds.
        total_seconds: Time of the whole call, in seconds.
        source: ``"edge"``, or ``"local"`` where the whole model ran on the device.
        reason: Why the answer is local, or why it was asked for twice; None where the edge answered at once.
        retried: Whether the request's connection broke, so that it was to be sent again over a fresh one.
        local_seconds: Time of the whole model on the device, in seconds.
        server_seconds: The part of ``remote_seconds`` that passed inside the server, as it says, in seconds; at most
            16.8, which is all that its frame has room for.
        quality: Index of the quality that the payload has, which ``max_bytes`` may have lowered; None without one.
        cut: Whether ``max_bytes`` cut the payload, so that it holds fewer channels than its quality has.
        coding: How the payload was to be coded; None for the shortest.
    """

    split: str
    payload_bytes: int
    reply_bytes: int
    head_seconds: float
    remote_seconds: float
    total_seconds: float
    source: Source = "edge"
    reason: str | None = None
    retried: bool = False
    local_seconds: float = 0.0
    server_seconds: float = 0.0
    quality: int | None = None
    cut: bool = False
    coding: Coding | None = None


class Heads:
    """The heads that one connection serves, by split point.

    Args:
        heads: One head, or several of different split points.
        reply: The form in which answers shall come.

    Raises:
        SplitError: There is no head, or two of the same split point.
        FeatureError: A model's outputs have no such form, or the text "argmax" leaves open along which axis.
        LocalProtocolError: There is no such form.
    """

    def __init__(self, heads: Sender | Sequence[Sender], reply: Reply = "full") -> None:
        self.form = reply_form(reply)
        self.all: list[Sender] = [*heads] if isinstance(heads, (list, tuple)) else [heads]  # pyright: ignore[reportAttributeAccessIssue]
        for head in self.all:
            if not hasattr(head, "artifact_id") or not hasattr(head, "runner"):
                raise SplitError(
                    f"a {type(head).__name__} was given as a head; expected what compoff.Head.load returns"
                )
        splits = [head.split for head in self.all]
        if not splits or len(set(splits)) != len(splits):
            raise SplitError(
                f"heads of the split points {splits} were given; expected one or more, each split point once"
            )
        for head in self.all:
            _check_form(self.form, head.manifest)
            if reply == "argmax":
                _check_classes(head.manifest.outputs)

    @property
    def offers(self) -> list[Offer]:
        """The exports with the form of their answers, in the order that routes count in."""
        return [Offer(head.artifact_id, self.form) for head in self.all]

    @property
    def max_reply_bytes(self) -> int:
        """Length that no right reply exceeds, in bytes: the most that a server can make this side hold."""
        return max(longest_reply(self.form, head.manifest) for head in self.all)

    def choose(self, split: str | None) -> tuple[int, Sender]:
        """The head to run.

        Args:
            split: The split point; None for the only one, or the first that was given.

        Returns:
            Its route on the wire, and the head.

        Raises:
            SplitError: There is no head for `split`.
        """
        for route, head in enumerate(self.all):
            if split is None or head.split == split:
                return route, head
        known = ", ".join(f"'{head.split}'" for head in self.all)
        raise SplitError(f"no head is connected for {split!r}; connected are {known}")


def all_numpy(inputs: Any) -> bool:
    """Whether a call holds numpy arrays only, and so gets numpy arrays back.

    Args:
        inputs: What was given, nested.

    Returns:
        Whether no other tensor is in it.
    """
    if isinstance(inputs, _PLAIN):
        return True
    if isinstance(inputs, (tuple, list)):
        return all(map(all_numpy, inputs))  # pyright: ignore[reportUnknownArgumentType]
    return isinstance(inputs, Mapping) and all(map(all_numpy, inputs.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]


def restore(head: Sender, inputs: Any, payload: Payload, reply: bytes, form: ReplyForm = FULL) -> Any:
    """Make a reply into what the model would have returned, or into what was asked for of it.

    Args:
        head: The head whose payload was answered.
        inputs: What it was called with, nested: numpy in, numpy out; else the runtime's own tensors.
        payload: The payload.
        reply: The reply's body.
        form: The form that was asked for.

    Returns:
        The model's output, nested as the model nests it; the form says what stands in an output's place.

    Raises:
        RemoteProtocolError: The reply is not what this export's tail answers.
    """
    plain = all_numpy(inputs)

    def convert(array: Any) -> Any:
        return array if plain else head.runner.from_numpy(array)

    if not head.manifest.structure:
        return restore_nested(unpack(reply, most_arrays=1 + MOST_LEAVES), convert)
    expected = _expected(form, tuple(head.manifest.outputs), payload.batch_size)
    arrays = unpack(reply, len(expected))
    found = [(array.shape, array.dtype) for array in arrays]
    if found != expected:
        raise RemoteProtocolError(
            f"the server answered with tensors {_words(found)}, expected {_words(expected)}; is it serving this export "
            "with the same compoff?"
        )
    leaves = restore_leaves(form, arrays, head.manifest.outputs, convert)
    if head.manifest.structure == _ONE_LEAF:
        return leaves[0]
    return unflatten(head.manifest.structure, leaves, importable)


@functools.lru_cache(maxsize=256)
def _expected(
    form: ReplyForm, outputs: tuple[TensorSpec, ...], batch_size: int
) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shapes and dtypes of a right reply's arrays; the same for every call, and every call needs them."""
    specs = reply_specs(form, outputs)
    return [(spec.sized(batch_size), np.dtype(spec.dtype)) for spec in specs]


def _words(tensors: list[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[tuple[tuple[int, ...], str]]:
    return [(shape, str(dtype)) for shape, dtype in tensors]


def _check_classes(outputs: Sequence[TensorSpec]) -> None:
    """Refuse to guess where the classes are: image models have them first, token models last."""
    for output in outputs:
        if output.batched and output.dtype.startswith("float") and len(output.shape) == 2:
            first, last = output.shape
            raise FeatureError(
                f"reply='argmax' does not say which axis holds the classes of an output of shape (batch, {first}, "
                f"{last}); give compoff.ArgMax(dim=1) for the {first}, compoff.ArgMax(dim=2) for the {last}"
            )


def _check_form(form: ReplyForm, manifest: Manifest) -> None:
    """Refuse a form that an export's answers cannot have; import their classes now, not while an answer waits."""
    reply_specs(form, manifest.outputs)
    if manifest.structure:
        unflatten(manifest.structure, manifest.outputs, importable)
    elif form != FULL:
        raise FeatureError(
            f"what {manifest.model} returns is known only once it has answered, so nothing can be left out of it; ask "
            "for reply='full'"
        )


def longest_reply(form: ReplyForm, manifest: Manifest) -> int:
    """Length of the reply to the largest batch, as ``compoff.wire.tensors`` packs it, or a few bytes more.

    Args:
        form: The form that is asked for.
        manifest: What the export is.

    Returns:
        What no right reply exceeds, in bytes.
    """
    if not manifest.structure:
        return manifest.max_reply_bytes
    total = _NUMBER_BYTES
    for spec in reply_specs(form, manifest.outputs):
        samples = manifest.max_batch if spec.batched else 1
        total += 2 + _NUMBER_BYTES * (len(spec.shape) + 1)
        total += samples * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    return total
