"""What a tail asks of a runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Backend", "NestedBackend"]


class Backend(Protocol):
    """A runtime that holds a tail's program."""

    @property
    def files(self) -> dict[str, bytes]:
        """The program as files of an artifact, by name."""
        ...

    def run(self, parts: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """What crossed the cut, symbols before side tensors, to the leaves of the model's output; one batch."""
        ...


@runtime_checkable
class NestedBackend(Backend, Protocol):
    """A runtime whose outputs are not known before it has run."""

    def run_nested(self, parts: list[NDArray[Any]]) -> Any:
        """What crossed the cut to the model's output as the model returns it, in torch tensors; one batch."""
        ...
