"""What a server can answer with: the interfaces of a tail, as the server sees it.

A `Servable` answers one payload at a time. A `Batchable` also lets decoding and running be done apart, for several
requests at once, and its answers be reduced; ``compoff.edge.tail`` has the real one. A `Punctual` one asks somebody
else, whom it tells how long each request is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence, Sized

    from numpy.typing import NDArray

    from compoff.manifest import TensorSpec

__all__ = ["Batchable", "Punctual", "Servable"]


class Servable(Protocol):
    """Answers one payload at a time.

    Source: this project.
    """

    @property
    def artifact_id(self) -> bytes:
        """SHA-256 of the export, 32 bytes; only clients that name it get here."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """Longest payload that can be right, in bytes; nothing longer is read."""
        ...

    def answer(self, payload: bytes) -> bytes:
        """Body of the reply; called by one of the worker threads, or where it takes microseconds by the event loop's.

        Raises:
            PayloadError: The payload cannot be decoded; the client is told so.
        """
        ...


@runtime_checkable
class Batchable(Servable, Protocol):
    """Answers several requests in one run, and in every form of reply.

    Source: this project.
    """

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What one run returns for each payload."""
        ...

    @property
    def max_batch(self) -> int:
        """Samples that one run takes, of however many payloads."""
        ...

    def decode(self, payload: bytes) -> Sized:
        """A payload as ``run`` takes it; its length is its number of samples. Called by any thread.

        Raises:
            PayloadError: The payload cannot be decoded; the client is told so.
        """
        ...

    def run(self, decoded: Sequence[Any]) -> list[list[NDArray[Any]]]:
        """The outputs of each of several decoded payloads, in their order; called by a worker thread."""
        ...


@runtime_checkable
class Punctual(Batchable, Protocol):
    """Answers several requests, each by its deadline or not at all.

    Source: this project.
    """

    def run_until(self, decoded: Sequence[Any], deadlines: Sequence[float]) -> Sequence[list[NDArray[Any]] | None]:
        """As ``run``, but None for each request whose deadline came first.

        Args:
            decoded: What ``decode`` made of each.
            deadlines: Of each, as a moment of ``time.monotonic()``; infinite for none.
        """
        ...
