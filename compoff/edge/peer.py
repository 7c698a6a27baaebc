"""What the service needs of a connection, whatever it speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from compoff.wire.messages import Offer

__all__ = ["Peer"]


class Peer(Protocol):
    """A connection, as the service sees it.

    Source: this project.
    """

    @property
    def who(self) -> str:
        """Whose it is, as `holder_name` says."""
        ...

    @property
    def busy(self) -> bool:
        """Whether requests of it are in flight."""
        ...

    @property
    def asked(self) -> float:
        """When its last request came, or its last answer went."""
        ...

    @property
    def unread_bytes(self) -> int:
        """Bytes of answers written to this connection that its client has not taken, when they were last counted."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes of a message half received from this connection's client."""
        ...

    @property
    def greeted(self) -> bool:
        """Whether the client has said HELLO and was welcomed."""
        ...

    @property
    def offers(self) -> tuple[Offer, ...]:
        """The artifacts that the client has asked for, each with the form of its replies."""
        ...

    @property
    def granted(self) -> tuple[bool, ...]:
        """For each of them whether it was served when the client asked."""
        ...

    def count_unread(self) -> None:
        """Count them, and tell the service."""
        ...

    def check_clock(self, now: float) -> None:
        """Close where a timeout is over at this moment of ``time.monotonic()``."""
        ...

    def drain(self) -> None:
        """Take no new requests, and close when the answers in flight are sent."""
        ...

    def put_out(self) -> None:
        """Tell the client that the server is busy, and close."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...

    def abandon(self) -> None:
        """Leave the client to the parent, in a forked child."""
        ...
