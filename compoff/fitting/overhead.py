"""What a payload holds beside symbols: header, checksum, and the tensors that cross the cut as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compoff.coding import Code, PayloadFormat, Side
from compoff.errors import FitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from compoff.wrapping import Wrapped

__all__ = ["overhead_bytes", "sides_at", "sides_of", "symbol_bytes"]

_LOOKED_AT = 16  # samples whose tensors are coded


def sides_of(wrapped: Wrapped, split: str) -> list[Side]:
    """The tensors that cross a split point as they are.

    Args:
        wrapped: The model.
        split: The split point.

    Returns:
        How a payload has them.
    """
    sides = wrapped.sites[split].sides
    return [Side(side.shape, str(side.dtype).removeprefix("torch."), side.batched) for side in sides]


def sides_at(place: int, values: Sequence[NDArray[Any]], sides: Sequence[Side]) -> list[NDArray[Any]]:
    """The tensors of one sample, as its payload has them.

    Args:
        place: Index of the sample in the batch.
        values: Tensors of the whole batch.
        sides: What they are.

    Returns:
        Of those with a batch axis the sample's part, the others as they are.
    """
    return [value[place : place + 1] if side.batched else value for value, side in zip(values, sides, strict=True)]


def overhead_bytes(wrapped: Wrapped, split: str) -> float:
    """Bytes of a payload of one sample that are not symbols.

    Args:
        wrapped: The model; what passed the split point last is looked at.
        split: The split point.

    Returns:
        Bytes, of what varies the mean.

    Examples:
        >>> import torch, compoff
        >>> model = compoff.wrap(torch.nn.Linear(32, 4), "input", example_input=torch.zeros(2, 32))
        >>> overhead_bytes(model, "input")
        7.0
    """
    codes = [Code(one.prior.tables(), one.latent_shape) for one in wrapped.bottlenecks_at(split)]
    plain, sides = PayloadFormat(bytes(32), codes), sides_of(wrapped, split)
    fixed = float(plain.max_bytes(1) - plain.packed_bytes(1))
    if not sides:
        return fixed
    whole = PayloadFormat(bytes(32), codes, sides)
    seen = [side.detach().cpu().numpy() for side in wrapped.gate(split).sides(len(sides))]
    nothing = [np.zeros((1, *code.latent_shape), np.uint8) for code in codes]
    samples = min([_LOOKED_AT, *(len(side) for side, spec in zip(seen, sides, strict=True) if spec.batched)])
    lengths = [len(whole.encode(nothing, sides_at(place, seen, sides))) for place in range(samples)]
    return fixed + sum(lengths) / samples - len(plain.encode(nothing))


def symbol_bytes(wrapped: Wrapped, split: str, target_bytes: float) -> float:
    """What is left for symbols of the bytes that a payload shall have.

    Args:
        wrapped: The model; what passed the split point last is looked at.
        split: The split point.
        target_bytes: The bytes.

    Returns:
        Bytes.

    Raises:
        FitError: Next to nothing is left.
    """
    overhead = overhead_bytes(wrapped, split)
    if target_bytes - overhead < 1:
        raise FitError(
            f"target_bytes is {target_bytes}, but {overhead:.0f} bytes of a payload at '{split}' are no symbols: "
            "header, checksum, and what crosses the cut as it is; ask for more"
        )
    return target_bytes - overhead
