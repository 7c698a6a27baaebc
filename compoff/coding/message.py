"""What is sent and what was read: plain values. How one becomes the other is for `payload`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compoff.errors import PayloadError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Decoded", "Payload", "payload_bytes"]


@dataclass(frozen=True)
class Payload:
    """The coded symbols of one batch; ``bytes(payload)`` is what travels.

    Args:
        data: the bytes that travel.
        artifact_id: the 32-byte name of the export that made them; not sent.
        quality: index of the quality they were made at.
        batch_size: how many samples they hold.
        cut: whether the end was cut off to fit a limit, so that it holds fewer channels than its quality has.

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
    cut: bool = False

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        cut = ", cut" if self.cut else ""
        return f"Payload({len(self.data)} bytes, quality={self.quality}{cut}, batch_size={self.batch_size})"


def payload_bytes(data: Payload | Buffer) -> bytes:
    """The bytes of a payload; they are copied only where they could change or are not in one piece.

    Args:
        data: a payload, or its bytes in ``bytes``, ``bytearray``, ``memoryview`` or another buffer of them.

    Returns:
        The bytes.

    Raises:
        PayloadError: it is something else.

    Examples:
        >>> payload_bytes(bytearray(b"seven b"))
        b'seven b'

    Source: this project.
    """
    if isinstance(data, Payload):
        return data.data
    if isinstance(data, bytes):
        return bytes(data)  # the same object, but for a subclass
    try:
        view = memoryview(data)
    except (TypeError, ValueError):  # no buffer, or one that has been released
        view = None
    if view is None or view.itemsize != 1:
        raise PayloadError(
            f"a {type(data).__name__} was given; expected what a Head returns, or its bytes; a tail takes a list, too"
        )
    return bytes(view)


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
