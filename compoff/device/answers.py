"""What a call over the wire needs besides the wire: which head runs, and the reply made into the model's output.

Shared by the blocking and the asyncio remote. Knows no connection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.errors import RemoteProtocolError, SplitError
from compoff.structure import input_leaves, unflatten
from compoff.wire.tensors import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.coding import Payload
    from compoff.device.sender import Sender
    from compoff.manifest import Manifest

__all__ = ["CallReport", "Heads", "restore"]

_NUMBER_BYTES = 5  # the longest that a count or a dimension is written in


@dataclass(frozen=True)
class CallReport:
    """Where one call's time and bytes went.

    Args:
        split: The split point that was used.
        payload_bytes: Bytes sent, without the frame around them.
        reply_bytes: Bytes received, without the frame around them.
        head_seconds: Time of the head: its part of the model, the encoder and the coder, in seconds.
        remote_seconds: Time from sending to the reply: link, queue and tail, in seconds.
        total_seconds: Time of the whole call, in seconds.
    """

    split: str
    payload_bytes: int
    reply_bytes: int
    head_seconds: float
    remote_seconds: float
    total_seconds: float


class Heads:
    """The heads that one connection serves, by split point.

    Args:
        heads: One head, or several of different split points.

    Raises:
        SplitError: There is no head, or two of the same split point.
    """

    def __init__(self, heads: Sender | Sequence[Sender]) -> None:
        self.all: list[Sender] = [*heads] if isinstance(heads, (list, tuple)) else [heads]  # pyright: ignore[reportAttributeAccessIssue]
        splits = [head.split for head in self.all]
        if not splits or len(set(splits)) != len(splits):
            raise SplitError(
                f"heads of the split points {splits} were given; expected one or more, each split point once"
            )

    @property
    def artifact_ids(self) -> list[bytes]:
        """Ids of the exports, in the order that routes count in."""
        return [head.artifact_id for head in self.all]

    @property
    def max_reply_bytes(self) -> int:
        """Length that no right reply exceeds, in bytes: the most that a server can make this side hold."""
        return max(_longest_reply(head.manifest) for head in self.all)

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
        raise SplitError(f"no head is connected for '{split}'; connected are {known}")


def restore(head: Sender, inputs: tuple[Any, ...], payload: Payload, reply: bytes) -> Any:
    """Make a reply into what the model would have returned.

    Args:
        head: The head whose payload was answered.
        inputs: What it was called with: numpy in, numpy out; else the runtime's own tensors.
        payload: The payload.
        reply: The reply's body.

    Returns:
        The model's output, nested as the model nests it.

    Raises:
        RemoteProtocolError: The reply is not what this export's tail answers.
    """
    specs = head.manifest.outputs
    arrays = unpack(reply, len(specs))
    expected = [((payload.batch_size, *spec.shape) if spec.batched else spec.shape, spec.dtype) for spec in specs]
    found = [(array.shape, str(array.dtype)) for array in arrays]
    if found != expected:
        raise RemoteProtocolError(
            f"the server answered with tensors {found}, expected {expected}; is it serving this export with the same "
            "compoff?"
        )
    plain = all(isinstance(value, np.ndarray) for value in input_leaves(inputs))
    leaves: list[Any] = [array if plain else head.runner.from_numpy(array) for array in arrays]
    return unflatten(head.manifest.structure, leaves)


def _longest_reply(manifest: Manifest) -> int:
    """Length of the reply to the largest batch, as ``compoff.wire.tensors`` packs it, or a few bytes more."""
    total = _NUMBER_BYTES
    for spec in manifest.outputs:
        samples = manifest.max_batch if spec.batched else 1
        total += 2 + _NUMBER_BYTES * (len(spec.shape) + 1)
        total += samples * math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
    return total
