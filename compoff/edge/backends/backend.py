"""What a tail asks of a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Backend"]


class Backend(Protocol):
    """A runtime that holds a tail's program."""

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        ...

    def run(self, symbols: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Symbols to the leaves of the model's output, one batch."""
        ...
