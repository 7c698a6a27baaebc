"""What a remote asks of a head: to turn inputs into a payload, and to say what its export's answers look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compoff.coding import Coding, Payload
    from compoff.device.runners.runner import Runner
    from compoff.manifest import Manifest

__all__ = ["Sender"]


class Sender(Protocol):
    """A head, as the wire sees it; `compoff.Head` is one.

    The remote stands on this and not on `Head`, which knows the remote: `Head.connect` makes one.
    """

    @property
    def split(self) -> str:
        """The split point."""
        ...

    @property
    def artifact_id(self) -> bytes:
        """The 32 bytes that head and tail of one export share."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the export says of itself."""
        ...

    @property
    def runner(self) -> Runner:
        """The runtime, whose tensors the answers become."""
        ...

    def __call__(self, *inputs: Any, quality: int | None = None, **keywords: Any) -> Payload:
        """Turn inputs into the bytes to send."""
        ...

    def coded(
        self, inputs: tuple[Any, ...], keywords: dict[str, Any], quality: Any, max_bytes: Any, codings: Sequence[Coding]
    ) -> tuple[Payload, Coding]:
        """Turn inputs into the bytes to send, by another coding before a lower quality; with the coding taken."""
        ...

    def check(self, *inputs: Any, quality: int | None = None, **keywords: Any) -> None:
        """Refuse what a call would refuse, without computing anything."""
        ...
