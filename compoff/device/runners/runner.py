"""What a head asks of a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Runner"]


class Runner(Protocol):
    """A runtime that holds a head's program."""

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        ...

    def run(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
        """Inputs to symbols, one batch."""
        ...

    def to_numpy(self, value: Any) -> NDArray[Any] | None:
        """The array behind one of the runtime's own tensors; None if `value` is none of them."""
        ...

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """An array as the runtime's own tensor."""
        ...
