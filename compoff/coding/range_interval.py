"""What both range coders agree on: the interval's width, the words of a message and where a message ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compoff.errors import PayloadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["STATE", "WORD", "shortest_tail", "undecodable", "words_of"]

WORD, STATE = 32, 64  # bits that are settled at a time, and bits of the interval


def words_of(data: bytes) -> NDArray[np.uint32]:
    """The words of a message, zeros after its end.

    Args:
        data: The message.

    Returns:
        Its words in the machine's own byte order.
    """
    return np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4").astype(np.uint32)


def shortest_tail(low: int, span: int) -> tuple[int, bytes]:
    """Find the fewest bytes that, with zeros after them, lie in ``[low, low + span)``.

    Args:
        low: Where the interval starts.
        span: How wide it is.

    Returns:
        The carry that goes to the words before them, and the bytes.
    """
    shift = STATE
    while -(-low >> shift) << shift >= low + span:
        shift -= 8
    value, length = -(-low >> shift), (STATE - shift) // 8
    carry, tail = value >> 8 * length, value & ((1 << 8 * length) - 1)
    return carry, tail.to_bytes(length, "big")


def undecodable(count: int) -> PayloadError:
    """The refusal of bytes that no encoder made.

    Args:
        count: Number of symbols they should hold.

    Returns:
        The error, to raise.
    """
    return PayloadError(f"the coded bytes hold no message of {count} symbols under these tables; they are damaged")
