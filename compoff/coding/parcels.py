"""What goes between a head and a tail, and what is in it: the types that a `PayloadFormat` makes.

Plain values; how they become each other is in `compoff.coding.payload`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Decoded", "Payload"]


@dataclass(frozen=True)
class Payload:
    """The coded symbols of one batch; ``bytes(payload)`` is what travels.

    Args:
        data: the bytes that travel.
        artifact_id: the 32-byte name of the export that made them; not sent.
        quality: index of the quality they were made at.
        batch_size: how many samples they hold.

    Examples:
        >>> payload = Payload(b"seven b", artifact_id=bytes(32), quality=0, batch_size=1)
        >>> len(payload), bytes(payload)
        (7, b'seven b')

    Source: this project.
    """

    data: bytes
    artifact_id: bytes
    quality: int
    batch_size: int

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Payload({len(self.data)} bytes, quality={self.quality}, batch_size={self.batch_size})"


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a payload holds.

    Args:
        symbols: for each code, one index of a center for each place of its latent.
        sides: the side tensors.
        quality: index of the quality they were made at.
        batch_size: how many samples they hold.

    Shapes:
        symbols: each ``(batch_size, channels at this quality, *space)``.
        sides: each ``(batch_size, *shape)``, or ``shape`` where it has no batch.

    Examples:
        >>> import numpy as np
        >>> Decoded((np.zeros((2, 4, 5, 5), np.uint8),), (), quality=0, batch_size=2).symbols[0].shape
        (2, 4, 5, 5)

    Source: this project.
    """

    symbols: tuple[NDArray[np.uint8], ...]
    sides: tuple[NDArray[Any], ...]
    quality: int
    batch_size: int

    def __len__(self) -> int:
        return self.batch_size
