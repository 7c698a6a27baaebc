"""What is sent where a payload may have so many bytes: the best quality that fits, or a part of the lowest.

Knows qualities and codings, not how symbols come about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compoff.errors import FeatureError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compoff.coding import Coding, Payload, PayloadFormat

__all__ = ["best_within"]


def best_within(
    payload_format: PayloadFormat,
    encode: Callable[[int, Coding], Payload],
    best: int,
    max_bytes: int,
    codings: Sequence[Coding],
) -> tuple[Payload, Coding]:
    """The best payload that fits.

    Args:
        payload_format: What cuts payloads.
        encode: Makes the payload of a quality in a coding.
        best: Index of the best quality that may be sent.
        max_bytes: Most bytes that the payload may have.
        codings: The coding; or two, of which the second takes the first's place before a quality is lowered.

    Returns:
        The payload, and its coding.

    Raises:
        FeatureError: Nothing fits of which an answer could be made.
    """
    coding, last = codings[0], codings[-1]
    payload = encode(best, coding)
    for quality in range(best - (coding == last), -1, -1):
        if len(payload) <= max_bytes:
            break
        payload, coding = encode(quality, last), last
    shorter = payload_format.shortened(payload, max_bytes)
    if shorter is not payload and not payload_format.decode(shorter).symbols[0].shape[1]:
        many = shorter.batch_size
        raise FeatureError(
            f"max_bytes is {max_bytes}, in which not one channel of the {many} sample{'s'[: many != 1]} would be "
            "whole, so that every answer would be the same; allow more, or send fewer samples at a time"
        )
    return shorter, coding
