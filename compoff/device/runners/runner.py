"""What a head asks of a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Runner"]


class Runner(Protocol):
    """A runtime that holds a head's program."""

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        ...

    def run(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Inputs to what crosses the cut, one batch: the symbols of each code, then the side tensors."""
        ...

    def to_numpy(self, value: Any) -> NDArray[Any] | None:
        """The array behind one of the runtime's own tensors; None if `value` is none of them."""
        ...

    def from_numpy(self, array: NDArray[Any]) -> Any:
        """An array as the runtime's own tensor."""
        ...
