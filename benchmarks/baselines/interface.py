"""What the comparison asks of a system: a server with an address, and a client that asks and returns the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable

__all__ = ["System", "answer_to", "question"]


class System(NamedTuple):
    """One way to ask.

    Args:
        name: As the table shows it.
        serve: Makes a server: a context manager with an ``address``.
        connect: Opens a client on an address; what has to be closed goes on the stack. The result asks and returns.
    """

    name: str
    serve: Callable[[], contextlib.AbstractContextManager[object]]
    connect: Callable[[contextlib.ExitStack, str], Callable[[bytes], bytes]]


class Running:
    """A server of which nothing is needed but its address and its end."""

    def __init__(self, address: str, close: Callable[[], object]) -> None:
        """Take over a server that listens."""
        self.address = address
        self._close = close

    def __enter__(self) -> Running:
        """The server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._close()


def question(up: int, down: int) -> bytes:
    """A question of some bytes that wants an answer of some bytes."""
    return down.to_bytes(4, "big").ljust(up, b"\0")


def answer_to(body: bytes) -> bytes:
    """The answer to a question."""
    return bytes(int.from_bytes(body[:4], "big"))
